"""The encoder block."""

from __future__ import annotations

from collections.abc import Callable

from vitkit.backend import Array, ArrayModule
from vitkit.nn.activation import ACTIVATIONS, ActivationPair
from vitkit.nn.attention import Attention
from vitkit.nn.context import Context
from vitkit.nn.dropout import DropPath
from vitkit.nn.init import SCHEMES, Scheme
from vitkit.nn.layer_norm import LayerNorm
from vitkit.nn.mlp import MLP
from vitkit.nn.module import Module
from vitkit.nn.residual import residual, residual_backward


class Block(Module):
    r"""A pre-norm Transformer encoder block (arXiv 2010.11929, Eq. 2-3).

    .. math:: z' = \mathrm{MSA}(\mathrm{LN}(z)) + z, \qquad
              z'' = \mathrm{MLP}(\mathrm{LN}(z')) + z'

    Parameters
    ----------
    dim, num_heads, mlp_dim : int
        The width D, the number of heads and the width of the MLP.
    activation : ActivationPair
        The MLP's activation and its gradient.
    layer_norm_eps : float, default 1e-6
        Added to variances.
    dropout, drop_path : float, default 0
        Dropout after dense layers, and stochastic depth of both branches.
    init : Scheme
        How weights are drawn.
    mlp, norm, attention : callable
        What makes the layers of the block, called as ``mlp(dim, mlp_dim, activation, dropout=,
        init=)``, ``norm(dim, eps)`` and ``attention(dim, num_heads, dropout=, init=)``.
    xp : module, optional
        Given, the layer is placed at once.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_dim: int,
        activation: ActivationPair = ACTIVATIONS["gelu"],
        *,
        layer_norm_eps: float = 1e-6,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        init: Scheme = SCHEMES["jax"],
        mlp: Callable[..., Module] = MLP,
        norm: Callable[..., Module] = LayerNorm,
        attention: Callable[..., Module] = Attention,
        xp: ArrayModule = None,
    ) -> None:
        self.norm1 = norm(dim, layer_norm_eps)
        self.attn = attention(dim, num_heads, dropout=dropout, init=init)
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = norm(dim, layer_norm_eps)
        self.mlp = mlp(dim, mlp_dim, activation, dropout=dropout, init=init)
        self.drop_path2 = DropPath(drop_path)
        if xp is not None:
            self.place(xp)

    def forward(self, x: Array, ctx: Context) -> Array:
        """Return the tokens (B, N, D) after attention and MLP."""
        x = residual(self.norm1, self.attn, self.drop_path1, x, ctx)
        return residual(self.norm2, self.mlp, self.drop_path2, x, ctx)

    def backward(self, dy: Array, ctx: Context) -> Array:
        """Return ``dx``."""
        dx = residual_backward(self.norm2, self.mlp, self.drop_path2, dy, ctx)
        return residual_backward(self.norm1, self.attn, self.drop_path1, dx, ctx)
