"""Sums over the rows of a matrix, on a GPU."""

from __future__ import annotations

from vitkit.backend import Array, ArrayModule
from vitkit.kernels.cuda._arrays import ALIGNMENT, WIDTH
from vitkit.kernels.cuda._kernel import LOW, Family, blocks, type_of

LANES, THREADS, WARPS = 32, 256, 8  # of a warp, and of a block
PARTS = 128  # blocks that share the rows at most, on any GPU, for equal bits
SUMS = Family("column_sums.cuh", "column_sums<float, {v}>", v=(1, WIDTH))
SUMS_LOW = Family("column_sums.cuh", "column_sums<{x}, {v}>", x=LOW, v=(1, 2 * WIDTH))


def add_column_sums(x: Array, out: Array, *, adds: bool = True, xp: ArrayModule) -> None:
    """Add the sums over the rows of ``x`` (rows, width) to ``out`` (width,), or write them."""
    parts = min(PARTS, blocks(len(x), 4 * WARPS))
    if parts > 1:
        some = xp.empty((parts, x.shape[1]), "float32")
        _sum(x, some, _at_once(x), False, xp)
        x = some
    _sum(x, out[None], 1, adds, xp)  # of few rows, so that many blocks share the columns


def _at_once(x: Array) -> int:
    """Return how many numbers of a row fill 16 bytes, or 1 where rows do not lie so."""
    most = ALIGNMENT // int(x.itemsize)
    return most if x.shape[1] % most == 0 and x.data.ptr % ALIGNMENT == 0 else 1


def _sum(x: Array, out: Array, v: int, adds: bool, xp: ArrayModule) -> None:
    """Write, or add, to each row of ``out`` the sums over a share of the rows of ``x``."""
    (rows, width), low = x.shape, x.dtype != "float32"
    kernel = SUMS_LOW(x=type_of(x), v=v) if low else SUMS(v=v)
    grid = blocks(width, LANES * v), len(out)
    kernel(grid, (THREADS,), x, out, rows, width, int(adds), xp=xp)
