"""Attention of packed heads: by cuDNN or our kernel, the faster, or by products without either.

The products need an array of scores (B, h, N, N), and copies of queries, keys and values.
"""

from __future__ import annotations

import logging
from typing import Any

from vitkit.backend import Array, ArrayModule
from vitkit.kernels.cuda import _cudnn, _fused, _race
from vitkit.kernels.cuda._products import multiply
from vitkit.kernels.cuda.casts import cast
from vitkit.ops.attention import split_heads

LOGGER = logging.getLogger("vitkit")
FUSED: tuple[Any, ...] = (_cudnn, _fused)
"""What computes attention without an array of scores. Of those that serve the faster is asked, the
same in both directions of a step; each can also go on from what another keeps."""
SAID: set[str] = set()
"""Why what would be faster did not serve, as far as a line has said it."""


def attend(
    qkv: Array, num_heads: int, precision: str, xp: ArrayModule
) -> tuple[Array, Array, Array]:
    """Return the gathered values (B, N, D), stored, and what backward needs of the softmax.

    Parameters
    ----------
    qkv : array, shape (B, N, 3 D)
        Queries, keys and values, stored.
    num_heads : int
        How many heads.
    precision : str
        What the operands of products are rounded to.
    xp : module
        The array module.
    """
    better = _better(qkv, num_heads, xp)
    if better is not None:
        found: tuple[Array, Array, Array] = better.attend(qkv, num_heads, xp)
        return found
    q, k, v = (_packed(part, xp) for part in split_heads(qkv, num_heads))
    scores = _scores(q, k, precision, xp)
    largest = scores.max(axis=-1, keepdims=True)
    scores -= largest
    e = xp.exp(scores, out=scores)
    total = e.sum(axis=-1, keepdims=True)
    y = xp.empty(v.shape, "float32")
    multiply(cast(e, qkv.dtype.name, xp), v, y, precision=precision, xp=xp)
    y /= total
    batch, tokens, width = qkv.shape
    stats = (batch, num_heads, tokens)
    mixed = xp.empty((batch, tokens, width // 3), qkv.dtype)
    _heads(mixed, num_heads)[...] = cast(y, qkv.dtype.name, xp).reshape(*stats, -1)
    return mixed, largest.reshape(stats), xp.log(total).reshape(stats)


def attend_backward(
    dy: Array,
    qkv: Array,
    y: Array,
    largest: Array,
    log_total: Array,
    precision: str,
    xp: ArrayModule,
) -> Array:
    """Return ``dqkv`` (B, N, 3 D), stored, of :func:`attend`."""
    num_heads = largest.shape[1]
    better = _better(qkv, num_heads, xp)
    if better is not None:
        found: Array = better.attend_backward(dy, qkv, y, largest, log_total, xp)
        return found
    q, k, v = (_packed(part, xp) for part in split_heads(qkv, num_heads))
    d = _packed(_heads(dy, num_heads), xp)
    gathered = cast(_packed(_heads(y, num_heads), xp), "float32", xp)
    delta = (cast(d, "float32", xp) * gathered).sum(axis=-1, keepdims=True)
    rows = (len(q), -1, 1)
    p = _scores(q, k, precision, xp)
    p -= largest.reshape(rows)
    p -= log_total.reshape(rows)
    p = xp.exp(p, out=p)
    ds = xp.empty(p.shape, "float32")
    multiply(d, v, ds, transpose_b=True, precision=precision, xp=xp)
    ds -= delta
    ds *= p
    ds *= q.shape[-1] ** -0.5
    p, ds = cast(p, qkv.dtype.name, xp), cast(ds, qkv.dtype.name, xp)
    dqkv = xp.empty(qkv.shape, qkv.dtype)
    products = ((ds, k, False), (ds, q, True), (p, d, True))
    for part, (left, right, turned) in zip(split_heads(dqkv, num_heads), products, strict=True):
        gradient = xp.empty(q.shape, qkv.dtype)
        multiply(left, right, gradient, transpose_a=turned, precision=precision, xp=xp)
        part[...] = gradient.reshape(part.shape)
    return dqkv


def _better(qkv: Array, num_heads: int, xp: ArrayModule) -> Any | None:
    """Return what is asked of :data:`FUSED`, or None; a line says why not one before it."""
    if (found := _race.known(qkv, num_heads, xp)) is not None:
        return found
    serve = [each for each in FUSED if each.serves(qkv, num_heads, xp)]
    left = FUSED[: FUSED.index(serve[0])] if serve else FUSED
    name = serve[0].NAME if serve else "matrix products and a softmax"
    for better in left:
        reason = better.why_not(qkv, num_heads, xp)
        if reason and reason not in SAID:
            SAID.add(reason)
            LOGGER.warning("Attention is by %s, not by %s: %s.", name, better.NAME, reason)
    return _race.faster(serve, qkv, num_heads, xp) if serve else None


def _scores(q: Array, k: Array, precision: str, xp: ArrayModule) -> Array:
    scores = xp.empty((len(q), q.shape[1], k.shape[1]), "float32")
    multiply(q, k, scores, transpose_b=True, precision=precision, xp=xp)
    scores *= q.shape[-1] ** -0.5
    return scores


def _heads(x: Array, num_heads: int) -> Array:
    """Return a view (B, h, N, d) of heads side by side."""
    batch, tokens, width = x.shape
    return x.reshape(batch, tokens, num_heads, width // num_heads).transpose(0, 2, 1, 3)


def _packed(part: Array, xp: ArrayModule) -> Array:
    """Return heads (B, h, N, d) as one batch of matrices without gaps."""
    return xp.ascontiguousarray(part).reshape(-1, *part.shape[-2:])
