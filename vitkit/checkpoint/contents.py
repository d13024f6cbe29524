"""What a checkpoint can hold: plain values, which become JSON, and arrays of numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

PLAIN = "None, true, false, numbers, strings, and lists and dicts of these with strings as keys"
ARRAYS = "a dict of NumPy arrays of numbers by name"
DEEPEST = 50


def unplain(value: Any, place: str = "") -> str:
    """Return what JSON would not give back of a value, and where it is.

    Parameters
    ----------
    value : object
        What is to be written as JSON.
    place : str, default ""
        Where it is in something larger, such as ``"history[3]"``.

    Returns
    -------
    str
        Such as ``"a set at 'seen'"``; empty where all of it can be written.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return ""
    at = f" at {place!r}" if place else ""
    if place.count(".") + place.count("[") > DEEPEST:
        return f"something nested too deeply at '{place[:40]}...'"
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):  # JSON makes it a string without a word
                return f"the key {key!r} of type {type(key).__name__}{at}"
        inside = ((f"{place}.{key}" if place else key, item) for key, item in value.items())
    elif isinstance(value, (list, tuple)):
        inside = ((f"{place}[{index}]", item) for index, item in enumerate(value))
    else:
        return f"an object of type {_named(value)}{at}"
    return next((problem for where, item in inside if (problem := unplain(item, where))), "")


def unwritable(arrays: Any) -> str:
    """Return what safetensors would not give back of named arrays; empty where there is nothing.

    Parameters
    ----------
    arrays : object
        What is to be a mapping from names to arrays on the host, or to numbers.

    Returns
    -------
    str
        Such as ``"an array of dtype object at 'm'"``.
    """
    if not isinstance(arrays, Mapping):
        return f"an object of type {_named(arrays)}"
    for name, array in arrays.items():
        if not isinstance(name, str):
            return f"the key {name!r} of type {type(name).__name__}"
        try:
            dtype = np.asarray(array).dtype
        except (TypeError, ValueError):  # an array of a GPU, or rows of several lengths
            return f"an object of type {_named(array)} at {name!r}"
        if dtype.kind not in "biuf" or dtype.itemsize > 8:
            return f"an array of dtype {dtype} at {name!r}"
    return ""


def not_finite(arrays: Mapping[str, np.ndarray]) -> str:
    """Return what of some arrays is not finite; empty where all is.

    Returns
    -------
    str
        Such as ``"head.weight has nan at [0, 3] (2 of its 40 numbers are not finite)"``.
    """
    for name, array in arrays.items():
        numbers = np.asarray(array)
        if numbers.dtype.kind != "f" or (finite := np.isfinite(numbers)).all():
            continue
        index = np.unravel_index(np.argmin(finite), numbers.shape)
        place = [int(i) for i in index]
        bad = numbers.size - np.count_nonzero(finite)
        return (
            f"{name} has {float(numbers[index])} at {place} ({bad} of its {numbers.size} numbers "
            "are not finite)"
        )
    return ""


def _named(value: object) -> str:
    kind = type(value)
    return (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )
