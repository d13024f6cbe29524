"""Which gradient or array is wrong, and in what way: what turns a number into a message."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from vitkit.backend import Array, ArrayModule, to_numpy
from vitkit.testing.gradients import RTOL, assert_close, gradient_error
from vitkit.testing.parts.memory import same_bits

TOLERANCE = 1e-6
"""The largest relative error of a right gradient, by finite differences in float64."""
TILT = 1e-2
"""A slope added to both sides where one gradient is looked at alone: where the right one is zero,
rounding would otherwise be compared with rounding."""


@dataclass(frozen=True)
class Claim:
    """That gradients are those of a function.

    Attributes
    ----------
    function : callable
        ``function()`` returns a scalar; it reads the arrays, which are changed in place.
    arrays : dict of str to array, float64
        Where the derivative is taken, by name as a message says it: ``"x"``, ``"'weight'"``.
    gradients : dict of str to array
        What is claimed, by the same names.
    xp : module
        The array module of all of them.
    """

    function: Callable[[], Array]
    arrays: Mapping[str, Array]
    gradients: Mapping[str, Array]
    xp: ArrayModule

    def error(self) -> float:
        """Return the relative error of all gradients together."""
        arrays, gradients = list(self.arrays.values()), list(self.gradients.values())
        return gradient_error(lambda *_: self.function(), arrays, gradients, xp=self.xp)

    def error_of(self, name: str, gradient: Array) -> float:
        """Return the relative error if ``gradient`` were that of the array ``name``."""
        return gradient_error(
            lambda array: self.function() + TILT * array.sum(),
            [self.arrays[name]],
            [gradient + TILT],
            xp=self.xp,
        )

    def problem(self, factors: Mapping[str, float], residual: Array = None) -> str:
        """Return what is wrong with the gradients, or an empty string.

        Parameters
        ----------
        factors : dict of str to float
            What a gradient may have been multiplied by, under what a message says of it then.
        residual : array, optional
            What may be missing in a gradient of its shape: ``dy``.
        """
        for name, gradient in self.gradients.items():
            if gradient.shape != self.arrays[name].shape:
                return (
                    f"the gradient of {name} has shape {gradient.shape}; it must have that of "
                    f"{name}, {self.arrays[name].shape}"
                )
        error = self.error()
        if error < TOLERANCE:
            return ""
        if float(to_numpy(self.function())) != float(to_numpy(self.function())):
            return "it gives something else each time it runs, so it has no derivative"
        alone = {name: self.error_of(name, g) for name, g in self.gradients.items()}
        wrong = [name for name in alone if not alone[name] < TOLERANCE]
        if not wrong:
            return f"together they are wrong (relative error {error:.2g}), each alone is right"
        right = ", ".join(name for name in alone if name not in wrong)
        said = "; ".join(self._said(name, alone[name], factors, residual) for name in wrong)
        return said + (f". Right are those of {right}" if right else "")

    def _said(self, name: str, error: float, factors: Mapping[str, float], residual: Array) -> str:
        gradient = self.gradients[name]
        start = f"the gradient of {name} is wrong (relative error {error:.2g})"
        if not math.isfinite(error):
            return f"{start}: it, or what it belongs to, is not finite"
        if not to_numpy(gradient).any():
            return f"{start}: it is zero everywhere"
        for words, candidate in corrections(gradient, factors, residual):
            if self.error_of(name, candidate) < TOLERANCE:
                return f"{start}: {words}"
        return start


def corrections(
    gradient: Array, factors: Mapping[str, float], residual: Array
) -> Iterator[tuple[str, Array]]:
    """Yield what is often wrong with a gradient, and what would be right if that were so."""
    yield "it has the wrong sign", -gradient
    for words, factor in factors.items():
        yield words, gradient / factor
    if gradient.ndim == 2 and gradient.shape[0] == gradient.shape[1]:
        yield "it is the transpose of the right one", gradient.T
    if residual is not None and residual.shape == gradient.shape:
        yield "it lacks dy, the way past the branch: return dy + dx", gradient + residual
        yield "it has dy once too often: there is no way past", gradient - residual


def fail_if(problem: str, start: str) -> None:
    """Raise an AssertionError that begins with ``start`` where there is a problem."""
    if problem:
        raise AssertionError(f"{start}: {problem.rstrip('.')}.")


def differences(
    actual: Mapping[str, Array],
    expected: Mapping[str, Array],
    close: Callable[[Array, Array], None],
) -> str:
    """Return which arrays differ and how, or an empty string.

    Parameters
    ----------
    actual, expected : dict of str to array
        The arrays, by name as a message says it.
    close : callable
        ``close(actual, expected)`` raises an AssertionError where they differ.
    """
    problems = []
    for name, array in expected.items():
        try:
            close(actual[name], array)
        except AssertionError as error:
            problems.append(f"{name}: {error}")
    return "; ".join(problems)


def assert_equal(actual: Array, expected: Array) -> None:
    """Assert that two arrays are the same to the bit, and of one dtype.

    Raises
    ------
    AssertionError
        Saying how many numbers differ, and by how much at most.
    """
    one, two = to_numpy(actual), to_numpy(expected)
    if (one.shape, one.dtype) != (two.shape, two.dtype):
        raise AssertionError(f"{one.dtype} {one.shape} instead of {two.dtype} {two.shape}")
    if not same_bits(one, two):
        off = np.abs(one.astype("float64") - two).max()
        raise AssertionError(f"{np.count_nonzero(one != two)} of {one.size} differ, by {off:.2g}")


def close_beside(arrays: Mapping[str, Array]) -> Callable[[Array, Array], None]:
    """Return :func:`assert_close` for some of ``arrays``, to the precision of the largest of all.

    The gradient of a bias that a softmax takes out again is zero, and computed as rounding of the
    other gradients.
    """
    largest = max((float(np.abs(to_numpy(a)).max(initial=0)) for a in arrays.values()), default=0)

    def close(actual: Array, expected: Array) -> None:
        one, two = to_numpy(actual), to_numpy(expected)
        rounding = RTOL.get(one.dtype, 0.0) * largest
        if one.shape != two.shape or not np.abs(one - two).max(initial=0) <= rounding:
            assert_close(one, two)

    return close
