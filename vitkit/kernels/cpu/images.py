"""Pixels to numbers in one pass; the meaning is in :mod:`vitkit.ops.images`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import prange

from vitkit.backend import Array, ArrayModule
from vitkit.kernels.cpu._arrays import plain
from vitkit.kernels.cpu._compile import parallel, serial, widest_vectors
from vitkit.kernels.cpu._math import F
from vitkit.kernels.cpu._memory import empty
from vitkit.kernels.cpu._threads import threads
from vitkit.ops.images import normalize_images


@serial
def _normalize(x: np.ndarray, factor: float, shift: float, y: np.ndarray) -> None:
    widest_vectors()
    for k in range(x.size):
        y[k] = F(x[k]) * factor + shift


@parallel
def _normalize_all(
    x: np.ndarray, factor: np.ndarray, shift: np.ndarray, y: np.ndarray, parts: int
) -> None:
    """Normalize the rows of x, which are the channels of one image after the other."""
    for t in prange(parts):
        for r in range(len(x) * t // parts, len(x) * (t + 1) // parts):
            _normalize(x[r], factor[r % len(factor)], shift[r % len(factor)], y[r])


@normalize_images.kernel("numpy")
def normalize_images_cpu(
    images: Array,
    scale: float,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: Any,
    *,
    xp: ArrayModule,
) -> Any:
    """Replace :func:`vitkit.ops.normalize_images` for bytes that become float32."""
    if not isinstance(images, np.ndarray) or images.ndim != 4 or not images.size:
        return NotImplemented
    channels = images.shape[1]
    if images.dtype != np.uint8 or np.dtype(dtype) != np.float32:
        return NotImplemented
    if not len(mean) == len(std) == channels:
        return NotImplemented
    y = empty(images.shape)
    factor = np.array([1 / (scale * s) for s in std], np.float32)
    shift = np.array([-m / s for m, s in zip(mean, std, strict=True)], np.float32)
    pixels, numbers = (a.reshape(len(images) * channels, -1) for a in (plain(images), y))
    _normalize_all(pixels, factor, shift, numbers, threads())
    return y
