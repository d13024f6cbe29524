"""From pixels to network input, pixel by pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vitkit import ops
from vitkit.backend import ArrayModule, to_numpy
from vitkit.testing import assert_close

MEAN, STD = (0.5, 0.25, 0.1), (0.2, 0.5, 1.0)


@pytest.mark.parametrize("dtype", ["float64", "float32", np.dtype("float32")])
@pytest.mark.parametrize("scale", [255.0, 16])
def test_value(
    dtype: Any, scale: float, xp: ArrayModule, rng: np.random.Generator, bring: Any
) -> None:
    pixels = rng.integers(0, int(scale) + 1, (2, 3, 4, 5), np.uint8)
    y = ops.normalize_images(bring(pixels, "uint8"), scale, MEAN, STD, dtype, xp=xp)
    assert y.dtype == dtype
    expected = np.zeros(pixels.shape)
    for at in np.ndindex(pixels.shape):
        expected[at] = (int(pixels[at]) / scale - MEAN[at[1]]) / STD[at[1]]
    assert_close(y, expected)


def test_the_training_images_get_mean_zero_and_spread_one(
    xp: ArrayModule, rng: np.random.Generator, bring: Any
) -> None:
    pixels = rng.integers(0, 256, (50, 3, 8, 8), np.uint8)
    parts = pixels / 255
    mean, std = parts.mean(axis=(0, 2, 3)), parts.std(axis=(0, 2, 3))
    y = to_numpy(ops.normalize_images(bring(pixels, "uint8"), 255, mean, std, "float64", xp=xp))
    assert_close(y.mean(axis=(0, 2, 3)) + 1, np.ones(3))
    assert_close(y.std(axis=(0, 2, 3)), np.ones(3))


def test_as_many_means_as_spreads(xp: ArrayModule, bring: Any) -> None:
    with pytest.raises(ValueError, match="is shorter than"):
        ops.normalize_images(bring(np.zeros((1, 3, 2, 2)), "uint8"), 1, MEAN, STD[:2], "f4", xp=xp)


def test_empty_batch(xp: ArrayModule, bring: Any) -> None:
    pixels = bring(np.zeros((0, 3, 4, 4)), "uint8")
    assert ops.normalize_images(pixels, 255, MEAN, STD, "float32", xp=xp).shape == (0, 3, 4, 4)
