r"""SwiGLU (Shazeer, 2020, arXiv:2002.05202): an MLP with a gate.

.. math:: y = W_2 \, \bigl(\mathrm{silu}(W_g x + b_g) \odot (W_x x + b_x)\bigr) + b_2

Three matrices instead of two: to keep the number of parameters, the paper makes them two thirds
as wide, and so does this.
"""

from __future__ import annotations

from typing import Any

from vitkit.backend import Array, ArrayModule
from vitkit.nn import ACTIVATIONS, ActivationPair, Context, Dropout, Linear, Module
from vitkit.nn.init import SCHEMES, Scheme
from vitkit.ops import silu, silu_backward


class SwiGLU(Module):
    """Take the place of :class:`vitkit.nn.MLP` in a block, ``ViT(mlp="swiglu")``.

    Names and shapes of the parameters are those of timm's ``SwiGLU``.

    Parameters
    ----------
    dim, mlp_dim : int
        The width D, and that of the MLP whose number of parameters this one keeps: its own
        width is two thirds of it, rounded up to a multiple of 8.
    activation : ActivationPair
        Not used, since the gate of a SwiGLU is SiLU.
    dropout : float, default 0
        Dropout after the gate and after the last layer.
    init : Scheme
        How weights are drawn.
    xp : module, optional
        Given, the layer is placed at once.
    """

    def __init__(
        self,
        dim: int,
        mlp_dim: int,
        activation: ActivationPair = ACTIVATIONS["silu"],
        *,
        dropout: float = 0.0,
        init: Scheme = SCHEMES["jax"],
        xp: ArrayModule = None,
    ) -> None:
        width = hidden_width(mlp_dim)
        self.fc1_g = Linear(dim, width, weight_init=init.weight, bias_init=init.mlp_bias)
        self.fc1_x = Linear(dim, width, weight_init=init.weight, bias_init=init.mlp_bias)
        self.drop1 = Dropout(dropout)
        self.fc2 = Linear(width, dim, weight_init=init.weight, bias_init=init.mlp_bias)
        self.drop2 = Dropout(dropout)
        if xp is not None:
            self.place(xp)

    def forward(self, x: Array, ctx: Context) -> Array:
        """Return the transformed tokens (B, N, D), and keep both halves of the gate."""
        gate, value = self.fc1_g.forward(x, ctx), self.fc1_x.forward(x, ctx)
        ctx.push(self, gate, value)
        y = silu(gate, xp=self.xp) * value
        return self.drop2.forward(self.fc2.forward(self.drop1.forward(y, ctx), ctx), ctx)

    def backward(self, dy: Array, ctx: Context) -> Array:
        """Return ``dx``."""
        dy = self.drop1.backward(self.fc2.backward(self.drop2.backward(dy, ctx), ctx), ctx)
        gate, value = ctx.pop(self)
        dx = self.fc1_x.backward(dy * silu(gate, xp=self.xp), ctx)
        return dx + self.fc1_g.backward(silu_backward(dy * value, gate, xp=self.xp), ctx)


def hidden_width(mlp_dim: int) -> int:
    """Return two thirds of an MLP's width, rounded up to a multiple of 8."""
    return -(-2 * mlp_dim // 24) * 8


def torch_swiglu(torch: Any, dim: int, mlp_dim: int) -> Any:
    """Return the PyTorch module that computes the same, with parameters of the same names."""

    class Twin(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            width = hidden_width(mlp_dim)
            self.fc1_g = torch.nn.Linear(dim, width)
            self.fc1_x = torch.nn.Linear(dim, width)
            self.fc2 = torch.nn.Linear(width, dim)

        def forward(self, x: Any) -> Any:
            return self.fc2(torch.nn.functional.silu(self.fc1_g(x)) * self.fc1_x(x))

    return Twin()
