"""Dropout and stochastic depth as layers: active in training, the identity elsewhere."""

from __future__ import annotations

import numpy as np

from vitkit import ops
from vitkit.backend import Array, ArrayModule
from vitkit.nn.context import Context
from vitkit.nn.module import Module
from vitkit.ops.residual import is_narrow


class Dropout(Module):
    """Zero each number with probability ``rate`` in training and rescale the others.

    Parameters
    ----------
    rate : float
        The probability of zero, in [0, 1).
    xp : module, optional
        Given, the layer is placed at once.
    """

    _forward = staticmethod(ops.dropout)
    _backward = staticmethod(ops.dropout_backward)

    def __init__(self, rate: float, *, xp: ArrayModule = None) -> None:
        if not 0 <= rate < 1:
            raise ValueError(f"A dropout rate must be in [0, 1); got {rate}.")
        self.rate = rate
        if xp is not None:
            self.place(xp)

    def active(self, ctx: Context) -> bool:
        """Whether anything is zeroed in this pass."""
        return ctx.train and self.rate > 0

    def forward(self, x: Array, ctx: Context) -> Array:
        """Return ``y``; keep the key that the mask is drawn from."""
        if not self.active(ctx):
            ctx.push(self, None)
            return x
        key = ctx.seeds.next()
        ctx.push(self, key)
        return self._forward(x, self.rate, key, xp=self.xp)

    def backward(self, dy: Array, ctx: Context) -> Array:
        """Return ``dx``."""
        (key,) = ctx.pop(self)
        return dy if key is None else self._backward(dy, self.rate, key, xp=self.xp)


class DropPath(Dropout):
    """Zero each sample of a residual branch with probability ``rate`` in training.

    Parameters
    ----------
    rate : float
        The probability of zero, in [0, 1).
    xp : module, optional
        Given, the layer is placed at once.
    """

    _forward = staticmethod(ops.drop_path)
    _backward = staticmethod(ops.drop_path_backward)

    def gain(self, x: Array, ctx: Context) -> Array | None:
        """Return what ``forward`` would multiply each sample of ``x`` by, (B,), or None for 1."""
        if not self.active(ctx):
            return None
        dtype = np.dtype("float32") if is_narrow(x) else x.dtype
        return ops.path_gain(len(x), self.rate, ctx.seeds.next(), dtype, xp=self.xp)
