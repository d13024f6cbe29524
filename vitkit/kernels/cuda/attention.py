"""Attention on a GPU; the meaning is in :mod:`vitkit.ops.attention`."""

from __future__ import annotations

from typing import Any

from vitkit.backend import Array, ArrayModule
from vitkit.kernels.cuda._arrays import plain, served
from vitkit.kernels.cuda._heads import attend, attend_backward
from vitkit.kernels.cuda._products import DTYPES
from vitkit.kernels.cuda.casts import cast
from vitkit.ops.attention import multi_head_attention, multi_head_attention_backward


@multi_head_attention.kernel("cupy")
def multi_head_attention_cuda(
    qkv: Array, num_heads: int, precision: str = "float32", *, xp: ArrayModule
) -> Any:
    """Replace :func:`vitkit.ops.multi_head_attention` for float32."""
    if precision not in DTYPES or not served(qkv):
        return NotImplemented
    low = cast(qkv, DTYPES[precision], xp)
    y, largest, log_total = attend(low, num_heads, precision, xp)
    return cast(y, "float32", xp), largest, log_total


@multi_head_attention_backward.kernel("cupy")
def multi_head_attention_backward_cuda(
    dy: Array,
    qkv: Array,
    y: Array,
    largest: Array,
    log_total: Array,
    precision: str = "float32",
    *,
    xp: ArrayModule,
) -> Any:
    """Replace :func:`vitkit.ops.multi_head_attention_backward` for float32."""
    if precision not in DTYPES or not served(dy, qkv, y, largest, log_total):
        return NotImplemented
    dy, qkv, y = (cast(each, DTYPES[precision], xp) for each in (dy, qkv, y))
    stats = plain(largest, xp), plain(log_total, xp)
    return cast(attend_backward(dy, qkv, y, *stats, precision, xp), "float32", xp)
