r"""The attention branch of an encoder block, norm and residual included (arXiv 2010.11929, Eq. 2).

.. math:: u = \mathrm{LN}(x), \qquad qkv = u W_{qkv}^\top + b_{qkv}, \qquad
          y = x + g \,(\mathrm{MSA}(qkv)\, W_{proj}^\top + b_{proj})

with a gain :math:`g` for each sample, 1 unless drop path is on (arXiv:1603.09382). Backwards, with
:math:`\hat y = g\,dy` and :math:`m = \mathrm{MSA}(qkv)`,

.. math:: dm = \hat y\, W_{proj}, \qquad dqkv = \mathrm{MSA}'(dm), \qquad
          dx = dy + \mathrm{LN}'(dqkv\, W_{qkv}) .

For backward it keeps :math:`qkv`, :math:`m` and, a row, two numbers of the norm and two a head of
the softmax. In a ``precision`` other than float32 both operands of every product are rounded to it,
attention's own products included, and their products are summed in float32. Where :math:`x` and
:math:`dy` are bits of bfloat16 (:mod:`vitkit.ops.residual`), :math:`y` and :math:`dx` are rounded
to that.
"""

from __future__ import annotations

from typing import NamedTuple

from vitkit.backend import Array, ArrayModule
from vitkit.backend.precision import operand, stored
from vitkit.ops._op import Op
from vitkit.ops.attention import multi_head_attention, multi_head_attention_backward
from vitkit.ops.branch import add_gradients, affine, affine_backward, gained, through_norm
from vitkit.ops.layer_norm import layer_norm
from vitkit.ops.residual import as_wide, is_narrow, narrowed, widened


class AttentionArrays(NamedTuple):
    """The branch's parameters, or gradients: (D,), (D,), (3 D, D), (3 D,), (D, D), (D,)."""

    norm_weight: Array
    norm_bias: Array
    qkv_weight: Array
    qkv_bias: Array
    proj_weight: Array
    proj_bias: Array


@Op
def attention_branch(
    x: Array,
    weights: AttentionArrays,
    num_heads: int,
    eps: float,
    gain: Array | None,
    precision: str,
    keep: bool,
    *,
    xp: ArrayModule,
) -> tuple[Array, tuple[Array, ...]]:
    """Add to ``x`` the self-attention of its layer norm.

    Parameters
    ----------
    x : array, shape (B, N, D)
        The input, or its bits of bfloat16.
    weights : AttentionArrays
        The parameters.
    num_heads : int
        How many heads ``D`` is divided into.
    eps : float
        Added to variances.
    gain : array, shape (B,), or None
        What the branch of each sample is multiplied by; None for 1.
    precision : str
        What the products are made of, one of ``vitkit.backend.precision.PRECISIONS``.
    keep : bool
        Whether backward will follow.
    xp : module
        The array module.

    Returns
    -------
    y : array, shape (B, N, D)
        The output, in the dtype of ``x``.
    kept : tuple of array
        For backward: mean and rstd (B, N, 1), qkv (B, N, 3 D), the gathered values (B, N, D), and
        the largest score and log-total (B, h, N); or nothing.
    """
    if is_narrow(x):
        wide = widened(x, xp=xp)
        y, kept = attention_branch(wide, weights, num_heads, eps, gain, precision, keep, xp=xp)
        return narrowed(y, xp=xp), kept
    u, mean, rstd = layer_norm(x, weights.norm_weight, weights.norm_bias, eps, xp=xp)
    qkv = stored(
        affine(u, weights.qkv_weight, weights.qkv_bias, precision, xp=xp), precision, xp=xp
    )
    mixed, largest, log_total = multi_head_attention(
        operand(qkv, precision, xp=xp), num_heads, precision, xp=xp
    )
    mixed = stored(mixed, precision, xp=xp)
    y = x + gained(affine(mixed, weights.proj_weight, weights.proj_bias, precision, xp=xp), gain)
    return y, (mean, rstd, qkv, mixed, largest, log_total) if keep else ()


@Op
def attention_branch_backward_inplace(
    dy: Array,
    x: Array,
    kept: tuple[Array, ...],
    weights: AttentionArrays,
    grads: AttentionArrays,
    gain: Array | None,
    precision: str,
    *,
    xp: ArrayModule,
) -> Array:
    """Return ``dx`` of :func:`attention_branch` and add the parameters' gradients to ``grads``.

    Parameters
    ----------
    dy, x : array, shape (B, N, D)
        The gradient of the output, and the input of the forward pass, of one dtype, which is also
        that of ``dx``.
    kept : tuple of array
        What the forward pass returned.
    weights, grads : AttentionArrays
        The parameters, and their gradients, which are added to.
    gain, precision : as for the forward pass
        See :func:`attention_branch`.
    xp : module
        The array module.
    """
    if is_narrow(x):
        wide = widened(x, xp=xp)
        dx = attention_branch_backward_inplace(
            as_wide(dy, xp=xp), wide, kept, weights, grads, gain, precision, xp=xp
        )
        return narrowed(dx, xp=xp)
    mean, rstd, qkv, mixed, largest, log_total = kept
    branch = gained(dy, gain)
    add_gradients(branch, mixed, grads.proj_weight, grads.proj_bias, precision, xp=xp)
    dmixed = affine_backward(branch, weights.proj_weight, precision, xp=xp)
    dqkv = multi_head_attention_backward(
        dmixed,
        operand(qkv, precision, xp=xp),
        operand(mixed, precision, xp=xp),
        largest,
        log_total,
        precision,
        xp=xp,
    )
    u = (x - mean) * rstd * weights.norm_weight + weights.norm_bias
    add_gradients(dqkv, u, grads.qkv_weight, grads.qkv_bias, precision, xp=xp)
    du = affine_backward(dqkv, weights.qkv_weight, precision, xp=xp)
    dx = through_norm(du, x, weights.norm_weight, mean, rstd, grads, xp=xp)
    dx += dy
    return dx
