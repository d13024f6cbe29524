"""Layer normalization with a learned scale and shift."""

from __future__ import annotations

from vitkit.backend import Array, ArrayModule
from vitkit.nn.context import Context
from vitkit.nn.init import ones, zeros
from vitkit.nn.module import Module
from vitkit.nn.parameter import Parameter
from vitkit.ops import layer_norm, layer_norm_backward


class LayerNorm(Module):
    """Normalize each token of ``x`` (B, N, D) to zero mean and unit variance.

    Parameters
    ----------
    dim : int
        The width D.
    eps : float, default 1e-6
        Added to the variance; the default is that of Google's and timm's ViT.
    xp : module, optional
        Given, the layer is placed at once.
    """

    def __init__(self, dim: int, eps: float = 1e-6, *, xp: ArrayModule = None) -> None:
        self.eps = eps
        self.weight = Parameter((dim,), ones, decay=False)
        self.bias = Parameter((dim,), zeros, decay=False)
        if xp is not None:
            self.place(xp)

    def forward(self, x: Array, ctx: Context) -> Array:
        """Return ``y``; keep ``x`` and two numbers a token."""
        self.expect_width(x, self.weight.shape[0])
        y, mean, rstd = layer_norm(x, self.weight.value, self.bias.value, self.eps, xp=self.xp)
        ctx.push(self, x, mean, rstd)
        return y

    def backward(self, dy: Array, ctx: Context) -> Array:
        """Return ``dx``."""
        x, mean, rstd = ctx.pop(self)
        dx, dweight, dbias = layer_norm_backward(dy, x, self.weight.value, mean, rstd, xp=self.xp)
        self.weight.add_grad(dweight)
        self.bias.add_grad(dbias)
        return dx
