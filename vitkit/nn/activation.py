"""An element-wise activation as a layer, and the names of those that ship."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from vitkit import ops
from vitkit.backend import Array, ArrayModule
from vitkit.nn.context import Context
from vitkit.nn.module import Module


class ActivationPair(NamedTuple):
    """An element-wise function ``f(x, *, xp)`` and its gradient ``f_backward(dy, x, *, xp)``."""

    forward: Callable[..., Array]
    backward: Callable[..., Array]


ACTIVATIONS: dict[str, ActivationPair] = {
    "gelu": ActivationPair(ops.gelu, ops.gelu_backward),
    "gelu_tanh": ActivationPair(ops.gelu_tanh, ops.gelu_tanh_backward),
    "relu": ActivationPair(ops.relu, ops.relu_backward),
    "silu": ActivationPair(ops.silu, ops.silu_backward),
    "quick_gelu": ActivationPair(ops.quick_gelu, ops.quick_gelu_backward),
    "tanh": ActivationPair(ops.tanh, ops.tanh_backward),
}
"""The activations that a model knows by name."""


class Activation(Module):
    """Apply an element-wise function to ``x`` of any shape.

    Parameters
    ----------
    pair : ActivationPair
        The function and its gradient, such as ``(ops.gelu, ops.gelu_backward)``.
    xp : module, optional
        Given, the layer is placed at once.
    """

    def __init__(
        self,
        pair: tuple[Callable[..., Array], Callable[..., Array]],
        *,
        xp: ArrayModule = None,
    ) -> None:
        if isinstance(pair, str) or len(pair) != 2:
            raise ValueError(
                f"An activation is a pair of a function and its gradient, such as "
                f"nn.ACTIVATIONS['gelu']; got {pair!r}."
            )
        self.pair = ActivationPair(*pair)
        if xp is not None:
            self.place(xp)

    def forward(self, x: Array, ctx: Context) -> Array:
        """Return ``y`` and keep ``x``."""
        ctx.push(self, x)
        return self.pair.forward(x, xp=self.xp)

    def backward(self, dy: Array, ctx: Context) -> Array:
        """Return ``dx``."""
        (x,) = ctx.pop(self)
        return self.pair.backward(dy, x, xp=self.xp)
