"""Derivatives by differences, and what is probably wrong with a gradient that is not one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

GRADIENT_RTOL = 1e-6
"""Largest relative error of a right gradient along a direction; rounding leaves about 1e-9."""
STEP = 1e-6
CLOSE = 1e-5

Elementwise = Callable[[np.ndarray], np.ndarray]


def derivative(function: Elementwise, x: np.ndarray) -> np.ndarray:
    """Return the derivative of an element-wise function at each element of ``x``."""
    return np.asarray((function(x + STEP) - function(x - STEP)) / (2 * STEP))


def numeric_gradient(function: Callable[[], Any], array: np.ndarray) -> np.ndarray:
    """Return the gradient of a scalar function that reads ``array``, which is left as it was."""
    gradient = np.zeros_like(array)
    for place in np.ndindex(array.shape):
        at, ends = array[place], []
        for step in (STEP, -STEP):
            array[place] = at + step
            ends.append(float(function()))
        array[place] = at
        gradient[place] = (ends[0] - ends[1]) / (2 * STEP)
    return gradient


def alike(got: np.ndarray, want: np.ndarray) -> bool:
    """Return whether two gradients agree as far as differences can tell."""
    error = np.abs(got - want).max(initial=0)
    return bool(error <= CLOSE * np.abs(want).max(initial=0))


def explain_gradient(got: np.ndarray, want: np.ndarray) -> str:
    """Return what is wrong with a gradient as a whole, or an empty string where nothing fits."""
    if not np.isfinite(got).all():
        return f"{np.count_nonzero(~np.isfinite(got))} of its {got.size} elements are NaN or inf"
    if not got.any():
        return "it is zero everywhere"
    if alike(got, -want):
        return "it has the wrong sign"
    factor = float((got * want).sum() / ((want * want).sum() or 1))
    return f"it is {factor:.6g} times what it must be" if alike(got, factor * want) else ""


def mixed_axes(function: Elementwise, x: np.ndarray) -> tuple[int, ...] | None:
    """Return along which axes an output depends on other elements of the input than its own.

    None where the output has another shape than the input, so that none is its own.
    """
    changed = x.copy()
    changed.flat[0] += 1
    before, after = function(x), function(changed)
    if before.shape != x.shape:
        return None
    moved = np.abs(after - before) > 1e-9 * np.abs(before).max(initial=0)
    return tuple(axis for axis, at in enumerate(np.nonzero(moved)) if np.unique(at).size > 1)


def axes_in_words(axes: tuple[int, ...]) -> str:
    """Return axes as a message names them."""
    if not axes:
        return "along no axis"
    return f"along {'axis' if len(axes) == 1 else 'axes'} {' and '.join(map(str, axes))}"
