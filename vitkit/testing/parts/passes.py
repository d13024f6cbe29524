"""A layer under test, and passes through it that are watched."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitkit.backend import Array, ArrayModule, philox, to_numpy
from vitkit.nn.context import Context
from vitkit.nn.module import Module
from vitkit.nn.parameter import Parameter
from vitkit.testing.parts.array_modules import draw

BATCH = 4
DTYPES = ("float32", "float64")


class Watching(Context):
    """A pass that remembers what is kept, without keeping it alive."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.seen: list[weakref.ref[Array]] = []
        self.dtypes: set[np.dtype] = set()

    def push(self, owner: Module, *kept: Any) -> None:
        """Keep as a context does, and note the arrays."""
        super().push(owner, *kept)
        for array in kept:
            if hasattr(array, "nbytes"):
                self.dtypes.add(array.dtype)
                if not isinstance(array, np.generic):  # a number, which nothing can point to weakly
                    self.seen.append(weakref.ref(array))


@dataclass(frozen=True)
class Subject:
    """A layer under test: how it is made, and what goes through it.

    Attributes
    ----------
    make : callable
        ``make(**kw)`` returns the layer; ``kw`` may hold ``xp``.
    shape : tuple of int
        Of one sample of its input.
    xp : module
        What it is tested on.
    torch : callable, optional
        ``torch(torch)`` returns the PyTorch module that computes the same.
    batched : bool
        Whether the samples of a batch must not see each other.
    """

    make: Callable[..., Module]
    shape: tuple[int, ...]
    xp: ArrayModule
    torch: Callable[[Any], Any] | None
    batched: bool

    def placed(self, dtype: str = "float32", *, make: Callable[[], Module] | None = None) -> Module:
        """Return the layer with random parameters, those that start at zero included."""
        layer = (make or self.make)().place(self.xp, dtype=dtype)
        for name, parameter in layer.named_parameters():
            values = 0.5 * philox(0, f"values of {name}").standard_normal(parameter.shape)
            parameter.value[...] = self.xp.asarray(values, dtype=dtype)
        return layer

    def inputs(self, dtype: str = "float32", *, seed: int = 0, batch: int = BATCH) -> Array:
        """Return a batch of normal random numbers."""
        return self.draw((batch, *self.shape), dtype, seed=seed)

    def draw(self, shape: tuple[int, ...], dtype: str = "float32", *, seed: int = 0) -> Array:
        """Return normal random numbers as an array of ``xp``."""
        return self.xp.asarray(draw(shape, dtype, seed=seed))

    def run(
        self, layer: Module, x: Array, ctx: Watching | None = None
    ) -> tuple[Array, Array, Watching]:
        """Run forward and backward, in training by default; return ``y``, ``dx`` and the pass."""
        ctx = ctx or training()
        y = forward(layer, x, ctx)
        dx = backward(layer, self.draw(y.shape, str(x.dtype), seed=1), ctx)
        return y, dx, ctx

    def results(self, dtype: str) -> dict[str, np.ndarray]:
        """Return everything that the layer computes from the same numbers, on the host."""
        layer, x = self.placed(dtype), self.inputs(dtype)
        y, dx, _ = self.run(layer, x)
        arrays = {"y": y, "dx": dx, "y in inference": layer(x)}
        return {name: to_numpy(array) for name, array in (arrays | gradients_of(layer)).items()}


def training() -> Watching:
    """Return a pass in training, whose draws are the same each time."""
    return Watching(train=True, seed=3)


def forward(layer: Module, x: Array, ctx: Context) -> Array:
    """Return the layer's output, after making sure that it is an array."""
    return _array(layer.forward(x, ctx), "forward", "its output")


def backward(layer: Module, dy: Array, ctx: Context) -> Array:
    """Return the gradient of the layer's input, after making sure that it is an array."""
    return _array(layer.backward(dy, ctx), "backward", "dx, the gradient of its input")


def _array(value: Any, method: str, what: str) -> Array:
    if not hasattr(value, "shape"):
        raise AssertionError(f"{method} returned {type(value).__name__}; it must return {what}.")
    return value


def values_of(layer: Module) -> dict[str, Array]:
    """Return the parameters, by name as a message says it."""
    return {repr(name): parameter.value for name, parameter in layer.named_parameters()}


def gradients_of(layer: Module) -> dict[str, Array]:
    """Return the gradients of the parameters, by name as a message says it."""
    return {f"the gradient of {n!r}": p.grad for n, p in layer.named_parameters()}


def watch_gradients(layer: Module) -> dict[str, Any]:
    """Return a dictionary that gets the dtype of what each parameter is given as gradient."""
    seen: dict[str, Any] = {}

    def watch(name: str, parameter: Parameter) -> None:
        add = parameter.add_grad

        def add_grad(grad: Array) -> None:
            if hasattr(grad, "dtype"):
                seen[f"what is added to the gradient of {name!r}"] = grad.dtype
            add(grad)

        vars(parameter)["add_grad"] = add_grad

    for name, parameter in layer.named_parameters():
        watch(name, parameter)
    return seen


@contextmanager
def no_garbage_collector() -> Iterator[None]:
    """Leave what hangs in a cycle of references alive inside the block."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def everything_on(layer: Module) -> dict[str, Any]:
    """Return what every module, parameter and class of a tree holds, as it is."""
    held: dict[str, Any] = {}

    def look(at: str, value: Any) -> None:
        held[at] = value
        if isinstance(value, (Module, Parameter)):
            look_into(at, vars(value))
        elif isinstance(value, dict):
            look_into(at, value)
        elif isinstance(value, (list, tuple)):
            look_into(at, dict(enumerate(value)))

    def look_into(at: str, parts: Mapping[Any, Any]) -> None:
        for key, value in parts.items():
            look(f"{at}.{key}", value)

    look("self", layer)
    for cls in {cls for _, module in layer.modules() for cls in type(module).__mro__[:-1]}:
        look_into(cls.__name__, vars(cls))
    return held


def contents(held: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return a copy of every array among what a layer holds, but for gradients."""
    return {
        at: to_numpy(value).copy()
        for at, value in held.items()
        if hasattr(value, "nbytes") and not isinstance(value, type) and not at.endswith(".grad")
    }
