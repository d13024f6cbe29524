"""Softmax of rows, shared among threads; the meaning is in :mod:`vitkit.ops.softmax`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from vitkit.backend import Array, ArrayModule
from vitkit.kernels.cpu._arrays import rows, served
from vitkit.kernels.cpu._compile import parallel, serial, widest_vectors
from vitkit.kernels.cpu._math import ONE, ZERO, F, exp, larger
from vitkit.kernels.cpu._memory import empty
from vitkit.kernels.cpu._rows import scale_inplace
from vitkit.kernels.cpu._threads import threads
from vitkit.ops.softmax import softmax, softmax_backward

LEAST = F(-np.inf)


@serial
def _exponentials(x: np.ndarray, y: np.ndarray) -> Any:
    """Write e^(x - max x), and return the sum."""
    widest_vectors()
    largest = LEAST
    for k in range(x.size):
        largest = larger(largest, x[k])
    total = ZERO
    for k in range(x.size):
        e = exp(x[k] - largest)
        y[k] = e
        total += e
    return total


@serial
def _gradient(dy: np.ndarray, y: np.ndarray, dx: np.ndarray) -> None:
    widest_vectors()
    along = ZERO
    for k in range(y.size):
        along += dy[k] * y[k]
    for k in range(y.size):
        dx[k] = y[k] * (dy[k] - along)


@parallel
def _forward(x: np.ndarray, y: np.ndarray, parts: int) -> None:
    for t in prange(parts):
        for r in range(len(x) * t // parts, len(x) * (t + 1) // parts):
            scale_inplace(y[r], ONE / _exponentials(x[r], y[r]))


@parallel
def _backward(dy: np.ndarray, y: np.ndarray, dx: np.ndarray, parts: int) -> None:
    for t in prange(parts):
        for r in range(len(y) * t // parts, len(y) * (t + 1) // parts):
            _gradient(dy[r], y[r], dx[r])


def last(axis: int, array: Array) -> bool:
    """Whether ``axis`` is the last of an array."""
    return axis in (-1, array.ndim - 1) and array.ndim > 0


@softmax.kernel("numpy")
def softmax_cpu(x: Array, axis: int = -1, *, xp: ArrayModule) -> Any:
    """Replace :func:`vitkit.ops.softmax` for float32 and the last axis."""
    if not served(x) or not last(axis, x):
        return NotImplemented
    y = empty(x.shape)
    _forward(rows(x), rows(y), threads())
    return y


@softmax_backward.kernel("numpy")
def softmax_backward_cpu(dy: Array, y: Array, axis: int = -1, *, xp: ArrayModule) -> Any:
    """Replace :func:`vitkit.ops.softmax_backward` for float32 and the last axis."""
    if not served(dy, y) or dy.shape != y.shape or not last(axis, y):
        return NotImplemented
    dx = empty(y.shape)
    _backward(rows(dy), rows(y), rows(dx), threads())
    return dx
