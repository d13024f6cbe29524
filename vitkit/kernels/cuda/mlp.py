"""The MLP branch on a GPU; the meaning is in :mod:`vitkit.ops.mlp`.

The pre-activation ``h`` is rounded to what is stored before the activation reads it, as its product
leaves it; the reference rounds only after. Where the products themselves go through the activation
it is not, and five arrays are kept: ``h``, twice, in place of ``f'(h)``.
"""

from __future__ import annotations

from typing import Any

from vitkit.backend import Array, ArrayModule
from vitkit.kernels.cuda._arrays import plain
from vitkit.kernels.cuda._branch import Branch, usable
from vitkit.kernels.cuda._products import GELU, ThroughGelu
from vitkit.kernels.cuda.gelu import activate, through_activation
from vitkit.kernels.cuda.layer_norm import normalize, normalize_backward, normalized_again
from vitkit.ops.mlp import ACTIVATIONS, MLPArrays, mlp_branch, mlp_branch_backward_inplace


@mlp_branch.kernel("cupy")
def mlp_branch_cuda(
    x: Array,
    weights: MLPArrays,
    eps: float,
    activation: str,
    gain: Array | None,
    precision: str,
    keep: bool,
    *,
    xp: ArrayModule,
) -> Any:
    """Replace :func:`vitkit.ops.mlp_branch` for float32 weights."""
    if not usable(precision, [x], gain, weights) or activation not in ACTIVATIONS:
        return NotImplemented
    branch, x = Branch(precision, xp), plain(x, xp)
    u, mean, rstd = normalize(x, weights.norm_weight, weights.norm_bias, eps, branch.dtype, xp)
    fc1, fc1_bias = branch.low(weights.fc1_weight), weights.fc1_bias
    products = _through_gelu(activation, xp)
    if products is not None and products.pay(u, fc1, fc1_bias, weights.fc2_weight, keep, xp):
        hidden, h = products.forward(u, fc1, fc1_bias, keep, xp)
        kept: tuple[Any, ...] = (mean, rstd, hidden, h, h)
    else:
        hidden, slope = activate(branch.affine(u, fc1, fc1_bias), activation, keep, xp)
        kept = mean, rstd, hidden, slope
    y = branch.add_affine(x, hidden, weights.fc2_weight, weights.fc2_bias, gain)
    return y, kept if keep else ()


@mlp_branch_backward_inplace.kernel("cupy")
def mlp_branch_backward_cuda(
    dy: Array,
    x: Array,
    kept: tuple[Array, ...],
    weights: MLPArrays,
    grads: MLPArrays,
    gain: Array | None,
    precision: str,
    *,
    xp: ArrayModule,
) -> Any:
    """Replace :func:`vitkit.ops.mlp_branch_backward_inplace` for float32 weights."""
    mean, rstd, hidden, slope, *h = kept
    if not usable(precision, [dy, x], gain, weights, grads):
        if not h:
            return NotImplemented
        _, slope = activate(h[0], "gelu_tanh", True, xp)
        assert slope is not None  # noqa: S101
        kept = mean, rstd, hidden, slope
        reference = mlp_branch_backward_inplace.reference
        return reference(dy, x, kept, weights, grads, gain, precision, xp=xp)
    branch, dy, x, w = Branch(precision, xp), plain(dy, xp), plain(x, xp), weights
    dbranch = branch.output_gradient(dy, gain, hidden, grads.fc2_weight, grads.fc2_bias)
    if h:
        fc2 = branch.low(w.fc2_weight)
        dh = GELU[xp.__name__].backward(dbranch, fc2, h[0], grads.fc1_bias, xp)
    else:
        dh = branch.input_gradient(dbranch, w.fc2_weight)
        dh = through_activation(dh, slope, grads.fc1_bias, xp)
    u = normalized_again(x, w.norm_weight, w.norm_bias, mean, rstd, branch.dtype, xp)
    branch.add_weight_gradient(dh, u, grads.fc1_weight)
    du = branch.input_gradient(dh, w.fc1_weight)
    norm_gradients = grads.norm_weight, grads.norm_bias
    return normalize_backward(du, x, w.norm_weight, mean, rstd, dy, *norm_gradients, xp)


def _through_gelu(activation: str, xp: ArrayModule) -> ThroughGelu | None:
    """Return products that go through an activation; a plugin's backward would not know them."""
    if activation != "gelu_tanh" or mlp_branch_backward_inplace.overrides:
        return None
    return GELU.get(xp.__name__)
