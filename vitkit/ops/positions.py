r"""The class token and the position embeddings (arXiv 2010.11929, Eq. 1).

.. math:: z_0 = [x_{class};\; x_p^1 E;\; \ldots;\; x_p^N E] + E_{pos}

with :math:`E_{pos} \in \mathbb{R}^{(N+1) \times D}`; without a class token the first row is left
out of both. Both are the same for every image, so their gradients are sums over the batch.
"""

from __future__ import annotations

from vitkit.backend import Array, ArrayModule
from vitkit.ops._op import Op


@Op
def embed_positions(
    patches: Array, cls_token: Array | None, pos_embed: Array, *, xp: ArrayModule
) -> Array:
    """Put the class token before the patch embeddings and add the positions.

    Parameters
    ----------
    patches : array, shape (B, P, D)
        The embedded patches.
    cls_token : array, shape (1, 1, D), or None
        The class token.
    pos_embed : array, shape (1, N, D)
        The positions; N is P, or P + 1 with a class token.
    xp : module
        The array module.

    Returns
    -------
    array, shape (B, N, D)
        The tokens.
    """
    if cls_token is None:
        return patches + pos_embed
    first = xp.broadcast_to(cls_token, (patches.shape[0], 1, patches.shape[2]))
    tokens = xp.concatenate((first, patches), axis=1)
    tokens += pos_embed
    return tokens


@Op
def embed_positions_backward(
    dtokens: Array, has_cls_token: bool, *, xp: ArrayModule
) -> tuple[Array, Array | None, Array]:
    """Return ``(dpatches, dcls_token, dpos_embed)`` of :func:`embed_positions`.

    Parameters
    ----------
    dtokens : array, shape (B, N, D)
        The gradient of the output.
    has_cls_token : bool
        Whether there was a class token; without one its gradient is None.
    xp : module
        The array module.
    """
    dpos_embed = dtokens.sum(axis=0, keepdims=True)
    if not has_cls_token:
        return dtokens, None, dpos_embed
    return dtokens[:, 1:], dpos_embed[:, :1], dpos_embed
