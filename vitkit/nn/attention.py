"""Multi-head self-attention with its two projections."""

from __future__ import annotations

from vitkit import ops
from vitkit.backend import Array, ArrayModule
from vitkit.nn.context import Context
from vitkit.nn.dropout import Dropout
from vitkit.nn.init import SCHEMES, Scheme
from vitkit.nn.linear import Linear
from vitkit.nn.module import Module


class Attention(Module):
    """Mix the tokens of ``x`` (B, N, D) in ``num_heads`` heads (arXiv 2010.11929, Eq. 5-8).

    Parameters
    ----------
    dim : int
        The width D.
    num_heads : int
        How many heads; must divide ``dim``.
    dropout : float, default 0
        Dropout after the output projection.
    init : Scheme
        How weights are drawn.
    xp : module, optional
        Given, the layer is placed at once.

    Raises
    ------
    ValueError
        If the heads do not divide the width.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        dropout: float = 0.0,
        init: Scheme = SCHEMES["jax"],
        xp: ArrayModule = None,
    ) -> None:
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads must divide dim; got num_heads={num_heads}, dim={dim}.")
        self.num_heads = num_heads
        self.qkv = Linear(dim, 3 * dim, weight_init=init.qkv)
        self.proj = Linear(dim, dim, weight_init=init.weight)
        self.proj_drop = Dropout(dropout)
        if xp is not None:
            self.place(xp)

    def forward(self, x: Array, ctx: Context) -> Array:
        """Return the mixed tokens (B, N, D)."""
        qkv = self.qkv.forward(x, ctx)
        y, *stats = ops.multi_head_attention(qkv, self.num_heads, xp=self.xp)
        ctx.push(self, qkv, y, *stats)
        return self.proj_drop.forward(self.proj.forward(y, ctx), ctx)

    def backward(self, dy: Array, ctx: Context) -> Array:
        """Return ``dx``."""
        dy = self.proj.backward(self.proj_drop.backward(dy, ctx), ctx)
        dqkv = ops.multi_head_attention_backward(dy, *ctx.pop(self), xp=self.xp)
        return self.qkv.backward(dqkv, ctx)

    def weights(self, x: Array) -> Array:
        """Return how much each token takes from each, (B, h, N, N); rows sum to one."""
        return ops.attention_weights(self.qkv(x), self.num_heads, xp=self.xp)
