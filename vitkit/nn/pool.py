"""From all tokens to one feature for each image, as layers."""

from __future__ import annotations

from vitkit import ops
from vitkit.backend import Array, ArrayModule
from vitkit.nn.context import Context
from vitkit.nn.module import Module


class FirstToken(Module):
    """Take the class token of ``x`` (B, N, D): the paper's Eq. 4.

    Parameters
    ----------
    xp : module, optional
        Given, the layer is placed at once.
    """

    _forward = staticmethod(ops.pool_first)
    _backward = staticmethod(ops.pool_first_backward)

    def __init__(self, *, xp: ArrayModule = None) -> None:
        if xp is not None:
            self.place(xp)

    def forward(self, x: Array, ctx: Context) -> Array:
        """Return (B, D); keep how many tokens there were."""
        ctx.push(self, x.shape[1])
        return self._forward(x, xp=self.xp)

    def backward(self, dy: Array, ctx: Context) -> Array:
        """Return ``dx``."""
        (num_tokens,) = ctx.pop(self)
        return self._backward(dy, num_tokens, xp=self.xp)


class MeanToken(FirstToken):
    """Average the tokens of ``x`` (B, N, D): the paper's appendix D.3.

    Parameters
    ----------
    xp : module, optional
        Given, the layer is placed at once.
    """

    _forward = staticmethod(ops.pool_mean)
    _backward = staticmethod(ops.pool_mean_backward)
