"""Layer normalization, a row at a time; the meaning is in :mod:`vitkit.ops.layer_norm`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from vitkit.backend import Array, ArrayModule
from vitkit.kernels.cpu._arrays import column, plain, rows, served
from vitkit.kernels.cpu._compile import parallel
from vitkit.kernels.cpu._math import ZERO, F
from vitkit.kernels.cpu._memory import empty
from vitkit.kernels.cpu._rows import normalize, normalize_backward
from vitkit.kernels.cpu._threads import threads
from vitkit.ops.layer_norm import layer_norm, layer_norm_backward

BLOCKS = 32  # of rows, each with its own sums: as many on any number of threads, for equal bits


@parallel
def _forward(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    eps: float,
    y: np.ndarray,
    mean: np.ndarray,
    rstd: np.ndarray,
    parts: int,
) -> None:
    for t in prange(parts):
        for r in range(len(x) * t // parts, len(x) * (t + 1) // parts):
            mean[r], rstd[r] = normalize(x[r], weight, bias, eps, y[r])


@parallel
def _backward(
    dy: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    mean: np.ndarray,
    rstd: np.ndarray,
    none: np.ndarray,
    dx: np.ndarray,
    sums: np.ndarray,
) -> None:
    for b in prange(len(sums)):
        dweight, dbias = sums[b, 0], sums[b, 1]
        dweight[:], dbias[:] = ZERO, ZERO
        for r in range(len(x) * b // len(sums), len(x) * (b + 1) // len(sums)):
            normalize_backward(dy[r], x[r], weight, mean[r], rstd[r], none, dx[r], dweight, dbias)


@layer_norm.kernel("numpy")
def layer_norm_cpu(x: Array, weight: Array, bias: Array, eps: float, *, xp: ArrayModule) -> Any:
    """Replace :func:`vitkit.ops.layer_norm` for float32."""
    if not served(x, weight, bias) or not weight.shape == bias.shape == x.shape[-1:]:
        return NotImplemented
    y, mean, rstd = empty(x.shape), empty((*x.shape[:-1], 1)), empty((*x.shape[:-1], 1))
    outputs = rows(y), column(mean), column(rstd)
    _forward(rows(x), plain(weight), plain(bias), F(eps), *outputs, threads())
    return y, mean, rstd


@layer_norm_backward.kernel("numpy")
def layer_norm_backward_cpu(
    dy: Array, x: Array, weight: Array, mean: Array, rstd: Array, *, xp: ArrayModule
) -> Any:
    """Replace :func:`vitkit.ops.layer_norm_backward` for float32."""
    stats = (*x.shape[:-1], 1)
    if (
        not served(dy, x, weight, mean, rstd)
        or not (dy.shape == x.shape and weight.shape == x.shape[-1:])
        or not (mean.shape == rstd.shape == stats)
    ):
        return NotImplemented
    dx, width = empty(x.shape), x.shape[-1]
    sums = empty((min(BLOCKS, x.size // width), 2, width))
    none = np.zeros(width, np.float32)
    _backward(rows(dy), rows(x), plain(weight), column(mean), column(rstd), none, rows(dx), sums)
    dweight, dbias = sums.sum(axis=0)
    return dx, dweight, dbias
