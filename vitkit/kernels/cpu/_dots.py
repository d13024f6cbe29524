"""Matrix products of bfloat16 by dot products of pairs (AVX-512 BF16).

One instruction multiplies 16 pairs with 16 pairs and adds the 32 products, two and two, to 16 sums:
twice the work of a float32 one in the same time. Operands lie as the tile unit wants them, rows of
the right-hand one in pairs (:mod:`vitkit.kernels.cpu._amx`), so all that is around the products is
written once. A pair is a word, and so the tile is that of float32 with another instruction.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from vitkit.kernels.cpu._ahead import Soon, ask_for_tile
from vitkit.kernels.cpu._amx import SIDE
from vitkit.kernels.cpu._compile import function, intrinsic, serial
from vitkit.kernels.cpu._processor import LANES
from vitkit.kernels.cpu._tile import tiles
from vitkit.kernels.cpu._vectors import VECTOR, Bfloat

ROWS, REST = 12, 4  # rows of a tile of two vectors, and of one for what is left: they come in fours
ROW_UNIT, DEPTH_UNIT = REST, 2


def _add_dots(builder: Any, pair: Any, row: Any, total: Any) -> Any:
    """Add the products of one pair with a row of pairs to a vector of sums."""
    pairs = ir.VectorType(Bfloat(), 2 * LANES)
    name = "llvm.x86.avx512bf16.dpbf16ps.512"
    call = function(builder.module, name, VECTOR, VECTOR, pairs, pairs)
    return builder.call(call, [total, builder.bitcast(pair, pairs), builder.bitcast(row, pairs)])


_TILE, _REST = (tiles(rows, 2, _add_dots) for rows in (ROWS, REST))


@intrinsic
def configure_tiles(context: Any) -> Any:
    """Do nothing: vector registers are always there."""
    return types.void(), lambda target, builder, signature, arguments: target.get_dummy_value()


@serial
def multiply_tiles(
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
    """Do as :func:`vitkit.kernels.cpu._amx.multiply_tiles`; rows in fours, depth in twos."""
    pairs = depth // 2
    for j in range(0, width, SIDE):
        vectors = min(width - j, SIDE) // LANES
        i = 0
        while i < rows:
            at_a, at_b, at_c = a + i * a_row, b + 4 * j, c + i * c_row + 4 * j
            if i + ROWS <= rows:
                _TILE(vectors, at_a, a_row, 4, at_b, b_row, at_c, c_row, pairs, adds)
                i += ROWS
            else:
                _REST(vectors, at_a, a_row, 4, at_b, b_row, at_c, c_row, pairs, adds)
                i += REST


@serial
def multiply_rows(
    rows: int, depth: int, a: int, a_row: int, panel: int, c: int, c_row: int, soon: Soon
) -> None:
    """Do as :func:`vitkit.kernels.cpu._amx.multiply_rows`, and ask for ``soon`` meanwhile."""
    for r in range(0, rows, ROWS):
        i = min(r, rows - ROWS)
        ask_for_tile(soon, i, 0, ROWS, SIDE)
        _TILE(2, a + i * a_row, a_row, 4, panel, 4 * SIDE, c + i * c_row, c_row, depth // 2, 0)


@serial
def add_columns(rows: int, depth: int, a: int, a_row: int, panel: int, c: int, c_row: int) -> None:
    """Do as :func:`vitkit.kernels.cpu._amx.add_columns`."""
    multiply_tiles(rows, SIDE, depth, a, a_row, panel, 4 * SIDE, c, c_row, 1)
