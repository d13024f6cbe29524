"""Checks of how a layer is made, placed, saved and loaded."""

from __future__ import annotations

import inspect

import numpy as np

from vitkit.nn.context import Context
from vitkit.nn.module import Module
from vitkit.testing.parts.blame import assert_equal, differences, fail_if
from vitkit.testing.parts.passes import BATCH, Subject


def is_a_layer(s: Subject) -> None:
    """Check that ``make()`` returns a module."""
    layer = s.make()
    if not isinstance(layer, Module):
        raise AssertionError(
            f"make() returned {type(layer).__name__}; a layer is a vitkit.nn.Module with "
            "forward(x, ctx) and backward(dy, ctx)."
        )


def usable_alone(s: Subject) -> None:
    """Check that given ``xp`` it is placed at once, with the values that ``place`` gives."""
    layer = s.make(xp=s.xp)
    strays = [module.label for _, module in layer.modules() if module._xp is not s.xp]
    if strays:
        raise AssertionError(
            f"made with xp=, {', '.join(strays)} got no array module. End the constructor, after "
            "all parts are made, with 'if xp is not None: self.place(xp)'."
        )
    s.run(layer, s.inputs())
    placed = s.make().place(s.xp).state_dict()
    problem = differences(layer.state_dict(), placed, assert_equal)
    fail_if(problem, "made with xp= its first values are not those that place(xp) gives")


def xp_is_the_last_keyword(s: Subject) -> None:
    """Check that the constructor ends with ``*, xp=None``."""
    cls = type(s.make())
    parameters = list(inspect.signature(cls).parameters.values())
    last = next((p for p in reversed(parameters) if p.kind is not p.VAR_KEYWORD), None)
    if last is None or (last.name, last.kind, last.default) != ("xp", last.KEYWORD_ONLY, None):
        raise AssertionError(
            f"the last parameter of {cls.__name__} is {last}; it must be xp=None, keyword-only."
        )


def not_placed(s: Subject) -> None:
    """Check that forward without arrays is an error that says what to do."""
    x = np.ones((BATCH, *s.shape), "float32")
    advice = "Read self.xp first in forward: without arrays it raises what says what to do."
    try:
        s.make().forward(x, Context(train=True))
    except RuntimeError as error:
        if "has no arrays yet: pass xp=" in str(error):
            return
        raise
    except Exception as error:
        raise AssertionError(
            f"forward before place(xp) raised {type(error).__name__}: {error}. {advice}"
        ) from error
    raise AssertionError(f"forward before place(xp) computed something. {advice}")


def state_round_trip(s: Subject) -> None:
    """Check that what it computes is determined by its ``state_dict``."""
    one = s.placed()
    state = one.state_dict()
    two = s.make().place(s.xp, seed=7)
    two.load_state_dict(state)
    problem = differences(two.state_dict(), state, assert_equal)
    fail_if(problem, "load_state_dict does not bring back what state_dict gave")
    problem = differences({"y": two(s.inputs())}, {"y": one(s.inputs())}, assert_equal)
    fail_if(
        problem,
        "two layers with the same state_dict give different outputs, so some of their numbers "
        "are in no Parameter, and a checkpoint loses them",
    )
