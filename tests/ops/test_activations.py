"""Element-wise activations, GELU included: values, slopes and extremes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vitkit import ops
from vitkit.backend import ArrayModule, to_numpy
from vitkit.nn.activation import ACTIVATIONS
from vitkit.testing import assert_close


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def gelu_tanh(x: float) -> float:
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


FORMULAS: dict[str, Callable[[float], float]] = {
    "relu": lambda x: max(x, 0.0),
    "silu": lambda x: x * sigmoid(x),
    "quick_gelu": lambda x: x * sigmoid(1.702 * x),
    "tanh": math.tanh,
    "gelu": lambda x: 0.5 * x * math.erfc(-x / math.sqrt(2)),
    "gelu_tanh": gelu_tanh,
}
# At minus infinity, at plus infinity, and the slope at 0.
LIMITS = dict.fromkeys(FORMULAS, (0.0, "x", 0.5)) | {
    "relu": (0.0, "x", 0.0),
    "tanh": (-1.0, "1", 1.0),
}
names = pytest.mark.parametrize("name", FORMULAS)


def pair(name: str) -> tuple[Any, Any]:
    return getattr(ops, name), getattr(ops, f"{name}_backward")


def test_every_activation_that_ships_is_here() -> None:
    assert set(FORMULAS) == set(ACTIVATIONS)
    for name in ACTIVATIONS:
        assert ACTIVATIONS[name] == pair(name)


@names
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("size", [1, 3, 31, 32, 33])
def test_value(name: str, dtype: str, size: int, xp: ArrayModule, bring: Any) -> None:
    host = np.linspace(-6, 6, size).astype(dtype) if size > 1 else np.asarray([0.7], dtype)
    forward, backward = pair(name)
    y = forward(bring(host, dtype), xp=xp)
    dx = backward(bring(np.ones(size), dtype), bring(host, dtype), xp=xp)
    assert y.dtype == dx.dtype == dtype
    assert_close(y, np.asarray([FORMULAS[name](float(x)) for x in host]))
    assert dx.shape == (size,)


@names
@pytest.mark.parametrize("shape", [(1,), (31,), (2, 3, 33)])
def test_gradient(
    name: str,
    shape: tuple[int, ...],
    xp: ArrayModule,
    rng: np.random.Generator,
    gradient_error: Any,
) -> None:
    forward, backward = pair(name)
    x = 2 * rng.standard_normal(shape)
    error = gradient_error(lambda x: forward(x, xp=xp), lambda dy, x: (backward(dy, x, xp=xp),), x)
    assert error < 1e-6


@names
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_huge_and_tiny(name: str, dtype: str, xp: ArrayModule, bring: Any) -> None:
    low, high, slope = LIMITS[name]
    host = np.asarray([-1e30, -100, 100, 1e30], dtype)
    forward, backward = pair(name)
    above = host[2:] if high == "x" else np.ones(2)
    y = forward(bring(host, dtype), xp=xp)
    assert_close(y[:2] + 1, np.full(2, low + 1))
    np.testing.assert_array_equal(to_numpy(y)[2:], above)
    dx = backward(bring(np.ones(4), dtype), bring(host, dtype), xp=xp)
    slopes = [0, 0, *(2 * [1.0 if high == "x" else 0.0])]
    # 1e-40: the slope of SiLU at -100 is -99 e^-100, about -4e-42.
    np.testing.assert_allclose(to_numpy(dx), slopes, rtol=0, atol=1e-40)
    tiny = np.asarray([-1e-30, 1e-30], dtype)
    slopes = np.asarray([0.0, 1.0], dtype) if name == "relu" else np.full(2, slope, dtype)
    assert_close(forward(bring(tiny, dtype), xp=xp), tiny * slopes)
    assert_close(backward(bring(np.ones(2), dtype), bring(tiny, dtype), xp=xp), slopes)


def test_the_slope_of_relu_at_zero_is_zero(xp: ArrayModule, bring: Any) -> None:
    dx = ops.relu_backward(bring([1.0, 1.0]), bring([0.0, -0.0]), xp=xp)
    assert to_numpy(dx).tolist() == [0, 0]


@names
def test_empty(name: str, xp: ArrayModule, bring: Any) -> None:
    forward, backward = pair(name)
    x = bring(np.zeros((0, 3)), "float32")
    assert forward(x, xp=xp).shape == backward(x, x, xp=xp).shape == (0, 3)
