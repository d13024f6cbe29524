"""The affine map on a GPU; the meaning is in :mod:`vitkit.ops.linear`."""

from __future__ import annotations

from typing import Any

from vitkit.backend import Array, ArrayModule
from vitkit.kernels.cuda._arrays import plain, served
from vitkit.kernels.cuda._products import DTYPES, gradients, multiply, rows
from vitkit.kernels.cuda.casts import cast
from vitkit.ops.linear import linear, linear_backward


@linear.kernel("cupy")
def linear_cuda(
    x: Array, weight: Array, bias: Array | None, *, precision: str = "float32", xp: ArrayModule
) -> Any:
    """Replace :func:`vitkit.ops.linear` for float32 inputs."""
    if not served(x, weight, *(() if bias is None else (bias,))):
        return NotImplemented
    y = xp.empty((*x.shape[:-1], weight.shape[0]), "float32")
    shift = None if bias is None else plain(bias, xp)
    inputs, weight = (cast(each, DTYPES[precision], xp) for each in (rows(x), weight))
    multiply(inputs, weight, rows(y), transpose_b=True, bias=shift, precision=precision, xp=xp)
    return y


@linear_backward.kernel("cupy")
def linear_backward_cuda(
    dy: Array,
    x: Array,
    weight: Array,
    *,
    precision: str = "float32",
    input_gradient: bool = True,
    xp: ArrayModule,
) -> Any:
    """Replace :func:`vitkit.ops.linear_backward` for float32 inputs."""
    if not served(dy, x, weight):
        return NotImplemented
    dweight, dbias = xp.empty(weight.shape, "float32"), xp.empty(weight.shape[:1], "float32")
    dx = xp.empty(x.shape, "float32") if input_gradient else None
    dy, x, weight = (cast(each, DTYPES[precision], xp) for each in (rows(dy), rows(x), weight))
    if dx is not None:
        multiply(dy, weight, rows(dx), precision=precision, xp=xp)
    gradients(dy, x, dweight, dbias, adds=False, precision=precision, xp=xp)
    return dx, dweight, dbias
