r"""From all tokens to one feature for each image.

The class token's output (arXiv 2010.11929, Eq. 4) or the mean over all patches (appendix D.3):

.. math:: y = z^0, \qquad\qquad y = \tfrac1N \sum_n z^n .
"""

from __future__ import annotations

from vitkit.backend import Array, ArrayModule
from vitkit.ops._op import Op


@Op
def pool_first(x: Array, *, xp: ArrayModule) -> Array:
    """Return the first token, (B, D), of ``x`` (B, N, D)."""
    return x[:, 0]


@Op
def pool_first_backward(dy: Array, num_tokens: int, *, xp: ArrayModule) -> Array:
    """Return ``dx`` (B, N, D) of :func:`pool_first`: zero but for the first token."""
    dx = xp.zeros((dy.shape[0], num_tokens, dy.shape[1]), dy.dtype)
    dx[:, 0] = dy
    return dx


@Op
def pool_mean(x: Array, *, xp: ArrayModule) -> Array:
    """Return the mean over the tokens, (B, D), of ``x`` (B, N, D)."""
    return x.mean(axis=1)


@Op
def pool_mean_backward(dy: Array, num_tokens: int, *, xp: ArrayModule) -> Array:
    """Return ``dx`` (B, N, D) of :func:`pool_mean`: the same for every token."""
    dx = (dy * (1 / num_tokens))[:, None, :]
    return xp.broadcast_to(dx, (dy.shape[0], num_tokens, dy.shape[1]))
