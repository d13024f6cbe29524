"""The two-layer perceptron of a block."""

from __future__ import annotations

from vitkit.backend import Array, ArrayModule
from vitkit.nn.activation import ACTIVATIONS, Activation, ActivationPair
from vitkit.nn.context import Context
from vitkit.nn.dropout import Dropout
from vitkit.nn.init import SCHEMES, Scheme
from vitkit.nn.linear import Linear
from vitkit.nn.module import Module


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
