"""Multi-head self-attention with its two projections."""

from __future__ import annotations

from vitkit import ops
from vitkit.backend import Array, ArrayModule
from vitkit.nn.context import Context
from vitkit.nn.dropout import Dropout
from vitkit.nn.init import SCHEMES, Scheme
from vitkit.nn.layer_norm import LayerNorm
from vitkit.nn.linear import Linear
from vitkit.nn.module import Module
from vitkit.ops.attention_branch import AttentionArrays


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
        y, *stats = ops.multi_head_attention(qkv, self.num_heads, self.precision, xp=self.xp)
        ctx.push(self, qkv, y, *stats)
        return self.proj_drop.forward(self.proj.forward(y, ctx), ctx)

    def backward(self, dy: Array, ctx: Context) -> Array:
        """Return ``dx``."""
        dy = self.proj.backward(self.proj_drop.backward(dy, ctx), ctx)
        qkv, y, largest, log_total = ctx.pop(self)
        dqkv = ops.multi_head_attention_backward(
            dy, qkv, y, largest, log_total, self.precision, xp=self.xp
        )
        return self.qkv.backward(dqkv, ctx)

    def fuses(self, ctx: Context) -> bool:
        """Whether norm and residual can be part of the same operation in this pass."""
        own = type(self) is Attention and type(self.qkv) is type(self.proj) is Linear
        return own and type(self.proj_drop) is Dropout and not self.proj_drop.active(ctx)

    def branch(self, x: Array, norm: LayerNorm, gain: Array | None, ctx: Context) -> Array:
        """Return ``x + gain * self(norm(x))``, by :func:`vitkit.ops.attention_branch`."""
        self.expect_width(x, norm.weight.shape[0])
        weights, _ = self._arrays(norm)
        y, kept = ops.attention_branch(
            x, weights, self.num_heads, norm.eps, gain, self.precision, ctx.keep, xp=self.xp
        )
        ctx.push(self, x, gain, *kept)
        return y

    def branch_backward(self, dy: Array, norm: LayerNorm, ctx: Context) -> Array:
        """Return ``dx`` of :meth:`branch`."""
        x, gain, *kept = ctx.pop(self)
        return ops.attention_branch_backward_inplace(
            dy, x, tuple(kept), *self._arrays(norm), gain, self.precision, xp=self.xp
        )

    def _arrays(self, norm: LayerNorm) -> tuple[AttentionArrays, AttentionArrays]:
        """Return the parameters of the branch and their gradients."""
        parts = (
            norm.weight,
            norm.bias,
            self.qkv.weight,
            self.qkv.bias,
            self.proj.weight,
            self.proj.bias,
        )
        return (
            AttentionArrays(*(part.value for part in parts)),
            AttentionArrays(*(part.grad for part in parts)),
        )

    def weights(self, x: Array) -> Array:
        """Return how much each token takes from each, (B, h, N, N); rows sum to one."""
        return ops.attention_weights(self.qkv(x), self.num_heads, xp=self.xp)
