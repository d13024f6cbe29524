"""Checks of what an optimizer keeps from one step to the next, and of where it keeps it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np

from vitkit.optim.optimizer import Optimizer
from vitkit.testing.parts.optimizer_runs import STEPS, Arrays, Maker, advance, listed, model
from vitkit.testing.parts.sameness import differing

# Made by attach; and set by a check.
INTERNAL = {"elementwise", *(name for name in vars(Optimizer(0.0)) if name.startswith("_"))}
MUTABLE = (dict, list, set, np.ndarray)


def counts(maker: Maker) -> None:
    """Check that ``steps`` and the saved step count updates: 1, 2, 3."""
    optimizer = maker().attach(model())
    for step in range(STEPS):
        advance(optimizer, [step])
        saved = optimizer.state_dict().get("step")
        if optimizer.steps != step + 1 or saved != step + 1:
            raise AssertionError(
                f"after {step + 1} updates steps is {optimizer.steps} and state_dict()['step'] "
                f"{saved}: leave counting to Optimizer.step, and write only update()."
            )


def same_again(maker: Maker) -> None:
    """Check that the same steps give the same bits, whichever optimizer makes them."""
    before = copy.deepcopy(dict(_class_values(maker())))
    one, other = maker(), maker()
    if different := differing(_run(one), _run(other)):
        raise AssertionError(
            f"the same updates from the same weights gave other numbers in {listed(different)}. "
            f"{_shared(before, one, other) or 'Does it draw random numbers, or use a global?'}"
        )


def shares_nothing(maker: Maker) -> None:
    """Check that two optimizers that step in turn do not disturb each other."""
    alone = _run(maker())
    before = copy.deepcopy(dict(_class_values(maker())))
    one, other = maker(), maker()
    one.attach(model())
    other.attach(model())
    beside: Arrays = {}
    for step in range(STEPS):
        beside = advance(one, [step])
        advance(other, [step], scale=3.0)
    if different := differing(alone, {**beside, **one.state_dict()}):
        raise AssertionError(
            f"{listed(different)} come out otherwise beside another optimizer that steps in turn. "
            f"{_shared(before, one, other) or 'Two optimizers share state, perhaps in a global.'}"
        )


def _shared(before: dict[str, Any], one: Optimizer, other: Optimizer) -> str:
    """Return what two optimizers share and change, as a sentence, or nothing."""
    after = dict(_class_values(one))
    if changed := differing(before, after):
        return f"Optimizers share state on the class, {listed(changed)}: make it a slot."
    held = [name for name, value in vars(one).items() if isinstance(value, MUTABLE)]
    if common := [name for name in held if vars(one)[name] is vars(other).get(name)]:
        return (
            f"Optimizers share state, one and the same {listed(f'self.{name}' for name in common)}"
            ", perhaps a default argument: make it a slot."
        )
    return ""


def resumes(maker: Maker) -> None:
    """Check that a new optimizer continues from saved state to the same bits."""
    running, resumed = maker(), maker()
    running.attach(model("float32"))
    weights = advance(running, range(STEPS))
    state = running.state_dict()
    kept = copy.deepcopy(state)
    fresh = model("float32")
    fresh.load_state_dict(weights)
    resumed.attach(fresh)
    resumed.load_state_dict(state)
    cause = _unsaved(running, resumed)
    straight = {**advance(running, range(STEPS, 2 * STEPS)), **running.state_dict()}
    if different := differing(kept, state):
        raise AssertionError(
            f"state_dict() returned {listed(different)} as they live on in the optimizer, and the "
            "next update changed them: return copies."
        )
    again = {**advance(resumed, range(STEPS, 2 * STEPS)), **resumed.state_dict()}
    if different := differing(straight, again):
        raise AssertionError(
            f"does not continue where it stopped: {STEPS} updates after loading the state, "
            f"{listed(different)} differ from the uninterrupted run. {cause}"
        )


def _unsaved(running: Optimizer, resumed: Optimizer) -> str:
    """Return what a resumed optimizer lacks, as a sentence."""
    gone = list(lost(running, resumed, "{} when saved, {} when loaded"))
    if not gone:
        return "Is it kept outside of the optimizer, or is load_state_dict() incomplete?"
    return (
        f"It keeps something in {' and '.join(gone)} that state_dict does not save: use the step "
        "that update() is given, or make it a slot."
    )


def refuses_misfits(maker: Maker) -> None:
    """Check that a state that does not fit is refused, and changes nothing."""
    optimizer, donor = maker(), maker()
    _run(optimizer)
    _run(donor, scale=3.0)
    good = donor.state_dict()
    before = optimizer.state_dict()
    arrays = [name for name, array in good.items() if array.ndim]
    wrong = {f"another shape of {n!r}": good | {n: np.zeros((7, 7))} for n in arrays[-1:]}
    wrong["without 'step'"] = {name: array for name, array in good.items() if name != "step"}
    wrong["with the unknown name 'x.y'"] = good | {"x.y": np.zeros(3)}
    for what, state in wrong.items():
        try:
            optimizer.load_state_dict(state)
        except ValueError:
            if different := differing(before, optimizer.state_dict()):
                raise AssertionError(
                    f"load_state_dict() refused a state ({what}), but changed "
                    f"{listed(different)} before: check everything first."
                ) from None
            continue
        except Exception as error:
            raise AssertionError(
                f"load_state_dict() raised {type(error).__name__}: {error} for a state that does "
                f"not fit ({what}); expected a ValueError that says what is wrong."
            ) from error
        raise AssertionError(
            f"load_state_dict() took a state that does not fit ({what}); expected a ValueError."
        )


def attaches_again(maker: Maker) -> None:
    """Check that an optimizer attached again starts from nothing."""
    used, new = maker(), maker()
    _run(used)
    used.attach(model())
    new.attach(model())
    kept = list(lost(used, new, "{}, and {} in a new optimizer"))
    again, afresh = advance(used, range(STEPS)), advance(new, range(STEPS))
    if different := differing(again, afresh):
        where = f": {' and '.join(kept)} is kept" if kept else ""
        raise AssertionError(
            f"attach(model) does not start afresh{where}; {listed(different)} differ from those "
            "of a new optimizer."
        )


def _run(optimizer: Optimizer, *, scale: float = 1.0) -> Arrays:
    """Return weights and state after a few steps on a new model."""
    weights = advance(optimizer.attach(model()), range(STEPS), scale=scale)
    return {**weights, **optimizer.state_dict()}


def lost(one: Optimizer, other: Optimizer, values: str) -> Iterator[str]:
    """Yield the attributes in which two optimizers differ, with both values if they are short."""
    mine, theirs = vars(one), vars(other)
    for name in differing(mine, theirs):
        if name not in INTERNAL:
            both = values.format(repr(mine.get(name)), repr(theirs.get(name)))
            yield f"'self.{name}' ({both})" if len(both) < 80 else f"'self.{name}'"


def _class_values(optimizer: Optimizer) -> Iterator[tuple[str, Any]]:
    """Yield what the classes of an optimizer hold besides methods."""
    for kind in type(optimizer).__mro__:
        for name, value in vars(kind).items():
            if not name.startswith("__") and not callable(value) and not hasattr(value, "__get__"):
                yield f"{kind.__name__}.{name}", value
