"""Whether an activation is what a model may use: an element-wise function and its derivative."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from vitkit.backend import Array
from vitkit.testing.check import Check, run_checks
from vitkit.testing.gradients import gradient_error
from vitkit.testing.parts.array_modules import draw
from vitkit.testing.parts.differences import (
    GRADIENT_RTOL,
    alike,
    derivative,
    explain_gradient,
)
from vitkit.testing.parts.function_checks import finite, fits_float32, function_checks
from vitkit.testing.parts.functions import DTYPES, Function, cast, doing, name_of
from vitkit.testing.parts.pairs import agrees_with_torch, linear_in_dy, needs_no_forward
from vitkit.testing.parts.staged import staged

SHAPE = (7, 30)
SHAPES = ((5,), (3, 5), (2, 3, 5), (2, 3, 5, 7))
EMPTY = ((0,), (2, 0, 3))
EXTREMES = (-1e4, -100.0, -1e-30, 0.0, 1e-30, 100.0, 1e4)


def check_activation(
    forward: Callable[..., Array],
    backward: Callable[..., Array],
    *,
    torch: Callable[[Any], Callable[..., Any]] | None = None,
) -> None:
    """Raise unless an element-wise function and its gradient are right in all that models need.

    Parameters
    ----------
    forward : callable
        ``forward(x, *, xp)`` returns ``y``, of the shape and dtype of ``x``.
    backward : callable
        ``backward(dy, x, *, xp)`` returns ``dx``, which is ``dy`` times the derivative at ``x``.
    torch : callable, optional
        ``torch(torch)`` returns PyTorch's spelling, to be compared where PyTorch is installed:
        ``torch=lambda torch: torch.nn.functional.mish``.

    Raises
    ------
    ConformanceError
        Naming what is wrong, all of it at once.
    """
    what = f"activation {name_of(forward, 'forward')!r}"
    run_checks(what, activation_checks(forward, backward, torch=torch))


def activation_checks(
    forward: Callable[..., Array],
    backward: Callable[..., Array],
    *,
    torch: Callable[[Any], Callable[..., Any]] | None = None,
) -> list[Check]:
    """Return the checks of :func:`check_activation`, which takes the same arguments."""
    f = Function(
        name_of(forward, "forward"), ("x",), forward, lambda seed: (points(seed),), "y", True
    )
    b = Function(
        name_of(backward, "backward"),
        ("dy", "x"),
        backward,
        lambda seed: (draw(SHAPE, seed=seed + 100), points(seed)),
        "dx",
        True,
    )
    checks = [
        Check("gradient", partial(gradient, f, b)),
        Check("backward: linear in dy", partial(linear_in_dy, b)),
        Check("backward: nothing kept from forward", partial(needs_no_forward, f, b)),
    ]
    for part, function in (("forward", f), ("backward", b)):
        checks += [
            Check(f"{part}: element-wise", partial(element_wise, function)),
            Check(f"{part}: 1 to 4 dimensions", partial(any_dimension, function)),
            Check(f"{part}: one element, and none", partial(one_and_none, function)),
            Check(f"{part}: large and tiny inputs", partial(any_size, function)),
            *function_checks(part, function),
        ]
    if torch is not None:
        checks.append(Check("PyTorch twin", partial(agrees_with_torch, f, b, torch)))
    return staged([Check("call", partial(callable_as_written, f, b))], checks)


def points(seed: int) -> np.ndarray:
    """Return where an activation is looked at, mostly between -9 and 9."""
    return 3 * draw(SHAPE, seed=seed)


def callable_as_written(*functions: Function) -> None:
    """Require that functions take what the hook says, and return one array."""
    for function in functions:
        hosts, signature = function.draw(0), inspect.signature(function.call)
        try:
            signature.bind(*hosts, xp=np)
        except TypeError as error:
            raise AssertionError(
                f"{function.name} is called as {function.name}({', '.join(function.parameters)}, "
                f"xp=xp); it takes {signature}: {error}."
            ) from None
        with doing(function.name):
            made = function.values(hosts)
        if len(made) != 1 or made[0] is None:
            raise AssertionError(f"{function.name} must return one array; it returns {len(made)}.")


def element_wise(function: Function) -> None:
    """Require that a number of the result depends on those in its own place alone."""
    hosts = [host.reshape(-1)[:24].reshape(4, 6) for host in function.draw(0)]
    base = value(function, hosts)
    if base.shape != (4, 6):
        raise AssertionError(f"{function.name} turns shape (4, 6) into {base.shape}.")
    for which, name in enumerate(function.parameters):
        for place in np.ndindex(base.shape):
            changed = [host.copy() for host in hosts]
            changed[which][place] += 1
            moved = np.abs(value(function, changed) - base) > 1e-9 * np.abs(base).max()
            moved[place] = False
            if moved.any():
                other = tuple(int(axis[0]) for axis in np.nonzero(moved))
                raise AssertionError(
                    f"{function.name} is not element-wise: its output at {other} changes with "
                    f"{name} at {place}. Is there a sum, mean or maximum, or a wrong axis? What "
                    "sees more than one number at a time is a layer, not an activation."
                )


def any_dimension(function: Function) -> None:
    """Require that shapes of 1 to 4 axes are kept, and that numbers do not depend on them."""
    for shape in SHAPES:
        count = int(np.prod(shape))
        flat = [host.reshape(-1)[:count] for host in function.draw(0)]
        with doing(f"{function.name} of shape {shape}"):
            got = value(function, [host.reshape(shape) for host in flat])
        if got.shape != shape:
            raise AssertionError(f"{function.name} turns shape {shape} into {got.shape}.")
        want = value(function, flat).reshape(shape)
        what = f"{function.name} gives other numbers for shape {shape} than for ({count},)"
        function.same(what, [got], [want], 1)


def one_and_none(function: Function) -> None:
    """Require that an array of one element, or of none, is one like any other."""
    hosts = function.draw(0)
    many = value(function, hosts)
    for shape in ((1,), (1, 1, 1)):
        with doing(f"{function.name} of one element, shape {shape}"):
            got = value(function, [host.reshape(-1)[:1].reshape(shape) for host in hosts])
        want = many.reshape(-1)[:1].reshape(shape)
        what = f"{function.name} of one element alone differs from it among others"
        function.same(what, [got], [want], 1)
    for shape in EMPTY:
        for dtype in DTYPES:
            with doing(f"{function.name} of an empty array of shape {shape}"):
                got = value(function, [np.zeros(shape, dtype) for _ in hosts])
            if (got.shape, got.dtype) != (shape, np.dtype(dtype)):
                raise AssertionError(
                    f"{function.name} turns an empty {dtype} array of shape {shape} into "
                    f"{got.dtype} of shape {got.shape}; it must keep both."
                )


def any_size(function: Function) -> None:
    """Require that large and tiny numbers give finite ones, without an overflow on the way."""
    for dtype in DTYPES:
        for extreme in EXTREMES:
            x = np.full(3, extreme, dtype)
            hosts = [np.ones_like(x)] * (len(function.parameters) - 1)
            finite(function, [*hosts, x], f"x = {extreme:g} in {dtype}")


def gradient(forward: Function, backward: Function) -> None:
    """Require that backward is dy times the derivative of forward."""
    dy, x = backward.draw(0)
    got = value(backward, [dy, x])

    def weighted(moved: np.ndarray) -> Any:
        return np.sum(value(forward, [moved]) * dy)

    if got.shape != x.shape:
        raise AssertionError(f"{backward.name} returns shape {got.shape} for x of {x.shape}.")
    error = gradient_error(weighted, [x.copy()], [got])
    if not error < GRADIENT_RTOL:
        raise AssertionError(
            f"{backward.name} is not the derivative of {forward.name} "
            f"(relative error {error:.2g}): {why_not_the_derivative(forward, backward, got)}."
        )


def why_not_the_derivative(forward: Function, backward: Function, got: np.ndarray) -> str:
    """Return what probably happened, with numbers."""
    dy, x = backward.draw(0)
    y = value(forward, [x])
    if fits_float32(y):
        return f"{forward.name} computes in float32 within, so that differences show nothing"
    slope = derivative(lambda at: value(forward, [at]), x)
    want = dy * slope
    if alike(got, slope):
        return "it ignores dy, and returns the derivative alone; multiply by dy"
    if alike(got, dy):
        return "it returns dy, as if the derivative were 1"
    if alike(value(backward, [dy, y]), want):
        return f"it is right if given the output of {forward.name}, but it is given the input, x"
    if alike(value(backward, [x, dy]), want):
        return "it is right with its arguments exchanged; it is called with dy first, then x"
    whole = explain_gradient(got, want)
    if whole:
        return whole
    alone = value(backward, [np.ones_like(x), x])
    if alike(alone, slope):
        return "it is right for dy = 1 alone; dy may enter as a factor, once"
    return where_it_is_wrong(forward.name, x, alone, slope)


def where_it_is_wrong(name: str, x: np.ndarray, got: np.ndarray, want: np.ndarray) -> str:
    """Return at which x a derivative is worst, and between which it is wrong."""
    error = np.abs(got - want)
    wrong = error > 1e-5 * max(1, np.abs(want).max())
    if not wrong.any():
        return f"the largest error of the derivative is {error.max():.2g}"
    worst = np.unravel_index(int(error.argmax()), error.shape)
    return (
        f"at x = {x[worst]:.6g} and dy = 1 it gives {got[worst]:.6g}, where the derivative of "
        f"{name} is {want[worst]:.6g} by differences. It is wrong at {np.count_nonzero(wrong)} of "
        f"{x.size} points, from x = {x[wrong].min():.3g} to {x[wrong].max():.3g}"
    )


def value(function: Function, hosts: Sequence[np.ndarray]) -> np.ndarray:
    """Return the single result of a function, in float64 if its arguments are."""
    (result,) = function.values(cast(hosts, str(hosts[-1].dtype)))
    return np.asarray(result)
