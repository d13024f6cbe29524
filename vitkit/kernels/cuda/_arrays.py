"""What kernels ask of arrays before they take them, and arrays to write to."""

from __future__ import annotations

from typing import Any

import numpy as np

from vitkit.backend import Array, ArrayModule

ALIGNMENT = 16  # bytes that a thread reads at once
WIDTH = 4  # numbers that are read at once: 16 bytes of float32


def served(*arrays: Array) -> bool:
    """Return whether all are float32 with something in them."""
    return all(array.dtype == "float32" and array.size for array in arrays)


def plain(array: Array, xp: ArrayModule) -> Array:
    """Return the array without gaps: itself, or a copy."""
    # A single number is without; asked for it, CuPy and NumPy return an array of shape (1,).
    return array if array.flags.c_contiguous else xp.ascontiguousarray(array)


def aligned(array: Array, xp: ArrayModule) -> Array:
    """Return the array without gaps and on a boundary of 16 bytes: itself, or a copy."""
    array = plain(array, xp)
    return array if array.data.ptr % ALIGNMENT == 0 else array.copy()


def rows_of(array: Array) -> int:
    """Return how many rows there are along the last axis."""
    return int(array.size // array.shape[-1])


def vector(width: int, *arrays: Array) -> int:
    """Return how many numbers of rows this wide can be read at once from these arrays, 4 or 1."""
    aligned = all(array.data.ptr % (WIDTH * array.itemsize) == 0 for array in arrays)
    return WIDTH if aligned and width % WIDTH == 0 else 1


def pointer(array: Array | None) -> Any:
    """Return an argument for an array that may be missing: it, or a null pointer."""
    return np.uint64(0) if array is None else array
