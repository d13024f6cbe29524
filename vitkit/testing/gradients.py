"""Whether a gradient is right, and whether numbers are the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from vitkit.backend import Array, ArrayModule, philox, to_numpy

RTOL = {np.dtype(np.float64): 1e-10, np.dtype(np.float32): 1e-5}


def directional_derivative_error(
    function: Callable[..., Array],
    arrays: Sequence[Array],
    gradients: Sequence[Array],
    *,
    seed: int = 0,
    eps: float = 1e-6,
    xp: ArrayModule = np,
) -> float:
    r"""Compare gradients with a central difference along one random direction over all arrays.

    .. math:: \frac{f(x + \epsilon v) - f(x - \epsilon v)}{2 \epsilon}
              \approx \sum_i \nabla_i f(x) \cdot v_i, \qquad v \sim N(0, 1)

    Two evaluations answer for any number of arrays of any size: a wrong entry anywhere changes
    the right-hand side.

    Parameters
    ----------
    function : callable
        ``function(*arrays)`` returns a scalar. The arrays are changed in place for the two
        calls and put back, so a function that reads them elsewhere (a model's loss, whose
        parameters they are) may ignore its arguments.
    arrays : sequence of array, float64
        Where the derivative is taken.
    gradients : sequence of array
        The gradient to check, one for each array and of its shape.
    seed : int, default 0
        Of the direction.
    eps : float, default 1e-6
        The step.
    xp : module, default numpy
        The array module of ``arrays``.

    Returns
    -------
    float
        ``abs(difference - prediction) / max(abs(difference), abs(prediction))``; rounding
        leaves about 1e-9 for a small model.

    Raises
    ------
    TypeError
        If an array is not float64: a difference of float32 numbers shows nothing.
    ValueError
        If arrays and gradients differ in number or shape.
    """
    if len(arrays) != len(gradients):
        raise ValueError(f"{len(arrays)} arrays need as many gradients; got {len(gradients)}.")
    starts = [to_numpy(array).copy() for array in arrays]
    slopes = [to_numpy(gradient) for gradient in gradients]
    for index, (start, slope) in enumerate(zip(starts, slopes, strict=True)):
        if start.dtype != np.float64:
            raise TypeError(f"Array {index} must be float64 for this check; got {start.dtype}.")
        if start.shape != slope.shape:
            raise ValueError(
                f"Gradient {index} must have its array's shape {start.shape}; got {slope.shape}."
            )
    rng = philox(seed, "gradient check")
    direction = [rng.standard_normal(start.shape) for start in starts]

    def value_at(step: float) -> float:
        for array, start, v in zip(arrays, starts, direction, strict=True):
            array[...] = xp.asarray(start + step * v)
        return float(to_numpy(function(*arrays)))

    try:
        difference = (value_at(eps) - value_at(-eps)) / (2 * eps)
    finally:
        for array, start in zip(arrays, starts, strict=True):
            array[...] = xp.asarray(start)
    prediction = float(sum(np.sum(s * v) for s, v in zip(slopes, direction, strict=True)))
    error, size = abs(difference - prediction), max(abs(difference), abs(prediction))
    return error / size if size else error


def gradient_error(
    function: Callable[..., Array],
    arrays: Sequence[Array],
    gradients: Sequence[Array],
    *,
    xp: ArrayModule = np,
) -> float:
    """Return the smallest :func:`directional_derivative_error` along three directions.

    A wrong gradient is wrong along each of them, while a right one may look wrong along one: where
    the derivative nearly vanishes along it, rounding is large beside what is left.

    Parameters
    ----------
    function : callable
        ``function(*arrays)`` returns a scalar; the arrays are changed in place and put back.
    arrays : sequence of array, float64
        Where the derivative is taken.
    gradients : sequence of array
        The gradient to check, one for each array and of its shape.
    xp : module, default numpy
        The array module of ``arrays``.

    Returns
    -------
    float
        The relative error; below 1e-6 for a right gradient, of the order of 1 for a wrong one.
    """
    return min(
        directional_derivative_error(function, arrays, gradients, seed=seed, xp=xp)
        for seed in range(3)
    )


def assert_close(actual: Array, expected: Array, *, reduction: int = 1) -> None:
    """Assert that two arrays agree to the precision that the dtype of ``actual`` allows.

    The largest error may be ``rtol * max(abs(expected))``, where ``rtol`` is 1e-10 for float64
    and ``1e-5 * sqrt(reduction)`` for float32. Integers and booleans must be equal, and NaN and
    infinity must stand in the same places.

    Parameters
    ----------
    actual : array
        What is tested, on any backend.
    expected : array
        What it should be, of the same shape, on any backend.
    reduction : int, default 1
        How many terms the longest sum behind an element has; rounding grows with its root.

    Raises
    ------
    AssertionError
        Naming the worst element and how far off it is.
    TypeError
        If ``actual`` has a dtype without a tolerance.
    """
    got, want = to_numpy(actual), to_numpy(expected)
    assert got.shape == want.shape, f"shape {got.shape}, expected {want.shape}"  # noqa: S101
    error, allowed = errors(got, want, reduction)
    if got.size == 0:
        return
    worst = np.unravel_index(int(error.argmax()), error.shape)
    if error[worst] > allowed:
        raise AssertionError(
            f"{got.dtype} array of shape {got.shape}: {np.count_nonzero(error > allowed)} of "
            f"{got.size} elements differ. Worst at {tuple(int(i) for i in worst)}: got "
            f"{got[worst]!r}, expected {want[worst]!r}; error {error[worst]:.3g}, allowed "
            f"{allowed:.3g} (rtol {tolerance(got.dtype, reduction):.2g} of the largest expected)."
        )


def errors(got: np.ndarray, want: np.ndarray, reduction: int) -> tuple[np.ndarray, float]:
    """Return how far off each element of a host array is, and how far it may be."""
    a, b = got.astype(np.float64), want.astype(np.float64)
    comparable = np.isfinite(a) & np.isfinite(b)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    error = np.where(same, 0.0, np.inf)
    np.subtract(a, b, out=error, where=comparable)
    np.abs(error, out=error)
    largest = float(np.abs(b[np.isfinite(b)]).max(initial=0.0))
    return error, tolerance(got.dtype, reduction) * largest


def tolerance(dtype: np.dtype, reduction: int) -> float:
    """Return how far off numbers may be, relative to the largest; see :func:`assert_close`."""
    if dtype.kind in "biu":
        return 0.0
    if dtype not in RTOL:
        raise TypeError(f"assert_close knows float32, float64 and integers; got {dtype}.")
    return RTOL[dtype] * (math.sqrt(reduction) if dtype == np.float32 else 1.0)
