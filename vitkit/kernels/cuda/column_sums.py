"""Sums over the rows of a matrix, on a GPU."""

from __future__ import annotations

from vitkit.backend import Array, ArrayModule
from vitkit.kernels.cuda._kernel import STORED, Family, blocks, type_of

COLUMNS, THREADS, WARPS = 32, 256, 8  # of a block
PARTS = 64  # blocks that share the rows at most, on any GPU, for equal bits
SUMS = Family("column_sums.cuh", "column_sums<{x}>", x=STORED)


def add_column_sums(x: Array, out: Array, *, adds: bool = True, xp: ArrayModule) -> None:
    """Add the sums over the rows of ``x`` (rows, width) to ``out`` (width,), or write them."""
    rows, width = x.shape
    across, parts = blocks(width, COLUMNS), min(PARTS, blocks(rows, 4 * WARPS))
    if parts > 1:
        some = xp.empty((parts, width), "float32")
        SUMS(x=type_of(x))((across, parts), (THREADS,), x, some, rows, width, 0, xp=xp)
        x, rows = some, parts
    SUMS(x=type_of(x))((across, 1), (THREADS,), x, out, rows, width, int(adds), xp=xp)
