"""Fused attention on a GPU's tensor cores; the meaning is in :mod:`vitkit.ops.attention`.

Queries, keys and values are read where the packed array has them, and gradients written likewise.
"""

from __future__ import annotations

import math

from vitkit.backend import Array, ArrayModule
from vitkit.kernels.cuda._arrays import aligned, plain
from vitkit.kernels.cuda._device import WIDTHS, capability
from vitkit.kernels.cuda._kernel import LOW, Family, blocks, type_of

NAME = "vitkit's own kernel"
SQUARE = 16  # rows that a tensor core takes at once
WARPS = 4  # of a block at most
FORWARD = Family("attention.cuh", "attention_forward<{x}, {d}>", least=80, x=LOW, d=WIDTHS)
BACKWARD = Family(
    "attention_backward.cuh", "attention_backward<{x}, {d}>", least=80, x=LOW, d=WIDTHS
)


def serves(qkv: Array, num_heads: int, xp: ArrayModule) -> bool:
    """Return whether the kernels take ``qkv`` (B, N, 3 D): its dtype, heads, and this GPU."""
    if qkv.dtype.name not in ("uint16", "float16") or not qkv.size:
        return False
    width = qkv.shape[-1] / (3 * num_heads)
    return width in WIDTHS and capability(xp) >= FORWARD.least


def why_not(qkv: Array, num_heads: int, xp: ArrayModule) -> str:
    """Return why :func:`serves` says no; nothing in float32 or for no numbers."""
    if qkv.dtype.name not in ("uint16", "float16") or not qkv.size:
        return ""
    if (have := capability(xp)) < FORWARD.least:
        return (
            f"it needs a GPU of compute capability {FORWARD.least / 10}; this one has {have / 10}"
        )
    width = qkv.shape[-1] // (3 * num_heads)
    return f"it takes heads of width {', '.join(map(str, WIDTHS))}; got {width}"


def attend(qkv: Array, num_heads: int, xp: ArrayModule) -> tuple[Array, Array, Array]:
    """Return the gathered values, in the dtype of ``qkv``, and what backward needs.

    Parameters
    ----------
    qkv : array, shape (B, N, 3 D)
        Queries, keys and values: bits of bfloat16 as uint16, or float16.
    num_heads : int
        How many heads, each as wide as one of :data:`WIDTHS`.
    xp : module
        The array module.

    Returns
    -------
    y : array, shape (B, N, D)
        The gathered values.
    largest, log_total : array, shape (B, h, N)
        As :func:`vitkit.ops.multi_head_attention` returns them, float32.
    """
    batch, tokens, dim = qkv.shape
    width = dim // (3 * num_heads)
    y = xp.empty((batch, tokens, dim // 3), qkv.dtype)
    largest, log_total = (xp.empty((batch, num_heads, tokens), "float32") for _ in range(2))
    squares, keys = 2 if width <= 80 else 1, 64 if width <= 96 else 32  # as Forward<D> says
    warps, parts = _shared_out(blocks(tokens, SQUARE * squares))
    shared = _bytes(width, warps * SQUARE * squares + 4 * keys)
    FORWARD(x=type_of(qkv), d=width)(
        (batch * num_heads * parts,),
        (32 * warps,),
        aligned(qkv, xp),
        y,
        largest,
        log_total,
        tokens,
        num_heads,
        parts,
        *_scales(width),
        shared=shared,
        xp=xp,
    )
    return y, largest, log_total


def attend_backward(
    dy: Array, qkv: Array, y: Array, largest: Array, log_total: Array, xp: ArrayModule
) -> Array:
    """Return ``dqkv`` of :func:`attend`.

    Parameters
    ----------
    dy : array, shape (B, N, D)
        The gradient of ``y``, in the dtype of ``qkv``.
    qkv : array, shape (B, N, 3 D)
        The input of the forward pass.
    y : array, shape (B, N, D)
        What it returned.
    largest, log_total : array, shape (B, h, N)
        What else it returned.
    xp : module
        The array module.

    Returns
    -------
    array, shape (B, N, 3 D)
        The gradients of queries, keys and values, in the dtype of ``qkv``. Its bits are the same
        each time.
    """
    batch, tokens, dim = dy.shape
    num_heads = largest.shape[1]
    width = dim // num_heads
    dqkv = xp.empty(qkv.shape, qkv.dtype)
    rows = 64 if width <= 64 else 32  # as Backward<D> says
    warps, parts = _shared_out(blocks(tokens, SQUARE))
    shared = _bytes(width, warps * 2 * SQUARE + 5 * rows) + 4 * (3 * SQUARE * WARPS + 2 * rows)
    BACKWARD(x=type_of(qkv), d=width)(
        (batch * num_heads * parts * 2,),
        (32 * warps,),
        *(aligned(array, xp) for array in (dy, qkv, y)),
        *(plain(array, xp) for array in (largest, log_total)),
        dqkv,
        tokens,
        num_heads,
        parts,
        *_scales(width),
        shared=shared,
        xp=xp,
    )
    return dqkv


def _shared_out(count: int) -> tuple[int, int]:
    """Return how many warps of a block, and blocks of a head, take ``count`` pieces of rows."""
    parts = blocks(count, WARPS)
    return blocks(count, parts), parts


def _bytes(width: int, rows: int) -> int:
    """Return what rows of a head take in shared memory."""
    return 2 * (width + 8) * rows


def _scales(width: int) -> tuple[float, float]:
    """Return what scores are multiplied by, and what they are as powers of two."""
    return width**-0.5, width**-0.5 * math.log2(math.e)
