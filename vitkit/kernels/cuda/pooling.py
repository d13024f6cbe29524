"""Pooling and its gradients on a GPU; the meaning is in :mod:`vitkit.ops.pooling`.

:func:`vitkit.ops.pool_first` is a view, which nothing is faster than.
"""

from __future__ import annotations

from typing import Any

from vitkit.backend import Array, ArrayModule
from vitkit.kernels.cuda._arrays import WIDTH, plain, served, vector
from vitkit.kernels.cuda._kernel import Family, blocks
from vitkit.ops.pooling import pool_first_backward, pool_mean, pool_mean_backward

THREADS, LANES = 256, 32  # of a block, and of a warp
MEAN = Family("pooling.cuh", "pool_mean<{v}>", v=(1, WIDTH))
SPREAD = Family("pooling.cuh", "spread<{v}>", v=(1, WIDTH))


def _spread(dy: Array, num_tokens: int, share: float, xp: ArrayModule) -> Any:
    """Return a share of dy for every token; 0 is for all of it to the first."""
    if not served(dy) or dy.ndim != 2 or num_tokens < 1:
        return NotImplemented
    (batch, width), dy = dy.shape, plain(dy, xp)
    dx = xp.empty((batch, num_tokens, width), "float32")
    v, count = vector(width, dy, dx), num_tokens * width
    across = blocks(count, THREADS * v)
    SPREAD(v=v)((batch * across,), (THREADS,), dy, share, dx, width, count, across, xp=xp)
    return dx


@pool_first_backward.kernel("cupy")
def pool_first_backward_cuda(dy: Array, num_tokens: int, *, xp: ArrayModule) -> Any:
    """Replace :func:`vitkit.ops.pool_first_backward` for float32."""
    return _spread(dy, num_tokens, 0.0, xp)


@pool_mean.kernel("cupy")
def pool_mean_cuda(x: Array, *, xp: ArrayModule) -> Any:
    """Replace :func:`vitkit.ops.pool_mean` for float32."""
    if not served(x) or x.ndim != 3:
        return NotImplemented
    (batch, tokens, width), x = x.shape, plain(x, xp)
    y = xp.empty((batch, width), "float32")
    v = vector(width, x)
    across = blocks(width, LANES * v)
    MEAN(v=v)((batch * across,), (THREADS,), x, y, tokens, width, across, xp=xp)
    return y


@pool_mean_backward.kernel("cupy")
def pool_mean_backward_cuda(dy: Array, num_tokens: int, *, xp: ArrayModule) -> Any:
    """Replace :func:`vitkit.ops.pool_mean_backward` for float32."""
    return _spread(dy, num_tokens, 1 / max(num_tokens, 1), xp)
