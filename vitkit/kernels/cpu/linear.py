"""The affine map with packed panels, in float32; the meaning is in :mod:`vitkit.ops.linear`."""

from __future__ import annotations

from typing import Any

import numpy as np

from vitkit.backend import Array, ArrayModule
from vitkit.kernels.cpu._arrays import plain, rows, served
from vitkit.kernels.cpu._gradients import GRADIENT_SCRATCH, add_weight_gradient
from vitkit.kernels.cpu._memory import empty, scratch
from vitkit.kernels.cpu._panels import GROUP, packed, packed_transposed
from vitkit.kernels.cpu._products import affine, room
from vitkit.kernels.cpu._threads import parts, threads
from vitkit.ops.linear import linear, linear_backward


@linear.kernel("numpy")
def linear_cpu(
    x: Array, weight: Array, bias: Array | None, *, precision: str = "float32", xp: ArrayModule
) -> Any:
    """Replace :func:`vitkit.ops.linear` for float32 arrays, rounding nothing."""
    if not served(x, weight, *(() if bias is None else (bias,))):
        return NotImplemented
    flat, width = rows(x), weight.shape[0]
    y = empty((*x.shape[:-1], width))
    shift = np.zeros(width, np.float32) if bias is None else plain(bias)
    affine(
        flat,
        packed_transposed(weight),
        shift,
        y.reshape(-1, width),
        scratch(room(GROUP)),
        parts(len(flat)),
    )
    return y


@linear_backward.kernel("numpy")
def linear_backward_cpu(
    dy: Array,
    x: Array,
    weight: Array,
    *,
    precision: str = "float32",
    input_gradient: bool = True,
    xp: ArrayModule,
) -> Any:
    """Replace :func:`vitkit.ops.linear_backward` for float32 arrays, rounding nothing."""
    if not served(dy, x, weight):
        return NotImplemented
    width, depth = weight.shape
    drows, dx = rows(dy), None
    if input_gradient:
        dx, none = empty(x.shape), np.zeros(depth, np.float32)
        to = dx.reshape(-1, depth)
        affine(drows, packed(weight), none, to, scratch(room(GROUP)), parts(len(drows)))
    dweight, dbias = empty(weight.shape), empty((width,))
    dweight.fill(0)
    dbias.fill(0)
    add_weight_gradient(drows, rows(x), dweight, dbias, scratch(GRADIENT_SCRATCH), threads())
    return dx, dweight, dbias
