"""The encoder block."""

from __future__ import annotations

from collections.abc import Callable

from vitkit import ops
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

ROWS = 32
"""How many rows a kernel for products of bfloat16 wants at least."""


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
        """Return ``dx``, of what ``forward`` or :meth:`first` returned."""
        stopped = ctx.pop_if_last(self)
        dx = residual_backward(self.norm2, self.mlp, self.drop_path2, dy, ctx)
        if stopped is not None:
            dx = ops.pool_first_backward(dx[:, 0], *stopped, xp=self.xp)
        return residual_backward(self.norm1, self.attn, self.drop_path1, dx, ctx)

    def can_stop_at_first(self, ctx: Context) -> bool:
        """Return whether :meth:`first` may be asked for: each token is taken by itself.

        Of layers that are not vitkit's own that is not known.
        """
        own = type(self.norm2) is LayerNorm and type(self.drop_path2) is DropPath
        return own and type(self.mlp) is MLP and self.mlp.is_tokenwise(ctx)

    def first(self, x: Array, ctx: Context) -> Array:
        """Return the first tokens (B, k, D) of what ``forward`` returns, and make no others.

        It is what a head on the class token reads: of the other tokens nothing comes after
        attention, and nothing but zeros flows back to them, so ``dy`` must be zero but for the
        first. There are as many as kernels want rows of at once.
        """
        x = residual(self.norm1, self.attn, self.drop_path1, x, ctx)
        head = self.xp.ascontiguousarray(x[:, : -(-ROWS // max(len(x), 1))])
        y = residual(self.norm2, self.mlp, self.drop_path2, head, ctx)
        ctx.push(self, x.shape[1])
        return y
