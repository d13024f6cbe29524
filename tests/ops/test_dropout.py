"""Dropout and drop path: what is kept, how it is rescaled, and what decides the mask."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vitkit import ops
from vitkit.backend import ArrayModule, to_numpy
from vitkit.testing import assert_close

KEY = (0, 3, 1)
names = pytest.mark.parametrize("name", ["dropout", "drop_path"])


def pair(name: str) -> tuple[Any, Any]:
    return getattr(ops, name), getattr(ops, f"{name}_backward")


@names
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("size", [1, 3, 31, 32, 33])
def test_kept_numbers_are_rescaled_and_the_others_zero(
    name: str, dtype: str, size: int, xp: ArrayModule, rng: np.random.Generator, bring: Any
) -> None:
    host = (1 + rng.random((40, size))).astype(dtype)
    y = pair(name)[0](bring(host, dtype), 0.25, KEY, xp=xp)
    assert y.dtype == dtype
    assert y.shape == host.shape
    kept = to_numpy(y) != 0
    assert_close(y, np.where(kept, host / 0.75, 0))
    assert 0 < kept.mean() < 1


@names
@pytest.mark.parametrize("shape", [(40,), (40, 1), (20, 3, 33)])
def test_gradient(name: str, shape: tuple[int, ...], xp: ArrayModule, gradient_error: Any) -> None:
    forward, backward = pair(name)
    error = gradient_error(
        lambda x: forward(x, 0.4, KEY, xp=xp),
        lambda dy, x: (backward(dy, 0.4, KEY, xp=xp),),
        np.ones(shape),
    )
    assert error < 1e-6


@names
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_gradient_goes_through_the_same_mask(
    name: str, dtype: str, xp: ArrayModule, bring: Any
) -> None:
    forward, backward = pair(name)
    ones = bring(np.ones((50, 4)), dtype)
    dx = backward(ones, 0.3, KEY, xp=xp)
    assert dx.dtype == dtype
    np.testing.assert_array_equal(to_numpy(dx), to_numpy(forward(ones, 0.3, KEY, xp=xp)))


def test_drop_path_drops_whole_samples(xp: ArrayModule, bring: Any) -> None:
    y = to_numpy(ops.drop_path(bring(np.ones((200, 3, 4))), 0.5, KEY, xp=xp)).reshape(200, -1)
    assert (y == y[:, :1]).all()
    assert 60 < (y[:, 0] == 0).sum() < 140


def test_dropout_drops_numbers_apart(xp: ArrayModule, bring: Any) -> None:
    kept = to_numpy(ops.dropout(bring(np.ones((200, 200))), 0.5, KEY, xp=xp)) != 0
    for axis in (0, 1):  # rows and columns are not dropped together
        assert np.abs(kept.mean(axis=axis) - 0.5).max() < 0.2


@names
@pytest.mark.parametrize("index", [0, 1, 2])
def test_every_part_of_the_key_counts(name: str, index: int, xp: ArrayModule, bring: Any) -> None:
    forward, ones = pair(name)[0], bring(np.ones((64, 2)))
    other = tuple(part + (at == index) for at, part in enumerate(KEY))
    one, two = (to_numpy(forward(ones, 0.5, key, xp=xp)) for key in (KEY, other))
    assert (one != two).any()
    np.testing.assert_array_equal(one, to_numpy(forward(ones, 0.5, KEY, xp=xp)))


@names
def test_the_mask_is_that_of_numpy(name: str, xp: ArrayModule, bring: Any) -> None:
    forward = pair(name)[0]
    ours = forward(bring(np.ones((32, 3)), "float32"), 0.5, KEY, xp=xp)
    theirs = forward(np.ones((32, 3), "float32"), 0.5, KEY, xp=np)
    np.testing.assert_array_equal(to_numpy(ours), theirs)


@names
@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_huge_and_tiny(name: str, scale: float, xp: ArrayModule, bring: Any) -> None:
    y = to_numpy(pair(name)[0](bring(np.full((64, 2), scale), "float32"), 0.5, KEY, xp=xp))
    assert set(y.ravel().tolist()) == {0.0, 2 * float(np.float32(scale))}


@names
@pytest.mark.parametrize("batch", [0, 1])
def test_rate_zero_keeps_everything_in_any_batch(
    name: str, batch: int, xp: ArrayModule, bring: Any
) -> None:
    forward, backward = pair(name)
    x = bring(np.ones((batch, 3, 2)), "float32")
    for op in (forward, backward):
        np.testing.assert_array_equal(to_numpy(op(x, 0.0, KEY, xp=xp)), np.ones((batch, 3, 2)))
