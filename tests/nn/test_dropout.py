"""No two draws of dropout are alike: each layer, pass, step and seed has a mask of its own."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from vitkit import nn
from vitkit.backend import ArrayModule, to_numpy
from vitkit.nn import Context

DRAWS = 4096  # masks that know nothing of each other correlate by about 1/64
SHAPES = {nn.Dropout: (64, 64), nn.DropPath: (DRAWS, 1)}
kinds = pytest.mark.parametrize("kind", SHAPES, ids=lambda kind: kind.__name__)
rates = pytest.mark.parametrize("rate", [0.1, 0.5])


def zeros(layer: nn.Dropout, ctx: Context, xp: ArrayModule) -> np.ndarray:
    """Return where a layer puts zeros in a forward pass."""
    y = layer.forward(xp.ones(SHAPES[type(layer)], "float32"), ctx)
    return to_numpy(y).ravel() == 0


def assert_unrelated(masks: list[np.ndarray], rate: float) -> None:
    """Assert that each mask has its share of zeros, and no two have more of them in common."""
    for mask in masks:
        assert abs(mask.mean() - rate) < 5 * (rate * (1 - rate) / DRAWS) ** 0.5
    correlation = np.corrcoef(np.asarray(masks, float))
    np.fill_diagonal(correlation, 0)
    assert np.abs(correlation).max() < 6 / DRAWS**0.5


@kinds
@rates
def test_every_seed_step_and_draw_is_its_own(kind: Any, rate: float, xp: ArrayModule) -> None:
    layers = [kind(rate, xp=xp) for _ in range(3)]
    masks = []
    for seed, step in itertools.product(range(3), range(3)):
        ctx = Context(train=True, seed=seed, step=step)
        masks += [zeros(layer, ctx, xp) for layer in layers]
    assert len(masks) == 27
    assert_unrelated(masks, rate)


@kinds
@rates
def test_a_layer_used_twice_in_a_pass_draws_twice(kind: Any, rate: float, xp: ArrayModule) -> None:
    layer, ctx = kind(rate, xp=xp), Context(train=True)
    assert_unrelated([zeros(layer, ctx, xp) for _ in range(2)], rate)


@pytest.mark.parametrize("order", [(nn.Dropout, nn.DropPath), (nn.DropPath, nn.Dropout)])
@rates
def test_dropout_beside_drop_path(order: Any, rate: float, xp: ArrayModule) -> None:
    ctx = Context(train=True)
    assert_unrelated([zeros(kind(rate, xp=xp), ctx, xp) for kind in order], rate)


@kinds
def test_a_later_layer_draws_its_own_again_when_replayed(kind: Any, xp: ArrayModule) -> None:
    first, inner = kind(0.5, xp=xp), kind(0.5, xp=xp)
    wrapped = nn.Checkpoint(inner).place(xp)
    ctx = Context(train=True)
    one = zeros(first, ctx, xp)
    y = wrapped.forward(xp.ones(SHAPES[kind], "float32"), ctx)
    dx = wrapped.backward(xp.ones(SHAPES[kind], "float32"), ctx)
    two = to_numpy(y).ravel() == 0
    np.testing.assert_array_equal(to_numpy(dx).ravel() == 0, two)
    assert_unrelated([one, two], 0.5)
