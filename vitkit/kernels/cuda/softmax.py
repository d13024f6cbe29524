"""Softmax of rows on a GPU; the meaning is in :mod:`vitkit.ops.softmax`."""

from __future__ import annotations

from typing import Any

from vitkit.backend import Array, ArrayModule
from vitkit.kernels.cuda._arrays import WIDTH, plain, rows_of, served, vector
from vitkit.kernels.cuda._kernel import Family
from vitkit.kernels.cuda._rows import SHARING, sharing
from vitkit.ops.softmax import softmax, softmax_backward

FORWARD = Family("softmax.cuh", "softmax_forward<{threads}, {v}>", threads=SHARING, v=(1, WIDTH))
BACKWARD = Family("softmax.cuh", "softmax_backward<{threads}, {v}>", threads=SHARING, v=(1, WIDTH))


def last(axis: int, array: Array) -> bool:
    """Return whether ``axis`` is the last of an array."""
    return axis in (-1, array.ndim - 1) and array.ndim > 0


@softmax.kernel("cupy")
def softmax_cuda(x: Array, axis: int = -1, *, xp: ArrayModule) -> Any:
    """Replace :func:`vitkit.ops.softmax` for float32 and the last axis."""
    if not served(x) or not last(axis, x):
        return NotImplemented
    x, y = plain(x, xp), xp.empty(x.shape, "float32")
    rows, width = rows_of(x), x.shape[-1]
    threads, sizes = sharing(rows, width)
    FORWARD(threads=threads, v=vector(width, x, y))(*sizes, x, y, rows, width, xp=xp)
    return y


@softmax_backward.kernel("cupy")
def softmax_backward_cuda(dy: Array, y: Array, axis: int = -1, *, xp: ArrayModule) -> Any:
    """Replace :func:`vitkit.ops.softmax_backward` for float32 and the last axis."""
    if not served(dy, y) or dy.shape != y.shape or not last(axis, y):
        return NotImplemented
    dy, y, dx = plain(dy, xp), plain(y, xp), xp.empty(y.shape, "float32")
    rows, width = rows_of(y), y.shape[-1]
    threads, sizes = sharing(rows, width)
    BACKWARD(threads=threads, v=vector(width, dy, y, dx))(*sizes, dy, y, dx, rows, width, xp=xp)
    return dx
