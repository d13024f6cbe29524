"""Patches, pixel by pixel; the round trip and the order of a convolution are in test_properties."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vitkit import ops
from vitkit.backend import ArrayModule, to_numpy


def patchify_loop(images: np.ndarray, down: int, across: int) -> np.ndarray:
    batch, channels, height, width = images.shape
    rows = [
        [
            images[b, c, top + y, left + x]
            for c in range(channels)
            for y in range(down)
            for x in range(across)
        ]
        for b in range(batch)
        for top in range(0, height, down)
        for left in range(0, width, across)
    ]
    return np.asarray(rows, images.dtype).reshape(batch, -1, channels * down * across)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    ("shape", "patch"),
    [
        ((2, 3, 4, 6), (2, 3)),
        ((1, 1, 1, 1), (1, 1)),
        ((3, 1, 31, 33), (31, 11)),
        ((1, 2, 32, 32), (8, 16)),
        ((1, 3, 6, 4), (1, 4)),
    ],
)
def test_value(
    shape: tuple[int, ...], patch: tuple[int, int], dtype: str, xp: ArrayModule, bring: Any
) -> None:
    images = np.arange(np.prod(shape), dtype=dtype).reshape(shape)
    patches = ops.patchify(bring(images, dtype), patch, xp=xp)
    assert patches.dtype == dtype
    np.testing.assert_array_equal(to_numpy(patches), patchify_loop(images, *patch))
    back = ops.unpatchify(bring(to_numpy(patches), dtype), shape[2:], patch, xp=xp)
    assert back.dtype == dtype
    np.testing.assert_array_equal(to_numpy(back), images)


def test_each_is_the_gradient_of_the_other(
    xp: ArrayModule, rng: np.random.Generator, gradient_error: Any
) -> None:
    size, patch = (4, 6), (2, 3)
    images, patches = rng.standard_normal((2, 3, *size)), rng.standard_normal((2, 4, 18))
    assert (
        gradient_error(
            lambda x: ops.patchify(x, patch, xp=xp),
            lambda dy, x: (ops.unpatchify(dy, size, patch, xp=xp),),
            images,
        )
        < 1e-6
    )
    assert (
        gradient_error(
            lambda x: ops.unpatchify(x, size, patch, xp=xp),
            lambda dy, x: (ops.patchify(dy, patch, xp=xp),),
            patches,
        )
        < 1e-6
    )


def test_empty_batch(xp: ArrayModule, bring: Any) -> None:
    patches = ops.patchify(bring(np.zeros((0, 3, 4, 6))), (2, 3), xp=xp)
    assert patches.shape == (0, 4, 18)
    assert ops.unpatchify(patches, (4, 6), (2, 3), xp=xp).shape == (0, 3, 4, 6)
