"""Softmax: a plain loop, the closed form of its gradient, extremes; more in test_properties."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from vitkit import ops
from vitkit.backend import ArrayModule, to_numpy
from vitkit.testing import assert_close


def softmax_loop(row: np.ndarray) -> list[float]:
    powers = [math.exp(float(x) - float(max(row))) for x in row]
    return [power / sum(powers) for power in powers]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("size", [1, 3, 31, 32, 33])
def test_value(
    size: int, dtype: str, xp: ArrayModule, rng: np.random.Generator, bring: Any
) -> None:
    host = (3 * rng.standard_normal((4, size))).astype(dtype)
    y = ops.softmax(bring(host, dtype), xp=xp)
    assert y.dtype == dtype
    assert_close(y, np.asarray([softmax_loop(row) for row in host]), reduction=size)


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1, -2])
def test_any_axis_of_four(axis: int, xp: ArrayModule, rng: np.random.Generator, bring: Any) -> None:
    host = rng.standard_normal((5, 5, 5, 5))  # equal sides: a wrong axis has the right shape
    expected = np.apply_along_axis(softmax_loop, axis, host)
    assert_close(ops.softmax(bring(host), axis, xp=xp), expected)


@pytest.mark.parametrize(
    ("shape", "axis"), [((1,), 0), ((33,), -1), ((4, 31), 1), ((3, 4, 5), 1), ((2, 3, 4, 4), -1)]
)
def test_gradient(
    shape: tuple[int, ...],
    axis: int,
    xp: ArrayModule,
    rng: np.random.Generator,
    gradient_error: Any,
) -> None:
    def backward(dy: Any, x: Any) -> tuple[Any]:
        return (ops.softmax_backward(dy, ops.softmax(x, axis, xp=xp), axis, xp=xp),)

    x = rng.standard_normal(shape)
    assert gradient_error(lambda x: ops.softmax(x, axis, xp=xp), backward, x) < 1e-6


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_gradient_is_the_jacobian_s(
    dtype: str, xp: ArrayModule, rng: np.random.Generator, bring: Any
) -> None:
    y = np.asarray(softmax_loop(rng.standard_normal(7)), dtype)
    dy = rng.standard_normal(7).astype(dtype)
    jacobian = np.diag(y) - np.outer(y, y)
    dx = ops.softmax_backward(bring(dy, dtype), bring(y, dtype), xp=xp)
    assert dx.dtype == dtype
    assert_close(dx, jacobian @ dy, reduction=7)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_huge_and_tiny(dtype: str, xp: ArrayModule, bring: Any) -> None:
    host = [[1e30, -1e30, 1e30, 0], [-1e30, -1e30, -1e30, -1e30], [1e-30, 0, -1e-30, 0]]
    y = ops.softmax(bring(host, dtype), xp=xp)
    expected = np.asarray([[0.5, 0, 0.5, 0], [0.25] * 4, [0.25] * 4], dtype)
    np.testing.assert_array_equal(to_numpy(y), expected)
    dx = ops.softmax_backward(bring(np.full((3, 4), 1e30), dtype), y, xp=xp)
    np.testing.assert_array_equal(to_numpy(dx), np.zeros((3, 4)))  # of a constant sum


@pytest.mark.parametrize("shape", [(0, 3), (1, 3)])
def test_empty_and_single_batch(shape: tuple[int, ...], xp: ArrayModule, bring: Any) -> None:
    y = ops.softmax(bring(np.zeros(shape), "float32"), xp=xp)
    assert y.shape == ops.softmax_backward(y, y, xp=xp).shape == shape
    assert_close(y, np.full(shape, 1 / 3))
