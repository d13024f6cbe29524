"""The attention branch on a GPU; the meaning is in :mod:`vitkit.ops.attention_branch`."""

from __future__ import annotations

from typing import Any

from vitkit.backend import Array, ArrayModule
from vitkit.kernels.cuda._arrays import plain
from vitkit.kernels.cuda._branch import Branch, usable
from vitkit.kernels.cuda._heads import attend, attend_backward
from vitkit.kernels.cuda.layer_norm import normalize, normalize_backward, normalized_again
from vitkit.ops.attention_branch import (
    AttentionArrays,
    attention_branch,
    attention_branch_backward_inplace,
)


@attention_branch.kernel("cupy")
def attention_branch_cuda(
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
    if not usable(precision, [x], gain, weights):
        return NotImplemented
    branch, x = Branch(precision, xp), plain(x, xp)
    u, mean, rstd = normalize(x, weights.norm_weight, weights.norm_bias, eps, branch.dtype, xp)
    qkv = branch.affine(u, weights.qkv_weight, weights.qkv_bias)
    mixed, largest, log_total = attend(qkv, num_heads, precision, xp)
    y = branch.add_affine(x, mixed, weights.proj_weight, weights.proj_bias, gain)
    return y, (mean, rstd, qkv, mixed, largest, log_total) if keep else ()


@attention_branch_backward_inplace.kernel("cupy")
def attention_branch_backward_cuda(
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
    if not usable(precision, [dy, x], gain, weights, grads):
        return NotImplemented
    mean, rstd, qkv, mixed, largest, log_total = kept
    branch, dy, x, w = Branch(precision, xp), plain(dy, xp), plain(x, xp), weights
    dbranch = branch.output_gradient(dy, gain, mixed, grads.proj_weight, grads.proj_bias)
    dmixed = branch.input_gradient(dbranch, w.proj_weight)
    dqkv = attend_backward(dmixed, qkv, mixed, largest, log_total, precision, xp)
    u = normalized_again(x, w.norm_weight, w.norm_bias, mean, rstd, branch.dtype, xp)
    branch.add_gradients(dqkv, u, grads.qkv_weight, grads.qkv_bias)
    du = branch.input_gradient(dqkv, w.qkv_weight)
    norm_gradients = grads.norm_weight, grads.norm_bias
    return normalize_backward(du, x, w.norm_weight, mean, rstd, dy, *norm_gradients, xp)
