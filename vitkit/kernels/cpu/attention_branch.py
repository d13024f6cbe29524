"""The attention branch by blocks of rows; the meaning is in :mod:`vitkit.ops.attention_branch`."""

from __future__ import annotations

from typing import Any

from vitkit.backend import Array, ArrayModule
from vitkit.kernels.cpu import _attention_pairs, attention
from vitkit.kernels.cpu._arrays import column, plain, rows
from vitkit.kernels.cpu._branch import (
    add_gradients,
    can_add_to,
    dtype_of,
    gained,
    gains_of,
    holds,
    serves,
    through_norm,
)
from vitkit.kernels.cpu._math import F
from vitkit.kernels.cpu._memory import empty, scratch
from vitkit.kernels.cpu._panels import GROUP, packed, packed_transposed
from vitkit.kernels.cpu._products import affine, affine_add, norm_affine, room
from vitkit.kernels.cpu._threads import parts
from vitkit.ops.attention_branch import (
    AttentionArrays,
    attention_branch,
    attention_branch_backward_inplace,
)

ATTEND: Any = {"float32": attention, "bfloat16": _attention_pairs}


@attention_branch.kernel("numpy")
def attention_branch_cpu(
    x: Array,
    weights: AttentionArrays,
    num_heads: int,
    eps: float,
    gain: Array | None,
    precision: str,
    keep: bool,
    *,
    xp: ArrayModule,
) -> Any:
    """Replace :func:`vitkit.ops.attention_branch` for float32 weights."""
    if not serves(x, x.shape[2:], precision, (gain, *weights)):
        return NotImplemented
    norm_weight, norm_bias, qkv_weight, qkv_bias, proj_weight, proj_bias = map(plain, weights)
    batch, tokens, dim = x.shape
    y, mean, rstd = empty(x.shape), empty((batch, tokens, 1)), empty((batch, tokens, 1))
    qkv = empty((batch, tokens, 3 * dim), dtype_of(precision))
    norm_affine(
        rows(x),
        norm_weight,
        norm_bias,
        F(eps),
        packed_transposed(qkv_weight, precision),
        qkv_bias,
        rows(qkv),
        column(mean),
        column(rstd),
        scratch(room(dim) + room(GROUP)),
        parts(batch * tokens),
    )
    mixed, *stats = ATTEND[precision].attend(qkv, num_heads)
    affine_add(
        rows(mixed),
        packed_transposed(proj_weight, precision),
        proj_bias,
        gains_of(gain, x),
        tokens,
        rows(x),
        rows(y),
        scratch(room(GROUP)),
        parts(batch * tokens),
    )
    return y, (mean, rstd, qkv, mixed, *stats) if keep else ()


@attention_branch_backward_inplace.kernel("numpy")
def attention_branch_backward_cpu(
    dy: Array,
    x: Array,
    kept: tuple[Array, ...],
    weights: AttentionArrays,
    grads: AttentionArrays,
    gain: Array | None,
    precision: str,
    *,
    xp: ArrayModule,
) -> Any:
    """Replace :func:`vitkit.ops.attention_branch_backward_inplace` for float32 weights."""
    mean, rstd, qkv, mixed, *stats = kept
    arrays = (dy, gain, mean, rstd, *stats, *weights, *grads)
    if not serves(x, x.shape[2:], precision, arrays):
        return NotImplemented
    if not (holds((qkv, mixed), precision) and can_add_to(grads)):
        return NotImplemented
    qkv, mixed, *stats = map(plain, (qkv, mixed, *stats))
    branch = gained(dy, gain, precision)
    add_gradients(branch, rows(mixed), grads.proj_weight, grads.proj_bias)
    dmixed, none = empty(x.shape, branch.dtype), empty((x.shape[2],))
    none.fill(0)
    affine(
        branch,
        packed(weights.proj_weight, precision),
        none,
        rows(dmixed),
        scratch(room(GROUP)),
        parts(len(branch)),
    )
    dqkv = ATTEND[precision].attend_backward(dmixed, qkv, mixed, *stats)
    dx, u = through_norm(
        rows(dqkv), weights.qkv_weight, x, weights, mean, rstd, dy, grads, precision
    )
    add_gradients(rows(dqkv), u, grads.qkv_weight, grads.qkv_bias)
    return dx
