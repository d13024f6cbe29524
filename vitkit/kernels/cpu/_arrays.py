"""Arrays as the kernels take them: float32, in C order, and of a type that can be written."""

from __future__ import annotations

import numpy as np
from numba.extending import register_jitable

from vitkit.backend import Array
from vitkit.kernels.cpu._memory import empty
from vitkit.kernels.cpu._processor import LANES


def served(*arrays: Array) -> bool:
    """Whether kernels serve these arrays: all float32 and none of them empty."""
    return all(
        isinstance(array, np.ndarray) and array.dtype == np.float32 and array.size
        for array in arrays
    )


class _Alias:
    """The memory of a read-only array, for an array that Numba need not compile anew for."""

    def __init__(self, array: np.ndarray) -> None:
        self._owner = array
        self.__array_interface__ = {
            **array.__array_interface__,
            "data": (array.ctypes.data, False),
        }


def plain(array: np.ndarray) -> np.ndarray:
    """Return an array in C order, itself where it is so; kernels only read what they are given."""
    if not array.flags.c_contiguous:
        copy = empty(array.shape, array.dtype)
        copy[...] = array
        return copy
    return array if array.flags.writeable else np.asarray(_Alias(array))


def rows(array: np.ndarray) -> np.ndarray:
    """Return an array in C order with every axis but the last folded into one."""
    return plain(array).reshape(-1, array.shape[-1])


def column(array: np.ndarray) -> np.ndarray:
    """Return an array in C order as one axis."""
    return plain(array).reshape(-1)


@register_jitable
def filled(count: int, unit: int) -> int:
    """Return ``count`` rounded up to whole units; inside kernels too."""
    return (count + unit - 1) // unit * unit


@register_jitable
def padded(count: int) -> int:
    """Return how many numbers the vectors have that hold ``count``; inside kernels too."""
    return filled(count, LANES)
