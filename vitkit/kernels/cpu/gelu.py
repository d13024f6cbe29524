"""Both forms of GELU, shared among threads; the meaning is in :mod:`vitkit.ops.gelu`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from vitkit.backend import Array, ArrayModule
from vitkit.kernels.cpu._arrays import column, served
from vitkit.kernels.cpu._compile import parallel, serial, widest_vectors
from vitkit.kernels.cpu._math import gelu_both, gelu_tanh_both
from vitkit.kernels.cpu._memory import empty
from vitkit.kernels.cpu._rows import piece
from vitkit.kernels.cpu._threads import threads
from vitkit.ops.gelu import gelu, gelu_backward, gelu_tanh, gelu_tanh_backward

ERROR_FUNCTION, TANH = 0, 1


@serial
def _values(kind: int, x: np.ndarray, y: np.ndarray) -> None:
    widest_vectors()
    if kind == ERROR_FUNCTION:
        for k in range(x.size):
            y[k] = gelu_both(x[k])[0]
    else:
        for k in range(x.size):
            y[k] = gelu_tanh_both(x[k])[0]


@serial
def _gradients(kind: int, dy: np.ndarray, x: np.ndarray, dx: np.ndarray) -> None:
    widest_vectors()
    if kind == ERROR_FUNCTION:
        for k in range(x.size):
            dx[k] = dy[k] * gelu_both(x[k])[1]
    else:
        for k in range(x.size):
            dx[k] = dy[k] * gelu_tanh_both(x[k])[1]


@parallel
def _forward(kind: int, x: np.ndarray, y: np.ndarray, parts: int) -> None:
    for t in prange(parts):
        i, j = piece(x.size, t, parts)
        _values(kind, x[i:j], y[i:j])


@parallel
def _backward(kind: int, dy: np.ndarray, x: np.ndarray, dx: np.ndarray, parts: int) -> None:
    for t in prange(parts):
        i, j = piece(x.size, t, parts)
        _gradients(kind, dy[i:j], x[i:j], dx[i:j])


def _activated(kind: int, x: Array) -> Any:
    if not served(x):
        return NotImplemented
    y = empty(x.shape)
    _forward(kind, column(x), column(y), threads())
    return y


def _differentiated(kind: int, dy: Array, x: Array) -> Any:
    if not served(dy, x) or dy.shape != x.shape:
        return NotImplemented
    dx = empty(x.shape)
    _backward(kind, column(dy), column(x), column(dx), threads())
    return dx


@gelu.kernel("numpy")
def gelu_cpu(x: Array, *, xp: ArrayModule) -> Any:
    """Replace :func:`vitkit.ops.gelu` for float32."""
    return _activated(ERROR_FUNCTION, x)


@gelu_backward.kernel("numpy")
def gelu_backward_cpu(dy: Array, x: Array, *, xp: ArrayModule) -> Any:
    """Replace :func:`vitkit.ops.gelu_backward` for float32."""
    return _differentiated(ERROR_FUNCTION, dy, x)


@gelu_tanh.kernel("numpy")
def gelu_tanh_cpu(x: Array, *, xp: ArrayModule) -> Any:
    """Replace :func:`vitkit.ops.gelu_tanh` for float32."""
    return _activated(TANH, x)


@gelu_tanh_backward.kernel("numpy")
def gelu_tanh_backward_cpu(dy: Array, x: Array, *, xp: ArrayModule) -> Any:
    """Replace :func:`vitkit.ops.gelu_tanh_backward` for float32."""
    return _differentiated(TANH, dy, x)
