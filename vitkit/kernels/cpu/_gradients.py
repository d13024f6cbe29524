"""The gradient of a weight, dy^T x: the product whose summed axis is the long one.

The sums of a block stay in the cache until all rows are in, and are then added to the gradient in
place. In float32 dy and x are read where they lie, a few rows at a time, which were asked for while
those before them were multiplied: packing them first takes longer than what it saves. bfloat16
has to be paired up, and is packed.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from vitkit.kernels.cpu._ahead import ask_for_rows
from vitkit.kernels.cpu._compile import parallel, serial
from vitkit.kernels.cpu._moves import pair_rows, transpose_pairs
from vitkit.kernels.cpu._pairs import SIDE, add_columns, configure_tiles
from vitkit.kernels.cpu._processor import LANES
from vitkit.kernels.cpu._rows import add_to, share
from vitkit.kernels.cpu._tile import tiles

STEPS = 128  # rows that are multiplied at once: what a tile reads of them stays in the cache
BLOCK = 384  # rows, and columns, of the weight's gradient that stay in the cache
# A tile here is tall and narrow: what it reads of dy and x lies in whole lines of the cache.
ROWS, REST, VECTORS = (12, 4, 2) if LANES == 16 else (6, 2, 2)
WIDTH = VECTORS * LANES
GRADIENT_SCRATCH = BLOCK * BLOCK + STEPS * WIDTH
_TILE, _REST, _ROW = (tiles(rows, VECTORS) for rows in (ROWS, REST, 1))


@serial
def _add_tile(
    rows: int,
    width: int,
    count: int,
    dy: int,
    dy_row: int,
    x: int,
    x_row: int,
    sums: int,
    adds: int,
) -> None:
    """Write, or add, to sums ``rows`` columns of dy times ``width`` of x, over ``count`` rows."""
    vectors, row, i = (width + LANES - 1) // LANES, BLOCK * 4, 0
    while i < rows:
        at, to = dy + 4 * i, sums + i * row
        if rows == ROWS:
            _TILE(vectors, at, 4, dy_row, x, x_row, to, row, count, adds)
            i += ROWS
        elif i + REST <= rows:
            _REST(vectors, at, 4, dy_row, x, x_row, to, row, count, adds)
            i += REST
        else:
            _ROW(vectors, at, 4, dy_row, x, x_row, to, row, count, adds)
            i += 1


@serial
def _copy_edge(x: np.ndarray, first: int, count: int, j: int, width: int, edge: np.ndarray) -> None:
    """Copy the last columns of some rows: behind the last row there is nothing to be read."""
    for k in range(count):
        for c in range(WIDTH):
            edge[k * WIDTH + c] = x[first + k, j + c] if c < width else 0


@serial
def _add_rows(
    dy: np.ndarray,
    x: np.ndarray,
    first: int,
    i0: int,
    i1: int,
    j0: int,
    j1: int,
    sums: np.ndarray,
    edge: np.ndarray,
) -> None:
    """Add up to STEPS rows to a block of dy^T x, and ask for the rows that follow."""
    count = min(STEPS, dy.shape[0] - first)
    dy_row, x_row = dy.shape[1] * 4, x.shape[1] * 4
    ahead, done = first + STEPS, 0
    all_tiles = ((i1 - i0 + ROWS - 1) // ROWS) * ((j1 - j0 + WIDTH - 1) // WIDTH)
    for j in range(j0, j1, WIDTH):
        width = min(WIDTH, j1 - j)
        place, step = x.ctypes.data + first * x_row + j * 4, x_row
        if width % LANES:
            _copy_edge(x, first, count, j, width, edge)
            place, step = edge.ctypes.data, WIDTH * 4
        for i in range(i0, i1, ROWS):
            # The same few rows with each tile: asked for at once, they would be waited for.
            before, done = STEPS * done // all_tiles, done + 1
            wanted = STEPS * done // all_tiles - before
            ask_for_rows(x, ahead + before, j0, wanted, j1 - j0)
            ask_for_rows(dy, ahead + before, i0, wanted, i1 - i0)
            _add_tile(
                min(ROWS, i1 - i),
                width,
                count,
                dy.ctypes.data + first * dy_row + i * 4,
                dy_row,
                place,
                step,
                sums.ctypes.data + ((i - i0) * BLOCK + j - j0) * 4,
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
    tall = width >= depth  # each thread takes some rows, and all columns, or the other way round
    if not tall:  # each must meet the rows of dy, since it sums its share of their columns
        parts = min(parts, (depth + WIDTH - 1) // WIDTH)
    for t in prange(parts):
        sums, edge = scratch[t, : BLOCK * BLOCK], scratch[t, BLOCK * BLOCK :]
        first_sum, last_sum = share(width, ROWS, t, parts)
        top, bottom, left, right = 0, width, 0, depth
        if tall:
            top, bottom = first_sum, last_sum
        else:
            left, right = share(depth, WIDTH, t, parts)
        for i0 in range(top, bottom, BLOCK):
            i1 = min(i0 + BLOCK, bottom)
            c0 = max(i0, first_sum)
            c1 = max(min(i1, last_sum), c0)
            for j0 in range(left, right, BLOCK):
                j1 = min(j0 + BLOCK, right)
                for first in range(0, dy.shape[0], STEPS):
                    if j0 == left:
                        for k in range(first, min(first + STEPS, dy.shape[0])):
                            add_to(dy[k, c0:c1], dbias[c0:c1])
                    _add_rows(dy, x, first, i0, i1, j0, j1, sums, edge)
                for i in range(i0, i1):
                    line = sums[(i - i0) * BLOCK : (i - i0) * BLOCK + j1 - j0]
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
    if not tall:
        parts = min(parts, depth // SIDE)
    for t in prange(parts):
        configure_tiles()
        work, row = scratch[t].view(np.uint32), depth * 4
        first_sum, last_sum = share(width, SIDE, t, parts)
        top, bottom, left, right = 0, width, 0, depth
        if tall:
            top, bottom = first_sum, last_sum
        else:
            left, right = share(depth, SIDE, t, parts)
        for i0 in range(top, bottom, BLOCK):
            i1 = min(i0 + BLOCK, bottom)
            c0 = max(i0, first_sum)
            c1 = max(min(i1, last_sum), c0)
            for j0 in range(left, right, BLOCK):
                j1 = min(j0 + BLOCK, right)
                for first in range(0, dy.shape[0], TILE_STEPS):
                    taken = min(TILE_STEPS, dy.shape[0] - first)
                    count = (taken + SIDE - 1) // SIDE * SIDE
                    _pack_steps(dy, x, i0, i1, j0, j1, first, count, work)
                    if j0 == left:
                        for k in range(first, first + taken):
                            add_to(dy[k, c0:c1], dbias[c0:c1])
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
