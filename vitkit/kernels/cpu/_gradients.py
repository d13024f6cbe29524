"""The gradient of a weight, dy^T x: the product whose summed axis is the long one.

Both operands are packed on the way, a few hundred rows at a time: dy into strips of ``ROWS``
columns, because a column of a wide matrix maps to few sets of the cache, and x into panels. The
sums stay in the cache until all rows are in, and are then added to the gradient in place.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from vitkit.kernels.cpu._compile import parallel, serial, widest_vectors
from vitkit.kernels.cpu._moves import copy_eight, pair_rows, transpose_pairs
from vitkit.kernels.cpu._pairs import SIDE, add_columns, configure_tiles
from vitkit.kernels.cpu._processor import LANES
from vitkit.kernels.cpu._rows import add_to
from vitkit.kernels.cpu._tile import PANEL, ROWS, multiply

STEPS = 128  # rows that are multiplied at once: their panels stay in the first-level cache
BLOCK = 384  # rows, and columns, of the weight's gradient that stay in the cache
# Strips and panels are a line of the cache longer than they need: at a power of two apart, all that
# are written to in turn would fall into the same few places of it.
STRIP, SLAB = STEPS * ROWS + 16, STEPS * PANEL + 16
STRIPS_AT = BLOCK * BLOCK
PANELS_AT = STRIPS_AT + BLOCK // ROWS * STRIP
GRADIENT_SCRATCH = PANELS_AT + BLOCK // PANEL * SLAB


@serial
def _pack_into_strips(row: np.ndarray, k: int, strips: np.ndarray) -> None:
    """Write a piece of a row of dy to place ``k`` of strips of ROWS numbers, zeros beyond it."""
    source, result = row.ctypes.data, strips.ctypes.data + k * ROWS * 4
    whole = (row.size - 2) // ROWS * ROWS  # copies take two numbers more than they need
    for i in range(0, whole, ROWS):
        copy_eight(source + i * 4, result + i // ROWS * STRIP * 4)
    for i in range(whole, (row.size + ROWS - 1) // ROWS * ROWS):
        strips[i // ROWS * STRIP + k * ROWS + i % ROWS] = row[i] if i < row.size else 0


@serial
def _pack_into_panels(row: np.ndarray, k: int, panels: np.ndarray) -> None:
    """Write a piece of a row of x to place ``k`` of panels, zeros beyond it."""
    widest_vectors()
    for p in range((row.size + PANEL - 1) // PANEL):
        line = panels[p * SLAB + k * PANEL : p * SLAB + (k + 1) * PANEL]
        piece = row[p * PANEL : (p + 1) * PANEL]
        if piece.size == PANEL:
            for i in range(PANEL):
                line[i] = piece[i]
        else:
            for i in range(PANEL):
                line[i] = piece[i] if i < piece.size else 0


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
    strips, panels = scratch[STRIPS_AT:PANELS_AT], scratch[PANELS_AT:]
    for first in range(0, dy.shape[0], STEPS):
        count = min(STEPS, dy.shape[0] - first)
        for k in range(count):
            row = dy[first + k, i0:i1]
            _pack_into_strips(row, k, strips)
            if j0 == 0:
                add_to(row, dbias[i0:i1])
            _pack_into_panels(x[first + k, j0:j1], k, panels)
        for j in range(j0, j1, PANEL):
            panel = panels.ctypes.data + (j - j0) // PANEL * SLAB * 4
            for i in range(i0, i1, ROWS):
                multiply(
                    ROWS,
                    PANEL,
                    count,
                    strips.ctypes.data + (i - i0) // ROWS * STRIP * 4,
                    4,
                    ROWS * 4,
                    panel,
                    PANEL * 4,
                    scratch.ctypes.data + ((i - i0) * BLOCK + j - j0) * 4,
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
