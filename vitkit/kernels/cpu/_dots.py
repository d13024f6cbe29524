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

from vitkit.kernels.cpu._amx import SIDE
from vitkit.kernels.cpu._compile import function, intrinsic, serial
from vitkit.kernels.cpu._processor import LANES
from vitkit.kernels.cpu._tile import VECTOR, compiled_tile

ROWS, FEW = 12, 4  # of a tile: 12 x 2 vectors of sums, and what is left of 16 or 32 rows


class _Bfloat(ir.Type):  # type: ignore[misc]
    """LLVM's type, which llvmlite does not name."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Bfloat)

    def __hash__(self) -> int:
        return hash(_Bfloat)


def _add_dots(builder: Any, pair: Any, row: Any, total: Any) -> Any:
    """Add the products of one pair with a row of pairs to a vector of sums."""
    pairs = ir.VectorType(_Bfloat(), 2 * LANES)
    name = "llvm.x86.avx512bf16.dpbf16ps.512"
    call = function(builder.module, name, VECTOR, VECTOR, pairs, pairs)
    return builder.call(call, [total, builder.bitcast(pair, pairs), builder.bitcast(row, pairs)])


_WHOLE, _LEFT, _FEW, _FEW_LEFT = (
    compiled_tile(rows, vectors, _add_dots)
    for rows, vectors in ((ROWS, 2), (ROWS, 1), (FEW, 2), (FEW, 1))
)


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
    """Do as :func:`vitkit.kernels.cpu._amx.multiply_tiles`."""
    pairs = depth // 2
    for j in range(0, width, SIDE):
        at_b, at_c, whole = b + 4 * j, c + 4 * j, j + SIDE <= width
        i = 0
        while i + ROWS <= rows:
            if whole:
                _WHOLE(a + i * a_row, a_row, 4, at_b, b_row, at_c + i * c_row, c_row, pairs, adds)
            else:
                _LEFT(a + i * a_row, a_row, 4, at_b, b_row, at_c + i * c_row, c_row, pairs, adds)
            i += ROWS
        while i < rows:
            if whole:
                _FEW(a + i * a_row, a_row, 4, at_b, b_row, at_c + i * c_row, c_row, pairs, adds)
            else:
                _FEW_LEFT(
                    a + i * a_row, a_row, 4, at_b, b_row, at_c + i * c_row, c_row, pairs, adds
                )
            i += FEW


@serial
def multiply_rows(
    rows: int, depth: int, a: int, a_row: int, panel: int, c: int, c_row: int
) -> None:
    """Do as :func:`vitkit.kernels.cpu._amx.multiply_rows`."""
    for r in range(0, rows, ROWS):
        i = min(r, rows - ROWS)
        _WHOLE(a + i * a_row, a_row, 4, panel, 4 * SIDE, c + i * c_row, c_row, depth // 2, 0)


@serial
def add_columns(rows: int, depth: int, a: int, a_row: int, panel: int, c: int, c_row: int) -> None:
    """Do as :func:`vitkit.kernels.cpu._amx.add_columns`."""
    multiply_tiles(rows, SIDE, depth, a, a_row, panel, 4 * SIDE, c, c_row, 1)
