"""From all tokens to one feature."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vitkit import ops
from vitkit.backend import ArrayModule, to_numpy
from vitkit.testing import assert_close

names = pytest.mark.parametrize("name", ["pool_first", "pool_mean"])


def pair(name: str) -> tuple[Any, Any]:
    return getattr(ops, name), getattr(ops, f"{name}_backward")


@names
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("tokens", [1, 3, 31, 32, 33])
@pytest.mark.parametrize("batch", [0, 1, 2])
def test_value(
    name: str,
    batch: int,
    tokens: int,
    dtype: str,
    xp: ArrayModule,
    rng: np.random.Generator,
    bring: Any,
) -> None:
    x = rng.standard_normal((batch, tokens, 4)).astype(dtype)
    forward, backward = pair(name)
    y = forward(bring(x, dtype), xp=xp)
    share = 1.0 if name == "pool_first" else 1 / tokens
    used = 1 if name == "pool_first" else tokens
    expected = np.zeros((batch, 4))
    for n in range(used):
        expected += share * x[:, n]
    assert y.dtype == dtype
    assert_close(y, expected, reduction=tokens)
    dx = backward(bring(np.ones((batch, 4)), dtype), tokens, xp=xp)
    assert dx.dtype == dtype
    by_hand = np.zeros(x.shape)
    by_hand[:, :used] = share
    assert_close(dx, by_hand)


@names
@pytest.mark.parametrize("tokens", [1, 5, 33])
def test_gradient(
    name: str, tokens: int, xp: ArrayModule, rng: np.random.Generator, gradient_error: Any
) -> None:
    forward, backward = pair(name)
    error = gradient_error(
        lambda x: forward(x, xp=xp),
        lambda dy, x: (backward(dy, tokens, xp=xp),),
        rng.standard_normal((3, tokens, 4)),
    )
    assert error < 1e-6


@names
@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_huge_and_tiny(name: str, scale: float, xp: ArrayModule, bring: Any) -> None:
    x = bring(np.full((2, 33, 3), scale), "float32")
    assert_close(pair(name)[0](x, xp=xp), np.full((2, 3), scale), reduction=33)
    dx = pair(name)[1](x[:, 0], 33, xp=xp)
    assert_close(to_numpy(dx).sum(axis=1), np.full((2, 3), scale), reduction=33)
