"""The two-layer perceptron of a block."""

from __future__ import annotations

from vitkit import ops
from vitkit.backend import Array, ArrayModule
from vitkit.nn.activation import ACTIVATIONS, Activation, ActivationPair
from vitkit.nn.context import Context
from vitkit.nn.dropout import Dropout
from vitkit.nn.init import SCHEMES, Scheme
from vitkit.nn.layer_norm import LayerNorm
from vitkit.nn.linear import Linear
from vitkit.nn.module import Module
from vitkit.ops.mlp import ACTIVATIONS as FUSED
from vitkit.ops.mlp import MLPArrays


class MLP(Module):
    """Widen each token of ``x`` (B, N, D) to ``mlp_dim``, activate, and narrow it again.

    Parameters
    ----------
    dim, mlp_dim : int
        The widths D and M.
    activation : ActivationPair
        The function in between and its gradient.
    dropout : float, default 0
        Dropout after the activation and after the second layer.
    init : Scheme
        How weights are drawn.
    xp : module, optional
        Given, the layer is placed at once.
    """

    def __init__(
        self,
        dim: int,
        mlp_dim: int,
        activation: ActivationPair = ACTIVATIONS["gelu"],
        *,
        dropout: float = 0.0,
        init: Scheme = SCHEMES["jax"],
        xp: ArrayModule = None,
    ) -> None:
        self.fc1 = Linear(dim, mlp_dim, weight_init=init.weight, bias_init=init.mlp_bias)
        self.act = Activation(activation)
        self.drop1 = Dropout(dropout)
        self.fc2 = Linear(mlp_dim, dim, weight_init=init.weight, bias_init=init.mlp_bias)
        self.drop2 = Dropout(dropout)
        if xp is not None:
            self.place(xp)

    def forward(self, x: Array, ctx: Context) -> Array:
        """Return the transformed tokens (B, N, D)."""
        x = self.drop1.forward(self.act.forward(self.fc1.forward(x, ctx), ctx), ctx)
        return self.drop2.forward(self.fc2.forward(x, ctx), ctx)

    def backward(self, dy: Array, ctx: Context) -> Array:
        """Return ``dx``."""
        dy = self.fc2.backward(self.drop2.backward(dy, ctx), ctx)
        return self.fc1.backward(self.act.backward(self.drop1.backward(dy, ctx), ctx), ctx)

    def is_tokenwise(self, ctx: Context) -> bool:
        """Whether what comes of a token in this pass is the same whichever others there are.

        All must be vitkit's own, and dropout draws its numbers for all tokens together.
        """
        own = type(self) is MLP and type(self.fc1) is type(self.fc2) is Linear
        own = own and type(self.drop1) is type(self.drop2) is Dropout
        draws = own and (self.drop1.active(ctx) or self.drop2.active(ctx))
        return own and type(self.act) is Activation and not draws

    def fuses(self, ctx: Context) -> bool:
        """Whether norm and residual can be part of the same operation in this pass."""
        return self.is_tokenwise(ctx) and self._activation in FUSED

    def branch(self, x: Array, norm: LayerNorm, gain: Array | None, ctx: Context) -> Array:
        """Return ``x + gain * self(norm(x))``, by :func:`vitkit.ops.mlp_branch`."""
        self.expect_width(x, norm.weight.shape[0])
        weights, _ = self._arrays(norm)
        y, kept = ops.mlp_branch(
            x, weights, norm.eps, self._activation, gain, self.precision, ctx.keep, xp=self.xp
        )
        ctx.push(self, x, gain, *kept)
        return y

    def branch_backward(self, dy: Array, norm: LayerNorm, ctx: Context) -> Array:
        """Return ``dx`` of :meth:`branch`."""
        x, gain, *kept = ctx.pop(self)
        return ops.mlp_branch_backward_inplace(
            dy, x, tuple(kept), *self._arrays(norm), gain, self.precision, xp=self.xp
        )

    @property
    def _activation(self) -> str:
        """The name by which the operation knows the activation, or nothing."""
        return next((name for name, pair in FUSED.items() if pair == self.act.pair), "")

    def _arrays(self, norm: LayerNorm) -> tuple[MLPArrays, MLPArrays]:
        """Return the parameters of the branch and their gradients."""
        parts = (
            norm.weight,
            norm.bias,
            self.fc1.weight,
            self.fc1.bias,
            self.fc2.weight,
            self.fc2.bias,
        )
        return (
            MLPArrays(*(part.value for part in parts)),
            MLPArrays(*(part.grad for part in parts)),
        )
