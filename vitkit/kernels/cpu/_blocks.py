"""Element-wise work in pieces that stay in the cache.

NumPy computes a formula one operation at a time over whole arrays. Once those no longer fit the
cache, each operation waits for memory, and each temporary is fetched page by page from the system;
in pieces of a few thousand numbers the same operations run several times faster.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

BLOCK = 16384  # numbers; four float32 arrays of this size fit a 256 KiB cache


def in_blocks(
    function: Callable[..., None], out: np.ndarray, *inputs: np.ndarray, scratch: int = 0
) -> np.ndarray:
    """Call ``function(out, *inputs, *scratch)`` on one block after the other; return ``out``.

    Parameters
    ----------
    function : callable
        Writes its first argument; all arguments are one-dimensional and equally long.
    out, *inputs : numpy.ndarray
        C-contiguous, of one shape.
    scratch : int, default 0
        How many further arrays to hand over, whose content does not matter.
    """
    flat = [array.reshape(-1) for array in (out, *inputs)]
    spare = [np.empty(min(BLOCK, out.size), out.dtype) for _ in range(scratch)]
    for start in range(0, out.size, BLOCK):
        parts = [array[start : start + BLOCK] for array in flat]
        function(*parts, *(array[: len(parts[0])] for array in spare))
    return out


def blockable(*arrays: np.ndarray) -> bool:
    """Return whether arrays can be walked flat, side by side, in their own precision."""
    first = arrays[0]
    return all(
        array.flags.c_contiguous and array.dtype == first.dtype and array.shape == first.shape
        for array in arrays
    )
