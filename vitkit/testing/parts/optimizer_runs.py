"""What the checks of optimizers step on: a small model, its gradients, and the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

import numpy as np

from vitkit.backend import ArrayModule
from vitkit.nn.init import normal
from vitkit.nn.module import Module
from vitkit.nn.parameter import Parameter
from vitkit.optim.optimizer import Optimizer
from vitkit.testing.parts.array_modules import draw
from vitkit.testing.parts.settings import taken

Arrays = dict[str, np.ndarray]

PARAMETERS: dict[str, tuple[tuple[int, ...], bool]] = {
    "bias": ((4,), False),
    "vector": ((5,), True),
    "scale": ((1,), False),
    "matrix": ((4, 3), True),
    "tokens": ((2, 1, 3), True),
    "position": ((1, 3, 2), False),
    "kernel": ((3, 2, 2, 2), True),
}
"""Shapes of 1 to 4 dimensions, with and without weight decay."""

LARGEST = 24  # numbers in a parameter: the longest sum an optimizer can make
LR = 0.05
DECAY = 0.1
STEPS = 3
MANY = 20  # updates in which every weight moves at least once


class Samples(Module):
    """A model that is nothing but parameters."""

    def __init__(self) -> None:
        for name, (shape, decay) in PARAMETERS.items():
            setattr(self, name, Parameter(shape, normal(1.0), decay=decay))


class Maker:
    """Makes the optimizer under test, with the hyper-parameters that it takes.

    Parameters
    ----------
    make : callable
        What was given to the kit.
    """

    def __init__(self, make: Callable[..., Optimizer]) -> None:
        self.make = make

    def __call__(self, lr: float = LR, weight_decay: float = DECAY) -> Optimizer:
        """Return a new optimizer; ``weight_decay`` is left out where it is not taken."""
        return self.make(**self.settings(lr, weight_decay))

    def settings(self, lr: float = LR, weight_decay: float = DECAY) -> dict[str, Any]:
        """Return what ``make`` is called with."""
        return {"lr": lr} | ({"weight_decay": weight_decay} if self.decays else {})

    @cached_property
    def decays(self) -> bool:
        """Whether ``weight_decay`` is taken; a function of any arguments is tried."""
        if "weight_decay" not in taken(self.make, ("weight_decay",)):
            return False
        try:
            self.make(lr=LR, weight_decay=DECAY)
        except TypeError:
            return False
        return True


def model(dtype: str = "float64", *, xp: ArrayModule = np) -> Samples:
    """Return a new placed model, always with the same weights."""
    samples = Samples()
    samples.place(xp, seed=0, dtype=dtype)
    return samples


def gradient(name: str, step: int, scale: float = 1.0) -> np.ndarray:
    """Return the gradient of a parameter at a step, float64."""
    index = list(PARAMETERS).index(name)
    return scale * draw(PARAMETERS[name][0], seed=100 * step + index + 1)


def fill(samples: Module, step: int, scale: float = 1.0) -> None:
    """Give every parameter its gradient of a step."""
    for name, parameter in samples.named_parameters():
        host = gradient(name, step, scale).astype(parameter.grad.dtype)
        parameter.grad[...] = samples.xp.asarray(host)


def advance(
    optimizer: Optimizer, steps: Iterable[int], *, scale: float = 1.0, lr: float | None = None
) -> Arrays:
    """Step an attached optimizer with the gradients of ``steps``; return the weights after."""
    samples = optimizer.attached
    if samples is None:
        raise AssertionError("attach(model) attached nothing; does it call super().attach(model)?")
    with np.errstate(all="ignore"):
        for step in steps:
            fill(samples, step, scale)
            optimizer.step() if lr is None else optimizer.step(lr=lr)
    return samples.state_dict()


def listed(names: Iterable[str]) -> str:
    """Return names as a message says them."""
    return ", ".join(repr(name) for name in names)
