"""The norm of many arrays on a GPU, and clipping by it; the meaning is in :mod:`vitkit.ops.norms`.

Squares and sums are float32, as in the reference, and added up as a tree over pieces whose size
does not depend on the GPU.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from vitkit.backend import Array, ArrayModule
from vitkit.kernels.cuda._arrays import WIDTH, plain, served, vector
from vitkit.kernels.cuda._kernel import Family, blocks
from vitkit.ops.norms import clip_by_norm_inplace, global_norm

THREADS, ROUNDS = 256, 16  # of a block
LAST = 1024  # threads of the one block that adds up what the others found
SQUARES = Family("norms.cuh", "sum_of_squares<{v}>", v=(1, WIDTH))
NORM = Family("norms.cuh", "norm_of_sums")
SCALE = Family("norms.cuh", "scale_by_clip<{v}>", v=(1, WIDTH))


@global_norm.kernel("cupy")
def global_norm_cuda(arrays: Iterable[Array], *, xp: ArrayModule) -> Any:
    """Replace :func:`vitkit.ops.global_norm` for float32."""
    listed = list(arrays)  # an iterator can be gone through once, so the reference gets the list
    filled = [plain(array, xp) for array in listed if array.size]
    if not filled or any(array.dtype != "float32" for array in listed):
        return global_norm.reference(listed, xp=xp)
    widths = [vector(WIDTH, array) for array in filled]
    counts = [
        blocks(array.size, THREADS * ROUNDS * v) for array, v in zip(filled, widths, strict=True)
    ]
    sums, norm = xp.empty(sum(counts), "float32"), xp.empty((), "float32")
    start = 0
    for array, v, count in zip(filled, widths, counts, strict=True):
        part = sums[start : start + count]
        SQUARES(v=v)((count,), (THREADS,), array, np.int64(array.size), part, xp=xp)
        start += count
    NORM()((1,), (LAST,), sums, start, norm, xp=xp)
    return norm


@clip_by_norm_inplace.kernel("cupy")
def clip_by_norm_cuda(g: Array, norm: Array, max_norm: float, *, xp: ArrayModule) -> Any:
    """Replace :func:`vitkit.ops.clip_by_norm_inplace` for contiguous float32.

    Where the norm is within the limit nothing is read or written but the norm.
    """
    if not (served(g, norm) and norm.shape == () and g.flags.c_contiguous):
        return NotImplemented
    v = vector(WIDTH, g)
    grid, count = (blocks(g.size, THREADS * v),), np.int64(g.size)
    SCALE(v=v)(grid, (THREADS,), g, count, norm, float(max_norm), xp=xp)
    return None
