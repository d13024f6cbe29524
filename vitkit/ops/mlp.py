r"""The MLP branch of an encoder block, norm and residual included (arXiv 2010.11929, Eq. 3).

.. math:: u = \mathrm{LN}(x), \qquad h = u W_1^\top + b_1, \qquad
          y = x + g \,(f(h)\, W_2^\top + b_2)

with the activation :math:`f` and a gain :math:`g` for each sample, 1 unless drop path is on
(arXiv:1603.09382). Backwards, with :math:`\hat y = g\,dy`,

.. math:: dh = (\hat y\, W_2) \odot f'(h), \qquad dW_2 = \hat y^\top f(h), \qquad
          dW_1 = dh^\top u, \qquad dx = dy + \mathrm{LN}'(dh\, W_1) .

It is one operation, because what lies between the two products is the largest array of a ViT and
need not leave the cache. For backward it keeps :math:`f(h)`, :math:`f'(h)` and two numbers a row;
:math:`u` is cheap to compute again.

In a ``precision`` other than float32 both operands of every product are rounded to it and their
products are summed in float32; what is kept for backward is kept as bfloat16 or float16. Where
:math:`x` and :math:`dy` are bits of bfloat16 (:mod:`vitkit.ops.residual`), :math:`y` and :math:`dx`
are rounded to that.
"""

from __future__ import annotations

from typing import NamedTuple

from vitkit.backend import Array, ArrayModule
from vitkit.backend.precision import operand, stored
from vitkit.ops._op import Op
from vitkit.ops.branch import add_gradients, affine, affine_backward, gained, through_norm
from vitkit.ops.gelu import gelu, gelu_backward, gelu_tanh, gelu_tanh_backward
from vitkit.ops.layer_norm import layer_norm
from vitkit.ops.residual import as_wide, is_narrow, narrowed, widened

ACTIVATIONS = {
    "gelu": (gelu, gelu_backward),
    "gelu_tanh": (gelu_tanh, gelu_tanh_backward),
}
"""The activations that the branch knows, with their gradients."""


class MLPArrays(NamedTuple):
    """The parameters of the branch, or their gradients: (D,), (D,), (M, D), (M,), (D, M), (D,)."""

    norm_weight: Array
    norm_bias: Array
    fc1_weight: Array
    fc1_bias: Array
    fc2_weight: Array
    fc2_bias: Array


@Op
def mlp_branch(
    x: Array,
    weights: MLPArrays,
    eps: float,
    activation: str,
    gain: Array | None,
    precision: str,
    keep: bool,
    *,
    xp: ArrayModule,
) -> tuple[Array, tuple[Array, ...]]:
    """Add to ``x`` the MLP of its layer norm.

    Parameters
    ----------
    x : array, shape (B, N, D)
        The input, or its bits of bfloat16.
    weights : MLPArrays
        The parameters.
    eps : float
        Added to variances.
    activation : str
        A name in ``ACTIVATIONS``: ``"gelu"`` or ``"gelu_tanh"``.
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
        For backward: mean and rstd (B, N, 1), ``f(h)`` and ``f'(h)`` (B, N, M); or nothing.
    """
    if is_narrow(x):
        wide = widened(x, xp=xp)
        y, kept = mlp_branch(wide, weights, eps, activation, gain, precision, keep, xp=xp)
        return narrowed(y, xp=xp), kept
    function, derivative = ACTIVATIONS[activation]
    u, mean, rstd = layer_norm(x, weights.norm_weight, weights.norm_bias, eps, xp=xp)
    h = affine(u, weights.fc1_weight, weights.fc1_bias, precision, xp=xp)
    hidden = stored(function(h, xp=xp), precision, xp=xp)
    slope = stored(derivative(xp.ones_like(h), h, xp=xp), precision, xp=xp) if keep else None
    y = x + gained(affine(hidden, weights.fc2_weight, weights.fc2_bias, precision, xp=xp), gain)
    return y, (mean, rstd, hidden, slope) if keep else ()


@Op
def mlp_branch_backward_inplace(
    dy: Array,
    x: Array,
    kept: tuple[Array, ...],
    weights: MLPArrays,
    grads: MLPArrays,
    gain: Array | None,
    precision: str,
    *,
    xp: ArrayModule,
) -> Array:
    """Return ``dx`` of :func:`mlp_branch` and add the parameters' gradients to ``grads``.

    Parameters
    ----------
    dy, x : array, shape (B, N, D)
        The gradient of the output, and the input of the forward pass, of one dtype, which is also
        that of ``dx``.
    kept : tuple of array
        What the forward pass returned.
    weights, grads : MLPArrays
        The parameters, and their gradients, which are added to.
    gain, precision : as for the forward pass
        See :func:`mlp_branch`.
    xp : module
        The array module.
    """
    if is_narrow(x):
        wide = widened(x, xp=xp)
        dx = mlp_branch_backward_inplace(
            as_wide(dy, xp=xp), wide, kept, weights, grads, gain, precision, xp=xp
        )
        return narrowed(dx, xp=xp)
    mean, rstd, hidden, slope = kept
    branch = gained(dy, gain)
    dh = affine_backward(branch, weights.fc2_weight, precision, xp=xp)
    dh *= operand(slope, precision, xp=xp)
    add_gradients(branch, hidden, grads.fc2_weight, grads.fc2_bias, precision, xp=xp)
    u = (x - mean) * rstd * weights.norm_weight + weights.norm_bias
    add_gradients(dh, u, grads.fc1_weight, grads.fc1_bias, precision, xp=xp)
    du = affine_backward(dh, weights.fc1_weight, precision, xp=xp)
    dx = through_norm(du, x, weights.norm_weight, mean, rstd, grads, xp=xp)
    dx += dy
    return dx
