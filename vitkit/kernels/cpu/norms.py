"""The norm of many arrays in one pass, and clipping; the meaning is in :mod:`vitkit.ops.norms`.

Squares are float32, as in the reference, and added up as float64, which costs nothing where memory
is waited for. Each chunk has a sum of its own, so the result does not depend on the threads.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numba import prange

from vitkit.backend import Array, ArrayModule
from vitkit.kernels.cpu._arrays import column, served
from vitkit.kernels.cpu._compile import parallel, serial, widest_vectors
from vitkit.kernels.cpu._math import F
from vitkit.kernels.cpu._rows import scale_inplace
from vitkit.ops.norms import clip_by_norm_inplace, clip_factor, global_norm

CHUNK = 1 << 16


@serial
def sum_of_squares(x: np.ndarray) -> float:
    """Return the sum of the squares of a few numbers."""
    widest_vectors()
    total = 0.0
    for k in range(x.size):
        total += np.float64(x[k] * x[k])
    return total


@parallel
def _sums_of_squares(x: np.ndarray, sums: np.ndarray) -> None:
    for c in prange(len(sums)):
        sums[c] = sum_of_squares(x[c * CHUNK : min((c + 1) * CHUNK, x.size)])


@global_norm.kernel("numpy")
def global_norm_cpu(arrays: Iterable[Array], *, xp: ArrayModule) -> Any:
    """Replace :func:`vitkit.ops.global_norm` for float32."""
    listed = list(arrays)  # an iterator can be gone through once, so the reference gets the list
    if not listed or not all(is_float32(array) for array in listed):
        return global_norm.reference(listed, xp=xp)
    total = 0.0
    for array in filter(np.size, listed):
        sums = np.empty(-(-array.size // CHUNK))
        _sums_of_squares(column(array), sums)
        total += float(sums.sum())
    with np.errstate(over="ignore"):  # infinite where float32 is, as in the reference
        return np.asarray(np.sqrt(F(total)))


@parallel
def _scale(x: np.ndarray, factor: float) -> None:
    for c in prange(-(-x.size // CHUNK)):
        scale_inplace(x[c * CHUNK : min((c + 1) * CHUNK, x.size)], factor)


@clip_by_norm_inplace.kernel("numpy")
def clip_by_norm_cpu(g: Array, norm: Array, max_norm: float, *, xp: ArrayModule) -> Any:
    """Replace :func:`vitkit.ops.clip_by_norm_inplace` for contiguous float32.

    Where the norm is within the limit the array is neither read nor written.
    """
    if not (served(g, norm) and np.shape(norm) == () and g.flags.carray):
        return NotImplemented
    factor = F(clip_factor(norm, max_norm, np))
    if not factor >= 1:
        _scale(g.reshape(-1), factor)
    return None


def is_float32(array: Array) -> bool:
    """Whether an array, of any size, is one of NumPy's float32."""
    return isinstance(array, np.ndarray) and array.dtype == np.float32
