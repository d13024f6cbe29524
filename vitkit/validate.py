"""Checks of arguments, whose errors say what came and what was expected."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any

from vitkit.errors import ConfigError


@contextmanager
def noted(problems: list[str]) -> Iterator[None]:
    """Add the problems found inside the block to a list, to raise them all together."""
    try:
        yield
    except ConfigError as error:
        problems += error.problems


def number(
    name: str,
    value: Any,
    *,
    at_least: float = -math.inf,
    above: float = -math.inf,
    at_most: float = math.inf,
    below: float = math.inf,
) -> float:
    """Return ``value`` as a Python float, which never widens a float32 array.

    Raises
    ------
    ConfigError
        If it is not a finite number within the bounds.
    """
    real = isinstance(value, Real) and math.isfinite(value)
    if not (real and at_least <= value <= at_most and above < value < below):
        bounds = [
            f"{word} {bound:g}"
            for word, bound in (
                (">=", at_least),
                (">", above),
                ("<=", at_most),
                ("<", below),
            )
            if math.isfinite(bound)
        ]
        raise ConfigError(f"{name} must be a number {' and '.join(bounds)}; got {value!r}.")
    return float(value)


def integer(name: str, value: Any, *, at_least: int) -> int:
    """Return ``value`` as a Python int.

    Raises
    ------
    ConfigError
        If it is not a whole number of at least ``at_least``.
    """
    if not isinstance(value, Integral) or value < at_least:
        raise ConfigError(f"{name} must be a whole number >= {at_least}; got {value!r}.")
    return int(value)


def two_betas(value: Any) -> tuple[float, float]:
    """Return the two decay rates of an optimizer's running means.

    Raises
    ------
    ConfigError
        If there are not two, or one is not in [0, 1).
    """
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise ConfigError(f"betas must be two numbers, such as (0.9, 0.999); got {value!r}.")
    beta1, beta2 = (
        number(f"betas[{i}]", beta, at_least=0, below=1) for i, beta in enumerate(value)
    )
    return beta1, beta2
