from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vitkit.data import fashion_mnist, mnist
from vitkit.data.mnist import OFFICIAL
from vitkit.errors import DataError

Writer = Callable[[np.ndarray], bytes]
NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte")


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("dotted", [True, False])
def test_all_spellings(
    packed: bool, dotted: bool, tmp_path: Path, mnist_arrays: dict[str, np.ndarray], to_idx: Writer
) -> None:
    for name, array in mnist_arrays.items():
        spelled = name.replace("-idx", ".idx") if dotted else name
        content = to_idx(array)
        path = tmp_path / (f"{spelled}.gz" if packed else spelled)
        path.write_bytes(gzip.compress(content) if packed else content)
    splits = mnist(tmp_path)
    assert (len(splits.train), len(splits.test)) == (30, 20)
    assert splits.train.labels.dtype == np.int64
    images = splits.test.images(np.arange(20))
    np.testing.assert_array_equal(images[:, 0], mnist_arrays["t10k-images-idx3-ubyte"])
    assert splits.train.note == splits.test.note == ""


def test_found_in_the_parent_folder_and_by_the_environment(
    mnist_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(mnist(mnist_folder.parent).train) == 30
    monkeypatch.setenv("VITKIT_DATA_DIR", str(mnist_folder.parent))
    assert len(mnist().train) == 30
    with pytest.raises(DataError, match="run `vitkit data prepare fashion_mnist`"):
        fashion_mnist()


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"mnist not found in .*prepare mnist.*--data-dir"):
        mnist(tmp_path)


def test_a_missing_file(mnist_folder: Path) -> None:
    (mnist_folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match="t10k-labels-idx1-ubyte missing"):
        mnist(mnist_folder)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        (NAMES[1], np.zeros(29, np.uint8), "30 images but 29 labels"),
        (NAMES[1], np.full(30, 10, np.uint8), "label 10 at index 0"),
        (NAMES[1], np.zeros((30, 10), np.uint8), r"labels, uint8 \(N,\), are due"),
        (NAMES[1], np.zeros(30, np.int32), "holds int32"),
        (NAMES[0], np.zeros((30, 28), np.uint8), r"images, uint8 \(N, H, W\), are due"),
        (NAMES[0], np.zeros((30, 28, 28), np.float32), "holds float32"),
        (NAMES[0], np.ones((30, 28, 28), np.uint8), "largest pixel is 1"),
        (NAMES[2], np.zeros((20, 27, 28), np.uint8), "do not belong together"),
    ],
)
def test_wrong_contents(
    name: str, array: np.ndarray, message: str, mnist_folder: Path, to_idx: Writer
) -> None:
    (mnist_folder / f"{name}.gz").write_bytes(gzip.compress(to_idx(array)))
    with pytest.raises(DataError, match=message):
        mnist(mnist_folder)


@pytest.mark.parametrize("part", ["train", "t10k"])
def test_fewer_images_than_official(
    part: str, mnist_folder: Path, mnist_arrays: dict[str, np.ndarray], to_idx: Writer
) -> None:
    for name, array in mnist_arrays.items():
        if name.startswith(part):
            (mnist_folder / f"{name}.gz").write_bytes(gzip.compress(to_idx(array[:7])))
    with pytest.raises(DataError) as caught:
        mnist(mnist_folder)
    message = str(caught.value)
    assert f"{part}-images-idx3-ubyte.gz: 7 images, where " in message
    assert f"where {30 if part == 'train' else 20} of mnist are due" in message
    for cure in ("vitkit data verify mnist", "vitkit data prepare mnist", "npz or folder"):
        assert cure in message


def test_the_official_counts() -> None:
    assert OFFICIAL == (60000, 10000)


def test_the_real_one(real_mnist: Path) -> None:
    splits = mnist(real_mnist)
    assert (len(splits.train), len(splits.test)) == (60000, 10000)
    assert splits.train.note == splits.test.note == ""
    assert splits.train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    pixels = splits.train.images(np.arange(60000)).astype(np.float32) / 255
    np.testing.assert_allclose(splits.train.mean, pixels.mean(dtype=np.float64), rtol=1e-4)
    np.testing.assert_allclose(splits.train.std, pixels.std(dtype=np.float64), rtol=1e-4)


def test_mnist_is_not_fashion_mnist(real_mnist: Path) -> None:
    with pytest.raises(DataError, match="this is mnist, not fashion_mnist"):
        fashion_mnist(real_mnist)
