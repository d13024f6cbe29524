"""An element-wise activation as a layer, and the table of those known by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from vitkit import ops
from vitkit.backend import Array, ArrayModule
from vitkit.errors import blaming
from vitkit.nn.context import Context
from vitkit.nn.module import Module
from vitkit.registry import BUILTIN, Registry


class ActivationPair(NamedTuple):
    """An element-wise function ``f(x, *, xp)`` and its gradient ``f_backward(dy, x, *, xp)``."""

    forward: Callable[..., Array]
    backward: Callable[..., Array]


class Activations(Registry):
    """Names of activations; what a name stands for is an :class:`ActivationPair`."""

    def __getitem__(self, name: str) -> ActivationPair:
        return ActivationPair(*self.entry(name).value)


ACTIVATIONS = Activations("activation", late=True)
"""The activations that a model knows by name, those of plugins among them."""

ACTIVATIONS.add("gelu", ops.gelu, ops.gelu_backward, plugin=BUILTIN)
ACTIVATIONS.add("gelu_tanh", ops.gelu_tanh, ops.gelu_tanh_backward, plugin=BUILTIN)
ACTIVATIONS.add("relu", ops.relu, ops.relu_backward, plugin=BUILTIN)
ACTIVATIONS.add("silu", ops.silu, ops.silu_backward, plugin=BUILTIN)
ACTIVATIONS.add("quick_gelu", ops.quick_gelu, ops.quick_gelu_backward, plugin=BUILTIN)
ACTIVATIONS.add("tanh", ops.tanh, ops.tanh_backward, plugin=BUILTIN)


class Activation(Module):
    """Apply an element-wise function to ``x`` of any shape.

    Parameters
    ----------
    pair : ActivationPair
        The function and its gradient, such as ``(ops.gelu, ops.gelu_backward)``. That both keep
        shape and dtype is checked at each call.
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
        y = self.pair.forward(x, xp=self.xp)
        if not _alike(y, x):
            self._refuse(self.pair.forward, y, _shown(x))
        return y

    def backward(self, dy: Array, ctx: Context) -> Array:
        """Return ``dx``."""
        (x,) = ctx.pop(self)
        dx = self.pair.backward(dy, x, xp=self.xp)
        if not _alike(dx, x):
            self._refuse(self.pair.backward, dx, f"dy {_shown(dy)} and x {_shown(x)}")
        return dx

    def _refuse(self, function: Callable[..., Array], came: Any, given: str) -> None:
        module = getattr(function, "__module__", None) or "?"
        name = getattr(function, "__qualname__", repr(function))
        problem = (
            f"{self.label}: {module}.{name} returned {_shown(came)} for {given}; an activation "
            "keeps shape and dtype, and so does its gradient. vitkit.testing.check_activation "
            "shows where it does not."
        )
        raise blaming(ValueError(problem), function)


def _alike(result: Any, x: Array) -> bool:
    """Whether a function returned what ``x`` has the shape and dtype of; asks no device."""
    try:
        return bool(result.dtype == x.dtype and result.shape == x.shape)
    except AttributeError:  # no array at all
        return False


def _shown(array: Any) -> str:
    """Return how a message shows an array: dtype and shape."""
    if hasattr(array, "dtype") and hasattr(array, "shape"):
        return f"{array.dtype} {array.shape}"
    return f"an object of type {type(array).__name__}"
