"""Which of the settings that the kit offers a function takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from vitkit.testing.check import Skip


def taken(make: Callable[..., Any], names: tuple[str, ...]) -> set[str]:
    """Return those of ``names`` that ``make`` takes; all, where it takes anything."""
    try:
        parameters = inspect.signature(make).parameters.values()
    except (TypeError, ValueError):  # some of those written in C do not say
        return set(names)
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return set(names)
    return {p.name for p in parameters if p.kind is not p.POSITIONAL_ONLY} & set(names)


def expect_enough(make: Callable[..., Any], settings: Mapping[str, Any]) -> None:
    """Raise :class:`Skip` where ``make`` needs more than ``settings``."""
    try:
        signature = inspect.signature(make)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(**settings)
    except TypeError as error:
        raise Skip(
            f"cannot make one ({error}): register it with example={{...}}, the arguments that do"
        ) from None
