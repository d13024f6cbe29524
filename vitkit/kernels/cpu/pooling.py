"""Pooling and its gradients, an image at a time; the meaning is in :mod:`vitkit.ops.pooling`.

:func:`vitkit.ops.pool_first` is a view, which nothing is faster than.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from vitkit.backend import Array, ArrayModule
from vitkit.kernels.cpu._arrays import plain, served
from vitkit.kernels.cpu._compile import parallel
from vitkit.kernels.cpu._math import ONE, ZERO, F
from vitkit.kernels.cpu._memory import empty
from vitkit.kernels.cpu._rows import add_to, scale
from vitkit.kernels.cpu._threads import threads
from vitkit.ops.pooling import pool_first_backward, pool_mean, pool_mean_backward


@parallel
def _spread(dy: np.ndarray, first: float, others: float, dx: np.ndarray, parts: int) -> None:
    """Write dy times a factor to the first token, and times another to all others."""
    for t in prange(parts):
        for b in range(len(dx) * t // parts, len(dx) * (t + 1) // parts):
            scale(dy[b], first, dx[b, 0])
            for n in range(1, dx.shape[1]):
                if others == ZERO:
                    dx[b, n, :] = ZERO  # not a product, which NaN and infinity survive
                else:
                    scale(dy[b], others, dx[b, n])


@parallel
def _mean(x: np.ndarray, sums: np.ndarray, y: np.ndarray, parts: int) -> None:
    for t in prange(parts):
        for b in range(len(x) * t // parts, len(x) * (t + 1) // parts):
            sums[t, :] = ZERO
            for n in range(x.shape[1]):
                add_to(x[b, n], sums[t])
            scale(sums[t], ONE / F(x.shape[1]), y[b])


def _spreadable(dy: Array, num_tokens: int) -> bool:
    return served(dy) and dy.ndim == 2 and num_tokens > 0


@pool_first_backward.kernel("numpy")
def pool_first_backward_cpu(dy: Array, num_tokens: int, *, xp: ArrayModule) -> Any:
    """Replace :func:`vitkit.ops.pool_first_backward` for float32."""
    if not _spreadable(dy, num_tokens):
        return NotImplemented
    dx = empty((dy.shape[0], num_tokens, dy.shape[1]))
    _spread(plain(dy), ONE, ZERO, dx, threads())
    return dx


@pool_mean.kernel("numpy")
def pool_mean_cpu(x: Array, *, xp: ArrayModule) -> Any:
    """Replace :func:`vitkit.ops.pool_mean` for float32."""
    if not served(x) or x.ndim != 3:
        return NotImplemented
    y, sums = empty((x.shape[0], x.shape[2])), empty((threads(), x.shape[2]))
    _mean(plain(x), sums, y, threads())
    return y


@pool_mean_backward.kernel("numpy")
def pool_mean_backward_cpu(dy: Array, num_tokens: int, *, xp: ArrayModule) -> Any:
    """Replace :func:`vitkit.ops.pool_mean_backward` for float32."""
    if not _spreadable(dy, num_tokens):
        return NotImplemented
    dx = empty((dy.shape[0], num_tokens, dy.shape[1]))
    share = F(1 / num_tokens)
    _spread(plain(dy), share, share, dx, threads())
    return dx
