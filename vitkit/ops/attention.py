r"""Multi-head self-attention between its two projections (arXiv 2010.11929, Eq. 5-7).

For each image and head, with :math:`q, k, v \in \mathbb{R}^{N \times d}`,

.. math:: s = q k^\top / \sqrt d, \qquad p = \operatorname{softmax}(s), \qquad y = p\,v .

Instead of :math:`p` the forward pass returns :math:`m_i = \max_j s_{ij}` and
:math:`\ell_i = \log \sum_j e^{s_{ij} - m_i}`, 2 N numbers for N x N, and the backward pass
recomputes :math:`p = e^{s - m - \ell}` (FlashAttention, Dao et al., 2022, arXiv:2205.14135; there
the two are one number, which loses digits where scores are large):

.. math:: dv = p^\top dy, \qquad dp = dy\, v^\top, \qquad
          ds = p \odot (dp - \delta), \quad \delta_i = {\textstyle\sum_c dy_{ic}\, y_{ic}},

.. math:: dq = ds\, k / \sqrt d, \qquad dk = ds^\top q / \sqrt d .

Queries, keys and values come packed as one linear layer leaves them: along the last axis first
which of the three, then the head, then the channel. That is timm's order.

In a ``precision`` other than float32 both operands of every product are rounded to it. A kernel
may round less.
"""

from __future__ import annotations

from vitkit.backend import Array, ArrayModule
from vitkit.backend.precision import operand
from vitkit.ops._op import Op
from vitkit.ops.softmax import softmax


@Op
def multi_head_attention(
    qkv: Array, num_heads: int, precision: str = "float32", *, xp: ArrayModule
) -> tuple[Array, Array, Array]:
    """Let every token gather the values of all tokens, in each head.

    Parameters
    ----------
    qkv : array, shape (B, N, 3 D)
        Queries, keys and values, each with its heads side by side.
    num_heads : int
        How many heads ``D`` is divided into.
    precision : str, default "float32"
        What both operands of each product are rounded to, one of
        ``vitkit.backend.precision.PRECISIONS``.
    xp : module
        The array module.

    Returns
    -------
    y : array, shape (B, N, D)
        The gathered values, heads side by side.
    largest, log_total : array, shape (B, h, N)
        Each query's largest score, and the logarithm of its sum of exponentials relative to that
        one, for backward.
    """
    q, k, v = split_heads(operand(qkv, precision, xp=xp), num_heads)
    scores = _scores(q, k)
    largest = scores.max(axis=-1, keepdims=True)
    scores -= largest
    e = xp.exp(scores, out=scores)
    total = e.sum(axis=-1, keepdims=True)
    y = operand(e, precision, xp=xp) @ v
    y /= total
    y = y.transpose(0, 2, 1, 3).reshape(*qkv.shape[:2], qkv.shape[2] // 3)  # (B, N, h, d)
    return y, largest[..., 0], xp.log(total)[..., 0]


@Op
def multi_head_attention_backward(
    dy: Array,
    qkv: Array,
    y: Array,
    largest: Array,
    log_total: Array,
    precision: str = "float32",
    *,
    xp: ArrayModule,
) -> Array:
    """Return ``dqkv`` of :func:`multi_head_attention`.

    Parameters
    ----------
    dy : array, shape (B, N, D)
        The gradient of the output.
    qkv : array, shape (B, N, 3 D)
        The input of the forward pass.
    y : array, shape (B, N, D)
        The output of the forward pass.
    largest, log_total : array, shape (B, h, N)
        What the forward pass returned.
    precision : str, default "float32"
        The precision of the forward pass.
    xp : module
        The array module.
    """
    num_heads = largest.shape[1]
    q, k, v = split_heads(operand(qkv, precision, xp=xp), num_heads)
    dy = _heads(operand(dy, precision, xp=xp), num_heads)
    delta = (dy * _heads(y, num_heads)).sum(axis=-1, keepdims=True)
    scores = _scores(q, k)
    scores -= largest[..., None]
    scores -= log_total[..., None]
    p = xp.exp(scores, out=scores)
    dqkv = xp.empty_like(qkv)
    dq, dk, dv = split_heads(dqkv, num_heads)
    dv[...] = operand(p, precision, xp=xp).swapaxes(-1, -2) @ dy
    ds = dy @ v.swapaxes(-1, -2)
    ds -= delta
    ds *= p
    ds *= q.shape[-1] ** -0.5
    ds = operand(ds, precision, xp=xp)
    dq[...] = ds @ k
    dk[...] = ds.swapaxes(-1, -2) @ q
    return dqkv


@Op
def attention_weights(qkv: Array, num_heads: int, *, xp: ArrayModule) -> Array:
    """Return the probabilities that :func:`multi_head_attention` uses, to look at.

    Parameters
    ----------
    qkv : array, shape (B, N, 3 D)
        Queries, keys and values, each with its heads side by side.
    num_heads : int
        How many heads ``D`` is divided into.
    xp : module
        The array module.

    Returns
    -------
    array, shape (B, h, N, N)
        How much each query (rows) takes from each key (columns); rows sum to one.
    """
    q, k, _ = split_heads(qkv, num_heads)
    return softmax(_scores(q, k), xp=xp)


def split_heads(qkv: Array, num_heads: int) -> tuple[Array, Array, Array]:
    """Return views of queries, keys and values, each (B, h, N, d)."""
    batch, tokens, width = qkv.shape
    parts = qkv.reshape(batch, tokens, 3, num_heads, width // (3 * num_heads))
    q, k, v = parts.transpose(2, 0, 3, 1, 4)
    return q, k, v


def _heads(x: Array, num_heads: int) -> Array:
    """Return the (B, h, N, d) view of (B, N, D)."""
    batch, tokens, width = x.shape
    return x.reshape(batch, tokens, num_heads, width // num_heads).transpose(0, 2, 1, 3)


def _scores(q: Array, k: Array) -> Array:
    return (q * q.shape[-1] ** -0.5) @ k.swapaxes(-1, -2)  # (B, h, N, N)
