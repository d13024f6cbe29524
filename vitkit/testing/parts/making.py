"""Calling what a plugin registered, with what the kit can offer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from vitkit.testing.check import Skip

NOTHING: Mapping[str, Any] = {}


def made(make: Callable[..., Any], offered: Mapping[str, Any] = NOTHING) -> Any:
    """Return what ``make`` makes, given those of ``offered`` that its parameters name.

    Raises
    ------
    Skip
        If it needs other arguments.
    """
    needs = _needs(make, offered)
    if needs:
        raise Skip(f"{needs}: register it with example={{...}}, the arguments that make one")
    parameters = _parameters(make)
    return make(**{name: value for name, value in offered.items() if name in parameters})


def expect_makeable(make: Callable[..., Any], offered: Mapping[str, Any] = NOTHING) -> None:
    """Raise a TypeError where :func:`made` could only skip.

    For whoever calls a check by hand, and would take checks that were all skipped for passed.
    """
    needs = _needs(make, offered)
    if needs:
        raise TypeError(f"{needs}: give the check a function that takes nothing else.")


def _needs(make: Callable[..., Any], offered: Mapping[str, Any]) -> str:
    """Say which arguments nobody gives, or nothing."""
    missing = [
        name
        for name, each in _parameters(make).items()
        if each.default is each.empty
        and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
        and name not in offered
    ]
    return f"making one needs {', '.join(missing)}" if missing else ""


def _parameters(make: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(make).parameters
    except (TypeError, ValueError):  # some of those written in C do not say
        return {}
