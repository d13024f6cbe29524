"""Checks that an optimizer can be made and used at all."""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import safetensors.numpy

from vitkit.optim.optimizer import Optimizer
from vitkit.testing.check import where
from vitkit.testing.parts.optimizer_runs import (
    DECAY,
    LR,
    MANY,
    PARAMETERS,
    STEPS,
    Maker,
    advance,
    listed,
    model,
)
from vitkit.testing.parts.sameness import differing
from vitkit.testing.parts.settings import expect_enough, taken

OFF_BY_ONE = "Is the step off by one? Updates count from 1, so that 1 - beta**step is not zero."


def is_an_optimizer(maker: Maker) -> None:
    """Check that ``make(lr=...)`` returns an optimizer, a new one in each call."""
    if not taken(maker.make, ("lr",)):
        raise AssertionError("make takes no lr, the learning rate; give it that argument.")
    expect_enough(maker.make, maker.settings())
    try:
        optimizer, another = maker(), maker()
    except Exception as error:
        raise AssertionError(
            f"make(lr={LR}) raised {_said(error)}; it must return an Optimizer."
        ) from error
    if not isinstance(optimizer, Optimizer):
        raise AssertionError(
            f"make(lr={LR}) returned {type(optimizer).__name__}, expected an Optimizer: write a "
            "subclass of vitkit.optim.Optimizer."
        )
    if optimizer is another:
        raise AssertionError("make returned one optimizer twice: make a new one in each call.")


def declares(maker: Maker) -> None:
    """Check that ``slots`` are names, and that ``update`` takes as many arrays."""
    optimizer = maker()
    slots, signature = optimizer.slots, inspect.signature(optimizer.update)
    if not isinstance(slots, tuple):
        raise AssertionError(
            f"slots is {slots!r}, expected a tuple of names: write slots = ({slots!r},)."
        )
    settings: dict[str, Any] = {"lr": LR, "step": 1, "weight_decay": 0.0, "xp": np}
    try:
        signature.bind(None, None, *slots, **settings)
    except TypeError as error:
        raise AssertionError(
            f"update{signature} is called as update({', '.join(('w', 'g', *slots))}, lr=..., "
            f"step=..., weight_decay=..., xp=...), since slots = {slots!r}: {error}."
        ) from error


def steps(maker: Maker) -> None:
    """Check that steps move weights, to numbers."""
    optimizer, samples = maker(weight_decay=0.0), model()
    before = samples.state_dict()
    attached: Any = optimizer.attach(samples)
    if attached is not optimizer:
        raise AssertionError(
            f"attach(model) returned {attached!r}, expected the optimizer: return self."
        )
    try:
        after = advance(optimizer, range(1))
    except ArithmeticError as error:
        raise AssertionError(f"the first update raised {_said(error)}. {OFF_BY_ONE}") from error
    if bad := [name for name, value in after.items() if not np.isfinite(value).all()]:
        raise AssertionError(f"the first update leaves {listed(bad)} not finite. {OFF_BY_ONE}")
    after = advance(optimizer, range(1, MANY))
    if not differing(before, after):
        raise AssertionError(
            f"no weight moved in {MANY} updates: update() must change w in place (w -= ...); "
            "w = w - ... makes a new array, and the model keeps the old one."
        )


def has_a_state(maker: Maker) -> None:
    """Check that all there is to save is in ``state_dict``, as a checkpoint can hold it."""
    optimizer = maker().attach(model("float32"))
    advance(optimizer, range(STEPS))
    state = optimizer.state_dict()
    slots = [f"{name}.{slot}" for name in PARAMETERS for slot in optimizer.slots]
    if missing := [name for name in (*slots, "step") if name not in state]:
        raise AssertionError(
            f"state_dict() lacks {listed(missing)}, which a resumed run would do without: start "
            "from super().state_dict()."
        )
    for name, value in state.items():
        if not isinstance(value, np.ndarray):
            raise AssertionError(
                f"state_dict()[{name!r}] is {type(value).__name__}, expected a NumPy array: "
                "checkpoints hold nothing else."
            )
        try:
            safetensors.numpy.save({name: value})
        except Exception as error:
            raise AssertionError(
                f"state_dict()[{name!r}], of dtype {value.dtype}, cannot be stored in a "
                f"checkpoint ({type(error).__name__}: {error}); store numbers or booleans."
            ) from error


def keeps_settings(maker: Maker) -> None:
    """Check that ``lr`` and ``weight_decay`` reach the base class."""
    optimizer = maker()
    wanted = {"lr": LR} | ({"weight_decay": DECAY} if maker.decays else {})
    for name, value in wanted.items():
        if getattr(optimizer, name) != value:
            raise AssertionError(
                f"make({name}={value}) gave an optimizer with {name}={getattr(optimizer, name)!r}: "
                "hand it on, with super().__init__(lr, weight_decay)."
            )


def refuses(maker: Maker) -> None:
    """Check that hyper-parameters out of range are refused with a ValueError."""
    wrong = [("lr", -1.0), ("lr", math.nan)] + [("weight_decay", -1.0)] * maker.decays
    for name, value in wrong:
        settings: dict[str, Any] = {name: value}
        try:
            maker(**settings)
        except ValueError:
            continue
        raise AssertionError(
            f"make({name}={value}) was accepted; expected a ValueError that names {name}. "
            "super().__init__(lr, weight_decay) checks both; for others use "
            "vitkit.validate.number."
        )


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}{where(error)}"
