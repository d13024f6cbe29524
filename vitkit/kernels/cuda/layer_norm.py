"""Layer normalization on a GPU; the meaning is in :mod:`vitkit.ops.layer_norm`."""

from __future__ import annotations

from typing import Any

from vitkit.backend import Array, ArrayModule
from vitkit.kernels.cuda._arrays import plain, pointer, rows_of, served, vector
from vitkit.kernels.cuda._kernel import FLOWING, STORED, Family, blocks, type_of
from vitkit.kernels.cuda.column_sums import add_column_sums
from vitkit.ops.layer_norm import layer_norm, layer_norm_backward

ROWS = 4  # of a block, one a warp
WIDEST = 2048  # of a row: 8 floats a column then fill the shared memory of the smallest GPU served
PARTS = 256  # blocks of a backward pass at most, on any GPU, for equal bits
FORWARD = Family(
    "layer_norm.cuh", "layer_norm_forward<{x}, {y}, {v}>", x=FLOWING, y=STORED, v=(1, 4)
)
AGAIN = Family("layer_norm.cuh", "layer_norm_again<{x}, {y}, {v}>", x=FLOWING, y=STORED, v=(1, 4))
BACKWARD = Family(
    "layer_norm.cuh", "layer_norm_backward<{dy}, {x}, {v}>", dy=STORED, x=FLOWING, v=(1, 4)
)


def normalize(
    x: Array, weight: Array, bias: Array, eps: float, dtype: str, xp: ArrayModule
) -> tuple[Array, Array, Array]:
    """Return the normalized rows in a dtype, and mean and rstd of each in float32."""
    width = x.shape[-1]
    y = xp.empty(x.shape, dtype)
    mean, rstd = (xp.empty((*x.shape[:-1], 1), "float32") for _ in range(2))
    kernel = FORWARD(x=type_of(x), y=type_of(y), v=vector(width, x, weight, bias, y))
    rows = rows_of(x)
    grid = (blocks(rows, ROWS),)
    kernel(grid, (32 * ROWS,), x, weight, bias, eps, y, mean, rstd, rows, width, xp=xp)
    return y, mean, rstd


def normalized_again(
    x: Array,
    weight: Array,
    bias: Array,
    mean: Array,
    rstd: Array,
    dtype: str,
    xp: ArrayModule,
) -> Array:
    """Return the rows that :func:`normalize` returned, of the statistics it returned."""
    rows, width = rows_of(x), x.shape[-1]
    y = xp.empty(x.shape, dtype)
    kernel = AGAIN(x=type_of(x), y=type_of(y), v=vector(width, x, weight, bias, y))
    sizes = (blocks(rows, ROWS),), (32 * ROWS,)
    kernel(*sizes, x, weight, bias, mean, rstd, y, rows, width, xp=xp)
    return y


def normalize_backward(
    dy: Array,
    x: Array,
    weight: Array,
    mean: Array,
    rstd: Array,
    residual: Array | None,
    dweight: Array,
    dbias: Array,
    xp: ArrayModule,
) -> Array:
    """Return ``dx``, plus a residual, and add the gradients of weight and bias.

    ``x``, the residual and ``dx`` are of one dtype.
    """
    rows, width = rows_of(x), x.shape[-1]
    count = min(PARTS, blocks(rows, ROWS))
    dx, parts = xp.empty(x.shape, x.dtype), xp.empty((count, 2, width), "float32")
    arrays = [dy, x, weight, dx] if residual is None else [dy, x, weight, dx, residual]
    kernel = BACKWARD(dy=type_of(dy), x=type_of(x), v=vector(width, *arrays))
    inputs = (dy, x, weight, mean, rstd, pointer(residual))
    shared = ROWS * 2 * width * 4
    kernel((count,), (32 * ROWS,), *inputs, dx, parts, rows, width, shared=shared, xp=xp)
    both = xp.empty((2, width), "float32")
    add_column_sums(parts.reshape(count, 2 * width), both.reshape(-1), adds=False, xp=xp)
    dweight += both[0]
    dbias += both[1]
    return dx


@layer_norm.kernel("cupy")
def layer_norm_cuda(x: Array, weight: Array, bias: Array, eps: float, *, xp: ArrayModule) -> Any:
    """Replace :func:`vitkit.ops.layer_norm` for float32."""
    if not served(x, weight, bias) or not weight.shape == bias.shape == x.shape[-1:]:
        return NotImplemented
    x, weight, bias = (plain(array, xp) for array in (x, weight, bias))
    return normalize(x, weight, bias, eps, "float32", xp)


@layer_norm_backward.kernel("cupy")
def layer_norm_backward_cuda(
    dy: Array, x: Array, weight: Array, mean: Array, rstd: Array, *, xp: ArrayModule
) -> Any:
    """Replace :func:`vitkit.ops.layer_norm_backward` for float32."""
    stats = (*x.shape[:-1], 1)
    if (
        not served(dy, x, weight, mean, rstd)
        or x.shape[-1] > WIDEST
        or not (dy.shape == x.shape and weight.shape == x.shape[-1:])
        or not mean.shape == rstd.shape == stats
    ):
        return NotImplemented
    dy, x, weight, mean, rstd = (plain(array, xp) for array in (dy, x, weight, mean, rstd))
    dweight, dbias = xp.zeros(weight.shape, "float32"), xp.zeros(weight.shape, "float32")
    dx = normalize_backward(dy, x, weight, mean, rstd, None, dweight, dbias, xp)
    return dx, dweight, dbias
