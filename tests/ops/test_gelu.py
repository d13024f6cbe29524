"""What tells the two GELUs apart; values and gradients are in test_activations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vitkit import ops
from vitkit.backend import ArrayModule, to_numpy
from vitkit.testing import assert_close


def test_the_forms_differ_by_less_than_5e_4_but_differ(xp: ArrayModule, bring: Any) -> None:
    x = bring(np.linspace(-6, 6, 1201))
    apart = np.abs(to_numpy(ops.gelu(x, xp=xp)) - to_numpy(ops.gelu_tanh(x, xp=xp))).max()
    assert 4.5e-4 < apart < 5e-4


@pytest.mark.parametrize(
    ("op", "one"),
    # x Phi(x) at 1: Phi(1) = 0.841344746068542948...; the tanh form to the same places.
    [(ops.gelu, 0.8413447460685429), (ops.gelu_tanh, 0.8411919906082768)],
)
def test_known_values(op: Any, one: float, xp: ArrayModule, bring: Any) -> None:
    y = op(bring([1.0, -1.0, 0.0]), xp=xp)
    assert_close(y, np.asarray([one, one - 1, 0.0]))


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh"])
def test_odd_part_is_half_the_input(
    name: str, xp: ArrayModule, rng: np.random.Generator, bring: Any
) -> None:
    x = rng.standard_normal(100)  # x Phi(x) + x Phi(-x) = x
    op, backward = getattr(ops, name), getattr(ops, f"{name}_backward")
    assert_close(op(bring(x), xp=xp) - op(bring(-x), xp=xp), x)
    ones = bring(np.ones(100))
    total = backward(ones, bring(x), xp=xp) + backward(ones, bring(-x), xp=xp)
    assert_close(total, np.ones(100))
