"""Whether what an object holds is the same to the bit, and what of it is not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

DEPTH = 4  # how far into containers and objects; objects may hold each other in a circle


def same(a: Any, b: Any, depth: int = DEPTH) -> bool:
    """Return whether two values are equal to the bit, as far as can be seen.

    Parameters
    ----------
    a, b : object
        Numbers, host arrays, generators of random numbers, containers of them, and objects with
        attributes. Functions count as the same.
    depth : int, default 4
        How many containers or objects inside each other are looked into.

    Returns
    -------
    bool
        Whether no difference was found.
    """
    if a is b or depth == 0:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key], depth - 1) for key in a)
    if isinstance(a, (list, tuple)):
        pairs = zip(a, b, strict=False)
        return len(a) == len(b) and all(same(x, y, depth - 1) for x, y in pairs)
    if isinstance(a, np.random.Generator):
        return same(a.bit_generator.state, b.bit_generator.state, depth - 1)
    held = getattr(a, "__dict__", None)
    if held and not callable(a):
        return same(held, vars(b), depth - 1)
    return callable(a) or bool(a == b)


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the names that stand for different values, or are only in one of two mappings."""
    names = [*one, *(name for name in other if name not in one)]
    return [n for n in names if n not in one or n not in other or not same(one[n], other[n])]
