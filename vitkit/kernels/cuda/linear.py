"""The affine map on a GPU; the meaning is in :mod:`vitkit.ops.linear`."""

from __future__ import annotations

from typing import Any

from vitkit.backend import Array, ArrayModule
from vitkit.kernels.cuda._arrays import plain, served
from vitkit.kernels.cuda._products import multiply, rows
from vitkit.kernels.cuda.column_sums import add_column_sums
from vitkit.ops.linear import linear, linear_backward


@linear.kernel("cupy")
def linear_cuda(x: Array, weight: Array, bias: Array | None, *, xp: ArrayModule) -> Any:
    """Replace :func:`vitkit.ops.linear` for float32."""
    if not served(x, weight, *(() if bias is None else (bias,))):
        return NotImplemented
    y = xp.empty((*x.shape[:-1], weight.shape[0]), "float32")
    shift = None if bias is None else plain(bias, xp)
    inputs, weight = rows(plain(x, xp)), plain(weight, xp)
    multiply(inputs, weight, rows(y), transpose_b=True, bias=shift, xp=xp)
    return y


@linear_backward.kernel("cupy")
def linear_backward_cuda(dy: Array, x: Array, weight: Array, *, xp: ArrayModule) -> Any:
    """Replace :func:`vitkit.ops.linear_backward` for float32."""
    if not served(dy, x, weight):
        return NotImplemented
    dy, x, weight = (plain(array, xp) for array in (dy, x, weight))
    dx, dweight = xp.empty(x.shape, "float32"), xp.empty(weight.shape, "float32")
    dbias = xp.empty(weight.shape[:1], "float32")
    multiply(rows(dy), weight, rows(dx), xp=xp)
    multiply(rows(dy), rows(x), dweight, transpose_a=True, xp=xp)
    add_column_sums(rows(dy), dbias, adds=False, xp=xp)
    return dx, dweight, dbias
