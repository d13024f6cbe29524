"""Losses that a model cannot learn from, and what tests of skipped steps compare with."""

from __future__ import annotations

import numpy as np

from vitkit.backend import Array, ArrayModule
from vitkit.ops import softmax_cross_entropy


class Spoiling:
    """A loss whose gradient is not finite at some calls, and maybe not itself either."""

    def __init__(self, *calls: int, loss: float = 1.0, gradient: float = float("nan")) -> None:
        self.calls, self.left, self.seen = calls, loss, 0
        self.gradient = gradient

    def __call__(self, logits: Array, labels: Array, *, xp: ArrayModule) -> tuple[Array, Array]:
        value, dlogits = softmax_cross_entropy(logits, labels, xp=xp)
        self.seen += 1
        if self.seen - 1 in self.calls:
            return value * self.left, dlogits * self.gradient
        return value, dlogits


def flag(value: bool, xp: ArrayModule) -> Array:
    return xp.full((), value, "bool")


def assert_same_bits(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].tobytes() == value.tobytes(), name
