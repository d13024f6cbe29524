"""Products by the tile unit's functions in software, sizes at which each kind of block occurs.

Run as ``tile_products.py LIBRARY [FAULT]``. Numbers are small and whole: their sums are exact, in
whatever order, and so is the comparison.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from software_tiles import Unit, install

SIDE, BESIDE = 32, 16  # of a block; numbers that rows of each matrix are longer than its columns
SIZES = [(16, 16, 32), (32, 48, 64), (48, 32, 32), (80, 80, 96), (16, 64, 160)]
ROWS = [32, 33, 63, 64, 97]


def matrix(rng: Any, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Return whole numbers as float32, and their bfloat16 in rows that are longer."""
    numbers = rng.integers(-8, 9, (rows, columns)).astype(np.float32)
    bits = np.full((rows, columns + BESIDE), 0x7FC0, np.uint16)  # NaN: not to be read
    bits[:, :columns] = numbers.view(np.uint32) >> 16
    return numbers, bits


def paired(b: np.ndarray) -> np.ndarray:
    """Return rows in pairs, each word one number of the first and one of the second."""
    return np.ascontiguousarray(b.reshape(len(b) // 2, 2, -1).swapaxes(1, 2))


def cases() -> Iterator[tuple[int, int, int, int, int]]:
    """Return which function, 0 multiply_tiles, 1 multiply_rows, 2 add_columns; sizes; adds."""
    for rows, width, depth in SIZES:
        for adds in (0, 1):
            yield 0, rows, width, depth, adds
    for rows in ROWS:
        yield 1, rows, SIDE, 64, 0
    for rows in (32, 96):
        yield 2, rows, SIDE, 64, 1


def check(unit: Unit, product: Any, case: tuple[int, int, int, int, int]) -> None:
    which, rows, width, depth, adds = case
    rng = np.random.default_rng(rows + width + depth)
    left, a = matrix(rng, rows, depth)
    right, bits = matrix(rng, depth, width)
    b = paired(bits if which == 0 else bits[:, :width])  # panels have no other columns
    before = rng.integers(-8, 9, (rows, width + BESIDE)).astype(np.float32)
    c, expected = before.copy(), before.copy()
    expected[:, :width] = left @ right + (before[:, :width] if adds else 0)
    unit.begin(a, b, c)
    sizes = (rows, width, depth)
    places = [(array.ctypes.data, array.strides[0]) for array in (a, b, c)]
    product(which, *sizes, *(number for place in places for number in place), adds)
    np.testing.assert_array_equal(c, expected, err_msg=f"{case}")


def main() -> None:
    unit = install(*sys.argv[1:])

    import numba

    from vitkit.kernels.cpu._ahead import NOTHING
    from vitkit.kernels.cpu._pairs import (
        add_columns,
        configure_tiles,
        multiply_rows,
        multiply_tiles,
    )

    @numba.njit
    def product(
        which: int,
        rows: int,
        width: int,
        depth: int,
        a: int,
        a_row: int,
        b: int,
        b_row: int,
        c: int,
        c_row: int,
        adds: int,
    ) -> None:
        configure_tiles()
        if which == 0:
            multiply_tiles(rows, width, depth, a, a_row, b, b_row, c, c_row, adds)
        elif which == 1:
            multiply_rows(rows, depth, a, a_row, b, c, c_row, NOTHING)
        else:
            add_columns(rows, depth, a, a_row, b, c, c_row)

    for case in cases():
        check(unit, product, case)
    print(*unit.counts())


if __name__ == "__main__":
    main()
