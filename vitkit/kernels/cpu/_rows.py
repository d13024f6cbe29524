"""What happens to one row between two products, each over one-dimensional pieces.

Only loops whose counter is the index, over arrays of one dimension, become vectors in Numba; and
only where the result is another array than the inputs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vitkit.kernels.cpu._compile import plainly, serial, widest_vectors
from vitkit.kernels.cpu._math import ONE, ZERO, F, gelu_both, gelu_tanh_both
from vitkit.kernels.cpu._numbers import narrow, wide


@serial
def add_bias(x: np.ndarray, bias: np.ndarray, y: np.ndarray) -> None:
    """Write x + bias."""
    widest_vectors()
    for k in range(y.size):
        y[k] = narrow(x[k] + bias[k], y)


@serial
def add_branch(
    x: np.ndarray, bias: np.ndarray, gain: float, skip: np.ndarray, y: np.ndarray
) -> None:
    """Write skip + gain (x + bias)."""
    widest_vectors()
    for k in range(y.size):
        y[k] = skip[k] + gain * (x[k] + bias[k])


@serial
def activate(kind: int, x: np.ndarray, bias: np.ndarray, y: np.ndarray, slope: np.ndarray) -> None:
    """Write an activation of x + bias and its derivative."""
    widest_vectors()
    if kind == 0:
        for k in range(y.size):
            value, derivative = gelu_both(x[k] + bias[k])
            y[k] = narrow(value, y)
            slope[k] = narrow(derivative, slope)
    else:
        for k in range(y.size):
            value, derivative = gelu_tanh_both(x[k] + bias[k])
            y[k] = narrow(value, y)
            slope[k] = narrow(derivative, slope)


@serial
def activate_only(kind: int, x: np.ndarray, bias: np.ndarray, y: np.ndarray) -> None:
    """Write an activation of x + bias."""
    widest_vectors()
    if kind == 0:
        for k in range(y.size):
            y[k] = narrow(gelu_both(x[k] + bias[k])[0], y)
    else:
        for k in range(y.size):
            y[k] = narrow(gelu_tanh_both(x[k] + bias[k])[0], y)


@plainly
def _reciprocal_root(x: float) -> Any:
    """Return 1 / sqrt x; fast-math would take an estimate of it that makes infinity NaN."""
    return ONE / np.sqrt(x)


@serial
def normalize(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float, y: np.ndarray
) -> tuple[float, float]:
    """Write the layer norm of a row, and return its mean and reciprocal standard deviation."""
    widest_vectors()
    total = ZERO
    for k in range(x.size):
        total += x[k]
    mean = total / F(x.size)
    squares = ZERO
    for k in range(x.size):
        squares += (x[k] - mean) * (x[k] - mean)
    rstd = _reciprocal_root(squares / F(x.size) + eps)
    for k in range(x.size):
        y[k] = narrow((x[k] - mean) * rstd * weight[k] + bias[k], y)
    return mean, rstd


@serial
def normalize_again(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, mean: float, rstd: float, y: np.ndarray
) -> None:
    """Write the layer norm of a row whose statistics are known."""
    widest_vectors()
    for k in range(x.size):
        y[k] = narrow((x[k] - mean) * rstd * weight[k] + bias[k], y)


@serial
def normalize_backward(
    dy: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    mean: float,
    rstd: float,
    skip: np.ndarray,
    dx: np.ndarray,
    dweight: np.ndarray,
    dbias: np.ndarray,
) -> None:
    """Write skip + the gradient of a row's layer norm; add to those of weight and bias."""
    widest_vectors()
    plain, along = ZERO, ZERO
    for k in range(x.size):
        x_hat = (x[k] - mean) * rstd
        dweight[k] += dy[k] * x_hat
        dbias[k] += dy[k]
        plain += dy[k] * weight[k]
        along += dy[k] * weight[k] * x_hat
    plain /= F(x.size)
    along /= F(x.size)
    for k in range(x.size):
        x_hat = (x[k] - mean) * rstd
        dx[k] = skip[k] + rstd * (dy[k] * weight[k] - plain - x_hat * along)


@serial
def scale_by(x: np.ndarray, slope: np.ndarray, y: np.ndarray) -> None:
    """Write x times slope."""
    widest_vectors()
    for k in range(y.size):
        y[k] = narrow(x[k] * wide(slope[k]), y)


@serial
def add_to(x: np.ndarray, total: np.ndarray) -> None:
    """Add x to a running sum."""
    widest_vectors()
    for k in range(x.size):
        total[k] += wide(x[k])


@serial
def convert(x: np.ndarray, factor: float, y: np.ndarray) -> None:
    """Write x times a factor, in the dtype of y."""
    widest_vectors()
    for k in range(x.size):
        y[k] = narrow(x[k] * factor, y)


@serial
def scale(x: np.ndarray, factor: float, y: np.ndarray) -> None:
    """Write x times a number."""
    widest_vectors()
    for k in range(y.size):
        y[k] = x[k] * factor


@serial
def scale_inplace(x: np.ndarray, factor: float) -> None:
    """Multiply x by a number."""
    widest_vectors()
    for k in range(x.size):
        x[k] *= factor


@serial
def copy(x: np.ndarray, y: np.ndarray) -> None:
    """Write x."""
    for k in range(y.size):
        y[k] = x[k]


@serial
def piece(total: int, part: int, parts: int) -> tuple[int, int]:
    """Return where one of several pieces of a long row begins and ends: whole cache lines."""
    last = total if part + 1 == parts else total * (part + 1) // parts // 16 * 16
    return total * part // parts // 16 * 16, last


@serial
def share(total: int, unit: int, part: int, parts: int) -> tuple[int, int]:
    """Return where one of several parts of an axis begins and ends, in whole units."""
    units = (total + unit - 1) // unit
    return units * part // parts * unit, min(units * (part + 1) // parts * unit, total)
