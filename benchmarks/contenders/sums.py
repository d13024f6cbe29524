"""What is compared of large results: two numbers for each array."""

from __future__ import annotations

from typing import Any

import numpy as np


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
