"""The gradient of a weight, dy^T x: the product whose summed axis is the long one.

Both operands are packed on the way, a few hundred rows at a time: dy into strips of ``ROWS``
columns, because a column of a wide matrix maps to few sets of the cache, and x into panels. The
sums stay in the cache until all rows are in, and are then added to the gradient in place.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from vitkit.kernels.cpu._amx import SIDE, add_columns, configure_tiles
from vitkit.kernels.cpu._compile import LANES, parallel, serial
from vitkit.kernels.cpu._panels import copy_columns, copy_eight, pair_rows, transpose_pairs
from vitkit.kernels.cpu._rows import add_to
from vitkit.kernels.cpu._tile import PANEL, ROWS, multiply

STEPS = 256  # rows of dy and x that are multiplied at once
BLOCK = 384  # rows, and columns, of the weight's gradient that stay in the cache
SUMS, STRIPS = (
    BLOCK * BLOCK,
    BLOCK * BLOCK + (BLOCK + ROWS) * STEPS,
)  # where the scratch memory is cut
GRADIENT_SCRATCH = STRIPS + PANEL * STEPS + PANEL


@serial
def _pack_strip(dy: np.ndarray, first: int, column: int, count: int, strip: np.ndarray) -> None:
    """Write ROWS columns of dy, from row ``first`` on, row after row; zeros where there are none."""
    source, row = dy.ctypes.data + (first * dy.shape[1] + column) * 4, dy.shape[1] * 4
    if column + 8 <= dy.shape[1]:  # two numbers more than are needed are there to be read
        for k in range(count):
            copy_eight(source + k * row, strip.ctypes.data + k * ROWS * 4)
    else:
        for k in range(count):
            for i in range(ROWS):
                there = column + i < dy.shape[1]
                strip[k * ROWS + i] = dy[first + k, column + i] if there else 0


@serial
def _gradient_block(
    dy: np.ndarray,
    x: np.ndarray,
    i0: int,
    i1: int,
    j0: int,
    j1: int,
    dbias: np.ndarray,
    scratch: np.ndarray,
) -> None:
    """Write a block of dy^T x, (i1 - i0) rows of BLOCK numbers, to the beginning of the scratch.

    With the first columns of x, add the column sums of dy to ``dbias``.
    """
    sums, strips, panel = scratch.ctypes.data, scratch[SUMS:STRIPS], scratch[STRIPS:]
    for first in range(0, dy.shape[0], STEPS):
        count = min(STEPS, dy.shape[0] - first)
        for i in range(i0, i1, ROWS):
            _pack_strip(dy, first, i, count, strips[(i - i0) * count :])
        if j0 == 0:
            for k in range(first, first + count):
                add_to(dy[k, i0:i1], dbias[i0:i1])
        for j in range(j0, j1, PANEL):
            copy_columns(x, first, j, panel[: count * PANEL].reshape((count, PANEL)))
            for i in range(i0, i1, ROWS):
                multiply(
                    ROWS,
                    PANEL,
                    count,
                    strips.ctypes.data + (i - i0) * count * 4,
                    4,
                    ROWS * 4,
                    panel.ctypes.data,
                    PANEL * 4,
                    sums + ((i - i0) * BLOCK + j - j0) * 4,
                    BLOCK * 4,
                    1 if first else 0,
                )


@parallel
def add_weight_gradient(
    dy: np.ndarray,
    x: np.ndarray,
    dweight: np.ndarray,
    dbias: np.ndarray,
    scratch: np.ndarray,
    parts: int,
) -> None:
    """Add dy^T x to a weight's gradient, and the column sums of dy to a bias's."""
    width, depth = dweight.shape
    strips, columns = (width + ROWS - 1) // ROWS, (depth + PANEL - 1) // PANEL
    tall = width >= depth  # each thread takes some rows, and all columns, or the other way round
    for t in prange(parts):
        start, end, left, right = 0, width, 0, depth
        if tall:
            start, end = strips * t // parts * ROWS, min(strips * (t + 1) // parts * ROWS, width)
        else:
            left = columns * t // parts * PANEL
            right = min(columns * (t + 1) // parts * PANEL, depth)
        for i0 in range(start, end, BLOCK):
            i1 = min(i0 + BLOCK, end)
            for j0 in range(left, right, BLOCK):
                j1 = min(j0 + BLOCK, right)
                _gradient_block(dy, x, i0, i1, j0, j1, dbias, scratch[t])
                for i in range(i0, i1):
                    line = scratch[t, (i - i0) * BLOCK : (i - i0) * BLOCK + j1 - j0]
                    add_to(line, dweight[i, j0:j1])


TILE_STEPS = 13 * SIDE  # the same for bfloat16
PAIRS = TILE_STEPS // 2
X_AT, EDGE_AT = BLOCK * PAIRS, 2 * BLOCK * PAIRS
PAIRS_SCRATCH = EDGE_AT + BLOCK * SIDE  # in words: dy^T, x, and rows that fill up the last tile


@serial
def _tile_rows(
    matrix: np.ndarray, first: int, left: int, right: int, edge: np.ndarray
) -> tuple[int, int]:
    """Return where SIDE rows of some columns are, and the step to the next row, in bytes.

    The last rows are copied and filled up with rows of zeros.
    """
    if first + SIDE <= matrix.shape[0]:
        return matrix.ctypes.data + (first * matrix.shape[1] + left) * 2, matrix.shape[1] * 2
    for k in range(SIDE):
        line = edge[k * 2 * BLOCK : k * 2 * BLOCK + right - left]
        if first + k < matrix.shape[0]:
            line[:] = matrix[first + k, left:right]
        else:
            line[:] = 0
    return edge.ctypes.data, 2 * BLOCK * 2


@serial
def _pack_steps(
    dy: np.ndarray,
    x: np.ndarray,
    i0: int,
    i1: int,
    j0: int,
    j1: int,
    first: int,
    count: int,
    work: np.ndarray,
) -> None:
    """Pack ``count`` rows, a multiple of SIDE: columns i of dy as rows of pairs, x as panels."""
    half, edge = count // 2, work[EDGE_AT:].view(np.uint16)
    for k in range(0, count, SIDE):
        place, step = _tile_rows(dy, first + k, i0, i1, edge)
        for i in range(0, i1 - i0, LANES):
            transpose_pairs(
                place + 2 * i, step, work.ctypes.data + (i * half + k // 2) * 4, 4 * half
            )
        place, step = _tile_rows(x, first + k, j0, j1, edge)
        for j in range(0, j1 - j0, SIDE):
            panel = work.ctypes.data + (X_AT + (j * half) + k // 2 * SIDE) * 4
            for p in range(SIDE // 2):
                pair_rows(place + 2 * p * step + 2 * j, step, panel + p * SIDE * 4)


@parallel
def add_weight_gradient_pairs(
    dy: np.ndarray,
    x: np.ndarray,
    dweight: np.ndarray,
    dbias: np.ndarray,
    scratch: np.ndarray,
    parts: int,
) -> None:
    """Do as :func:`add_weight_gradient` for bfloat16; widths are multiples of SIDE."""
    width, depth = dweight.shape
    tall = width >= depth
    for t in prange(parts):
        configure_tiles()
        work, row = scratch[t].view(np.uint32), depth * 4
        start, end, left, right = 0, width, 0, depth
        if tall:
            start, end = width // SIDE * t // parts * SIDE, width // SIDE * (t + 1) // parts * SIDE
        else:
            left, right = depth // SIDE * t // parts * SIDE, depth // SIDE * (t + 1) // parts * SIDE
        for i0 in range(start, end, BLOCK):
            i1 = min(i0 + BLOCK, end)
            for j0 in range(left, right, BLOCK):
                j1 = min(j0 + BLOCK, right)
                for first in range(0, dy.shape[0], TILE_STEPS):
                    taken = min(TILE_STEPS, dy.shape[0] - first)
                    count = (taken + SIDE - 1) // SIDE * SIDE
                    _pack_steps(dy, x, i0, i1, j0, j1, first, count, work)
                    if j0 == 0:
                        for k in range(first, first + taken):
                            add_to(dy[k, i0:i1], dbias[i0:i1])
                    for j in range(j0, j1, SIDE):
                        add_columns(
                            i1 - i0,
                            count,
                            work.ctypes.data,
                            2 * count,
                            work.ctypes.data + (X_AT + (j - j0) * (count // 2)) * 4,
                            dweight.ctypes.data + i0 * row + j * 4,
                            row,
                        )
