"""Layer normalization by BLAS; the meaning is in :mod:`vitkit.ops.layer_norm`.

Means over rows are products with a constant vector, which BLAS does at the speed of memory where
NumPy's reduction over a short last axis does one row at a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vitkit.backend import Array, ArrayModule
from vitkit.ops.layer_norm import layer_norm, layer_norm_backward


@layer_norm.kernel("numpy")
def layer_norm_cpu(x: Array, weight: Array, bias: Array, eps: float, *, xp: ArrayModule) -> Any:
    """Replace :func:`vitkit.ops.layer_norm` for contiguous arrays of one dtype."""
    if not x.flags.c_contiguous or x.dtype != weight.dtype or x.size == 0:
        return NotImplemented
    rows = x.reshape(-1, x.shape[-1])
    mean = _row_means(rows)
    y = rows - mean
    rstd = 1 / np.sqrt(_row_means(y, y) + eps)
    y *= rstd
    y *= weight
    y += bias
    stats = (*x.shape[:-1], 1)
    return y.reshape(x.shape), mean.reshape(stats), rstd.reshape(stats)


@layer_norm_backward.kernel("numpy")
def layer_norm_backward_cpu(
    dy: Array,
    x: Array,
    weight: Array,
    mean: Array,
    rstd: Array,
    *,
    xp: ArrayModule,
) -> Any:
    """Replace :func:`vitkit.ops.layer_norm_backward` for contiguous arrays of one dtype."""
    one_dtype = x.dtype == weight.dtype == dy.dtype == mean.dtype == rstd.dtype
    if not one_dtype or not x.flags.c_contiguous or x.size == 0:
        return NotImplemented
    rows, drows = x.reshape(-1, x.shape[-1]), dy.reshape(-1, x.shape[-1])
    rstd = rstd.reshape(-1, 1)
    x_hat = rows - mean.reshape(-1, 1)
    x_hat *= rstd
    dx = drows * x_hat
    dweight, dbias = dx.sum(axis=0), drows.sum(axis=0)
    np.multiply(drows, weight, out=dx)
    mean_g = _row_means(dx)
    x_hat *= _row_means(dx, x_hat)
    dx -= mean_g
    dx -= x_hat
    dx *= rstd
    return dx.reshape(x.shape), dweight, dbias


def _row_means(rows: Array, others: Array | None = None) -> Array:
    """Return the mean of each row, or of each row's product with another, as a column."""
    if others is not None:
        return (np.einsum("ij,ij->i", rows, others) * (1 / rows.shape[1]))[:, None]
    return rows @ np.full((rows.shape[1], 1), 1 / rows.shape[1], rows.dtype)
