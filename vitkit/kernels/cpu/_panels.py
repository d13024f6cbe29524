"""Matrices cut into panels: the order in which the tiles of a product read them.

A panel is ``PANEL`` columns of the right-hand matrix, row after row, filled up with zeros at the
right; the next panel follows. A weight (out, in) is packed twice, for the two products it is in:
by :func:`pack_transposed` for ``x W^T``, by :func:`pack` for ``dy W``. It is done anew in each
call: one pass over the weight, a hundredth of the product, buys that no copy can go stale.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange, types
from numba.extending import overload

from vitkit.kernels.cpu._ahead import NOTHING, Soon, moved
from vitkit.kernels.cpu._arrays import plain
from vitkit.kernels.cpu._compile import parallel, serial, widest_vectors
from vitkit.kernels.cpu._memory import empty, scratch
from vitkit.kernels.cpu._moves import pair_up_line, transpose_tile
from vitkit.kernels.cpu._numbers import pair_up
from vitkit.kernels.cpu._pairs import SIDE, configure_tiles, multiply_rows
from vitkit.kernels.cpu._processor import LANES
from vitkit.kernels.cpu._threads import threads
from vitkit.kernels.cpu._tile import PANEL, multiply

GROUP = 6 * PANEL  # columns that are finished before the next rows are begun


@serial
def _pack_transposed_panel(weight: np.ndarray, first: int, panel: np.ndarray) -> None:
    """Fill one panel (in, PANEL) with the rows ``first ...`` of a weight, as columns."""
    widest_vectors()
    depth, count = weight.shape[1], min(PANEL, weight.shape[0] - first)
    whole, tiled = count // LANES * LANES, depth // LANES * LANES
    source = weight.ctypes.data + first * depth * 4
    for i in range(0, whole, LANES):
        for k in range(0, tiled, LANES):
            transpose_tile(
                source + (i * depth + k) * 4,
                depth * 4,
                panel.ctypes.data + (k * PANEL + i) * 4,
                PANEL * 4,
            )
        for k in range(tiled, depth):
            for lane in range(LANES):
                panel[k, i + lane] = weight[first + i + lane, k]
    for i in range(whole, count):
        for k in range(depth):
            panel[k, i] = weight[first + i, k]
    for i in range(count, PANEL):
        for k in range(depth):
            panel[k, i] = 0


@serial
def copy_columns(matrix: np.ndarray, first_row: int, first: int, panel: np.ndarray) -> None:
    """Fill one panel with the columns ``first ...`` of the rows ``first_row ...``."""
    widest_vectors()
    count = min(PANEL, matrix.shape[1] - first)
    for k in range(panel.shape[0]):
        row, filled = matrix[first_row + k, first : first + count], panel[k]
        if count == PANEL:
            for i in range(PANEL):
                filled[i] = row[i]
        else:
            for i in range(count):
                filled[i] = row[i]
            for i in range(count, PANEL):
                filled[i] = 0


@parallel
def pack_transposed(weight: np.ndarray, panels: np.ndarray, threads: int) -> None:
    """Pack a weight (out, in) for ``x W^T``: out is cut into panels of ``in`` rows."""
    width, depth = weight.shape
    count = (width + PANEL - 1) // PANEL
    for t in prange(threads):
        for p in range(count * t // threads, count * (t + 1) // threads):
            panel = panels[p * PANEL * depth : (p + 1) * PANEL * depth].reshape((depth, PANEL))
            _pack_transposed_panel(weight, p * PANEL, panel)


@parallel
def pack(matrix: np.ndarray, panels: np.ndarray, threads: int) -> None:
    """Pack a matrix (depth, width) as it is: a weight for ``dy W``."""
    depth, width = matrix.shape
    count = (width + PANEL - 1) // PANEL
    for t in prange(threads):
        for p in range(count * t // threads, count * (t + 1) // threads):
            panel = panels[p * PANEL * depth : (p + 1) * PANEL * depth].reshape((depth, PANEL))
            copy_columns(matrix, 0, p * PANEL, panel)


@parallel
def pack_transposed_pairs(
    weight: np.ndarray, panels: np.ndarray, scratch: np.ndarray, threads: int
) -> None:
    """Pack a weight (out, in) for ``x W^T`` as bfloat16, two neighbours of a row to a word.

    Words are moved as float32, of whose values nothing is asked.
    """
    width, depth = weight.shape
    pairs = depth // 2
    for t in prange(threads):
        moved = scratch[t].ctypes.data
        for n in range(width // LANES * t // threads, width // LANES * (t + 1) // threads):
            first = n * LANES
            panel = panels.ctypes.data + (first // SIDE * SIDE * pairs + first % SIDE) * 4
            for k in range(0, pairs, LANES):
                for i in range(LANES):
                    row = weight.ctypes.data + ((first + i) * depth + 2 * k) * 4
                    pair_up_line(row, moved + i * LANES * 4)
                transpose_tile(moved, LANES * 4, panel + k * SIDE * 4, SIDE * 4)


@parallel
def pack_pairs(matrix: np.ndarray, panels: np.ndarray, threads: int) -> None:
    """Pack a matrix (depth, width) as it is, as bfloat16, two neighbours of a column to a word."""
    depth, width = matrix.shape
    pairs = depth // 2
    for t in prange(threads):
        for p in range(pairs * t // threads, pairs * (t + 1) // threads):
            for j in range(0, width, SIDE):
                begin = (j * pairs) + p * SIDE
                pair_up(
                    matrix[2 * p, j : j + SIDE],
                    matrix[2 * p + 1, j : j + SIDE],
                    panels[begin : begin + SIDE],
                )


def packed_transposed(weight: np.ndarray, precision: str = "float32") -> np.ndarray:
    """Return the panels of a weight (out, in) for ``x W^T``."""
    width, depth = weight.shape
    if precision == "bfloat16":
        panels = empty((width * depth,), np.uint16)
        pack_transposed_pairs(plain(weight), panels.view(np.float32), scratch(LANES**2), threads())
        return panels
    panels = empty((-(-width // PANEL) * PANEL * depth,))
    pack_transposed(plain(weight), panels, threads())
    return panels


def packed(matrix: np.ndarray, precision: str = "float32") -> np.ndarray:
    """Return the panels of a matrix (depth, width): those of a weight for ``dy W``."""
    depth, width = matrix.shape
    if precision == "bfloat16":
        panels = empty((width * depth,), np.uint16)
        pack_pairs(plain(matrix), panels.view(np.uint32), threads())
        return panels
    panels = empty((-(-width // PANEL) * PANEL * depth,))
    pack(plain(matrix), panels, threads())
    return panels


DEPTH = 768  # numbers of a row that are summed at once: longer panels do not stay in the cache


@serial
def _multiply_float32(
    rows: int,
    first: int,
    last: int,
    depth: int,
    a: int,
    a_row: int,
    panels: np.ndarray,
    c: int,
    c_row: int,
    soon: Soon,
) -> None:
    for k in range(0, depth, DEPTH):
        for j in range(first, last, PANEL):
            panel = panels.ctypes.data + (j // PANEL * depth + k) * PANEL * 4
            multiply(
                rows,
                min(PANEL, last - j),
                min(DEPTH, depth - k),
                a + 4 * k,
                a_row,
                4,
                panel,
                PANEL * 4,
                c + 4 * (j - first),
                c_row,
                1 if k else 0,
                moved(soon, j - first) if k == 0 else NOTHING,
            )


@serial
def _multiply_bfloat16(
    rows: int,
    first: int,
    last: int,
    depth: int,
    a: int,
    a_row: int,
    panels: np.ndarray,
    c: int,
    c_row: int,
    soon: Soon,
) -> None:
    for j in range(first, last, SIDE):
        panel = panels.ctypes.data + j * depth * 2
        multiply_rows(
            rows, depth, a, a_row, panel, c + 4 * (j - first), c_row, moved(soon, j - first)
        )


def multiply_panels(
    rows: int,
    first: int,
    last: int,
    depth: int,
    a: int,
    a_row: int,
    panels: Any,
    c: int,
    c_row: int,
    soon: Soon,
) -> None:
    """Write the columns ``first`` to ``last`` of A times packed panels to C; ``first`` begins one.

    Addresses and steps are in bytes. Only inside compiled kernels. ``soon`` is asked for meanwhile.
    """


@overload(multiply_panels)
def _multiply_panels(
    rows: Any,
    first: Any,
    last: Any,
    depth: Any,
    a: Any,
    a_row: Any,
    panels: Any,
    c: Any,
    c_row: Any,
    soon: Any,
) -> Any:
    kernel = _multiply_bfloat16 if panels.dtype == types.uint16 else _multiply_float32

    def chosen(
        rows: Any,
        first: Any,
        last: Any,
        depth: Any,
        a: Any,
        a_row: Any,
        panels: Any,
        c: Any,
        c_row: Any,
        soon: Any,
    ) -> Any:
        kernel(rows, first, last, depth, a, a_row, panels, c, c_row, soon)

    return chosen


def prepare(panels: Any) -> None:
    """Make the running thread ready for products with these panels; only inside kernels."""


@overload(prepare)
def _prepare(panels: Any) -> Any:
    def tiles(panels: Any) -> Any:
        configure_tiles()

    def nothing(panels: Any) -> Any:
        return None

    return tiles if panels.dtype == types.uint16 else nothing
