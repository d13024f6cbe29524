from __future__ import annotations

import numpy as np
import pytest

from vitkit.data import ArrayDataset, check_arrays
from vitkit.data.checks import reading
from vitkit.errors import DataError

IMAGES = np.full((4, 1, 2, 2), 200, np.uint8)
LABELS = np.array([0, 1, 2, 1])


def with_nan() -> np.ndarray:
    images = np.zeros((4, 1, 2, 2), np.float32)
    images[2, 0, 1, 0] = np.nan
    return images


def test_what_is_right_passes() -> None:
    check_arrays(IMAGES, LABELS, 3, "here")
    check_arrays(IMAGES // 200, LABELS, 3, "here", scale=1)
    check_arrays(IMAGES[:0], LABELS[:0], 3, "here")
    for shape in ((4, 3, 32, 3), (4, 12, 32, 32), (4, 1, 1, 1)):  # many channels, narrow images
        check_arrays(np.zeros(shape, np.uint8), LABELS, 3, "here")


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES[:3], LABELS, "3 images but 4 labels"),
        (IMAGES, np.array([0, 1, 3, 7]), r"label 3 at index 2 .* 0 to 2 \(2 of 4"),
        (IMAGES, np.array([0, 1, 1, -1]), "label -1 at index 3"),
        (IMAGES, np.eye(4, 3), r"one-hot.*argmax"),
        (IMAGES, LABELS.astype(np.float32), "float32; integers"),
        (IMAGES, LABELS[:, None, None], r"\(4, 1, 1\); \(N,\) is due"),
        (IMAGES[:, 0], LABELS, r"\(N, C, H, W\) is due"),
        (
            np.zeros((4, 32, 32, 3), np.uint8),
            LABELS,
            r"\(4, 32, 32, 3\), which looks like .*images\.transpose\(0, 3, 1, 2\)",
        ),
        (IMAGES / np.float32(255), LABELS, r"float32; uint8 .*images \* 255"),
        (IMAGES.astype(np.float64), LABELS, "between 200 and 200: save them as uint8"),
        (IMAGES - 300.0, LABELS, "undo the normalization"),
        (with_nan(), LABELS, r"Pixel \[2, 0, 1, 0\] is nan"),
        (IMAGES // 200, LABELS, "largest pixel is 1, where 255"),
        (IMAGES.astype(object), LABELS, "object; uint8 is due"),
    ],
)
def test_faults_are_named(images: np.ndarray, labels: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=r"(?s)^here: .*" + message):
        check_arrays(images, labels, 3, "here")


def test_pixels_above_the_scale() -> None:
    with pytest.raises(DataError, match="largest pixel is 200, above the scale 16"):
        ArrayDataset(IMAGES, LABELS, classes="abc", scale=16)


def test_reading_names_the_file_and_keeps_the_cause() -> None:
    with (
        pytest.raises(DataError, match=r"some\.file: cannot be read") as caught,
        reading("some.file"),
    ):
        raise AttributeError("as numpy does")
    assert isinstance(caught.value.__cause__, AttributeError)
    with pytest.raises(DataError, match=r"^mine$"), reading("some.file"):
        raise DataError("mine")
    with pytest.raises(KeyboardInterrupt), reading("some.file"):
        raise KeyboardInterrupt
