"""Dropout and drop path by the same masks; the meaning is in :mod:`vitkit.ops.dropout`.

NumPy's float32 between 0 and 1 are the upper 24 bits of 32, the low half of a word first.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import prange

from vitkit.backend import Array, ArrayModule, philox
from vitkit.kernels.cpu._arrays import column, served
from vitkit.kernels.cpu._compile import parallel, serial, widest_vectors
from vitkit.kernels.cpu._math import ZERO, F
from vitkit.kernels.cpu._memory import empty
from vitkit.kernels.cpu._philox import draw
from vitkit.kernels.cpu._rows import scale
from vitkit.kernels.cpu._threads import threads
from vitkit.ops.dropout import (
    Key,
    drawn_gains,
    drop_path,
    drop_path_backward,
    dropout,
    dropout_backward,
)

BLOCK = 8  # numbers that a block of Philox makes
PIECE = 512 * BLOCK  # numbers that are drawn at once, and stay in the cache
EIGHT = np.uint32(8)


@serial
def _keep(x: np.ndarray, bits: np.ndarray, least: int, gain: float, y: np.ndarray) -> None:
    widest_vectors()
    for k in range(x.size):
        y[k] = x[k] * (gain if bits[k] >> EIGHT >= least else ZERO)


@parallel
def _drop_numbers(
    x: np.ndarray,
    key: np.ndarray,
    counter: np.ndarray,
    least: int,
    gain: float,
    words: np.ndarray,
    bits: np.ndarray,
    y: np.ndarray,
) -> None:
    """Write x times its mask, piece by piece; ``bits`` are the ``words`` by halves."""
    parts, pieces = len(words), (x.size + PIECE - 1) // PIECE
    for t in prange(parts):
        for p in range(pieces * t // parts, pieces * (t + 1) // parts):
            i, j = p * PIECE, min((p + 1) * PIECE, x.size)
            draw(key, counter, 1 + i // BLOCK, words[t, : (j - i + BLOCK - 1) // BLOCK * 4])
            _keep(x[i:j], bits[t], least, gain, y[i:j])


@parallel
def _scale_samples(x: np.ndarray, factors: np.ndarray, y: np.ndarray, parts: int) -> None:
    for t in prange(parts):
        for b in range(len(x) * t // parts, len(x) * (t + 1) // parts):
            scale(x[b], factors[b], y[b])


def _dropped(x: Array, rate: float, key: Key) -> Any:
    if not served(x):
        return NotImplemented
    seed, *indices = key
    state = philox(seed, "dropout", *indices).bit_generator.state["state"]
    # A number is m 2^-24 with a whole m, so it is at least the rate where m is at least this.
    least = np.uint32(math.ceil(float(F(rate)) * 2**24))
    y, words = empty(x.shape), empty((threads(), PIECE // 2), np.uint64)
    _drop_numbers(
        column(x),
        state["key"],
        state["counter"],
        least,
        F(1 / (1 - rate)),
        words,
        words.view(np.uint32),
        column(y),
    )
    return y


def _samples_dropped(x: Array, rate: float, key: Key) -> Any:
    if not served(x) or x.ndim == 0:
        return NotImplemented
    y, samples = empty(x.shape), len(x)
    gains = drawn_gains(samples, rate, key, x.dtype, xp=np)
    _scale_samples(column(x).reshape(samples, -1), gains, column(y).reshape(samples, -1), threads())
    return y


@dropout.kernel("numpy")
def dropout_cpu(x: Array, rate: float, key: Key, *, xp: ArrayModule) -> Any:
    """Replace :func:`vitkit.ops.dropout` for float32."""
    return _dropped(x, rate, key)


@dropout_backward.kernel("numpy")
def dropout_backward_cpu(dy: Array, rate: float, key: Key, *, xp: ArrayModule) -> Any:
    """Replace :func:`vitkit.ops.dropout_backward` for float32."""
    return _dropped(dy, rate, key)


@drop_path.kernel("numpy")
def drop_path_cpu(x: Array, rate: float, key: Key, *, xp: ArrayModule) -> Any:
    """Replace :func:`vitkit.ops.drop_path` for float32."""
    return _samples_dropped(x, rate, key)


@drop_path_backward.kernel("numpy")
def drop_path_backward_cpu(dy: Array, rate: float, key: Key, *, xp: ArrayModule) -> Any:
    """Replace :func:`vitkit.ops.drop_path_backward` for float32."""
    return _samples_dropped(dy, rate, key)
