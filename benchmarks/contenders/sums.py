"""What is compared of large results: two numbers for each array."""

from __future__ import annotations

from typing import Any

import numpy as np

MOST = 2**20
"""How many numbers of an array are looked at where it is far away, on a GPU."""


def sums(*arrays: Any) -> list[float]:
    """Return each array's norm, and its product with a random direction that is always the same.

    Divided by the norm, the difference of two such products is about the relative difference of
    the arrays.
    """
    numbers = []
    for array in arrays:
        values = np.asarray(array, np.float64).ravel()
        direction = np.random.default_rng(1).standard_normal(values.size)
        numbers += [float(np.linalg.norm(values)), float(values @ direction)]
    return numbers


def sampled(array: Any) -> Any:
    """Return at most :data:`MOST` numbers of an array of any library, from all over it."""
    flat = array.reshape(-1)
    return flat[:: max(1, -(-len(flat) // MOST))]
