"""How tiles and lines of arrays are moved: transposed, paired, copied.

All take addresses, and steps in bytes. Words are pairs of bfloat16; they are moved as float32, of
whose values nothing is asked.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from vitkit.kernels.cpu._compile import intrinsic
from vitkit.kernels.cpu._pairs import SIDE
from vitkit.kernels.cpu._processor import LANES
from vitkit.kernels.cpu._vectors import VECTOR, Bfloat, load, spread, store


def _transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """Return the columns of a tile as vectors, given its rows."""
    # Exchange halves of rows that are half a tile apart, then quarters, ...
    rows, distance = list(rows), len(rows) // 2
    while distance:
        for i in [i for i in range(len(rows)) if not i & distance]:
            upper, lower = rows[i], rows[i + distance]
            low = [len(rows) + (e ^ distance) if e & distance else e for e in range(len(rows))]
            high = [len(rows) + e if e & distance else e | distance for e in range(len(rows))]
            for row, taken in ((i, low), (i + distance, high)):
                mask = ir.Constant(ir.VectorType(ir.IntType(32), len(rows)), taken)
                rows[row] = builder.shuffle_vector(upper, lower, mask)
        distance //= 2
    return rows


def _transpose(builder: Any, arguments: Any, change: Any) -> None:
    """Transpose LANES x LANES words, each row of which is changed on the way."""
    place, step, result, result_step = arguments
    rows = []
    for _ in range(LANES):
        rows.append(change(load(builder, place, VECTOR)))
        place = builder.add(place, step)
    for row in _transposed(builder, rows):
        store(builder, row, result)
        result = builder.add(result, result_step)


@intrinsic
def transpose_tile(context: Any, source: Any, source_row: Any, result: Any, result_row: Any) -> Any:
    """Transpose LANES x LANES float32; addresses and steps in bytes."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _transpose(builder, arguments, lambda row: row)
        return target.get_dummy_value()

    return types.void(*[types.intp] * 4), generate


@intrinsic
def transpose_scaled(
    context: Any, source: Any, source_row: Any, result: Any, result_row: Any, factor: Any
) -> Any:
    """Transpose LANES x LANES float32 times a factor; addresses and steps in bytes."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        factor = spread(builder, arguments[-1])
        _transpose(builder, arguments[:-1], lambda row: builder.fmul(row, factor))
        return target.get_dummy_value()

    return types.void(*[types.intp] * 4, types.float32), generate


@intrinsic
def transpose_pairs(
    context: Any, source: Any, source_row: Any, result: Any, result_row: Any
) -> Any:
    """Transpose 2 LANES x LANES bfloat16 to LANES rows of words, each a pair of a column."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place, step, result, result_step = arguments
        halves, words = (ir.VectorType(ir.IntType(n), LANES) for n in (16, 32))
        shift = ir.Constant(words, [16] * LANES)
        rows = []
        for _ in range(LANES):
            pair = []
            for _ in range(2):
                pair.append(builder.zext(load(builder, place, halves, 2), words))
                place = builder.add(place, step)
            rows.append(builder.or_(pair[0], builder.shl(pair[1], shift)))
        for row in _transposed(builder, rows):
            store(builder, row, result)
            result = builder.add(result, result_step)
        return target.get_dummy_value()

    return types.void(*[types.intp] * 4), generate


@intrinsic
def pair_rows(context: Any, source: Any, source_row: Any, result: Any) -> Any:
    """Write two rows of SIDE bfloat16 as one row of words; the step is in bytes."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place, step, result = arguments
        halves, words = (ir.VectorType(ir.IntType(n), SIDE) for n in (16, 32))
        low, high = (
            builder.zext(load(builder, row, halves, 2), words)
            for row in (place, builder.add(place, step))
        )
        shift = ir.Constant(words, [16] * SIDE)
        store(builder, builder.or_(low, builder.shl(high, shift)), result)
        return target.get_dummy_value()

    return types.void(*[types.intp] * 3), generate


@intrinsic
def copy_line(context: Any, source: Any, result: Any) -> Any:
    """Copy 64 bytes from one address to another."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        line = ir.VectorType(ir.IntType(16), 32)
        store(builder, load(builder, arguments[0], line, 2), arguments[1])
        return target.get_dummy_value()

    return types.void(types.intp, types.intp), generate


@intrinsic
def pair_up_line(context: Any, source: Any, result: Any) -> Any:
    """Round 2 LANES neighbouring float32 to bfloat16, and write them as LANES words."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x = load(builder, arguments[0], ir.VectorType(ir.FloatType(), 2 * LANES))
        halves = builder.fptrunc(x, ir.VectorType(Bfloat(), 2 * LANES))
        store(builder, builder.bitcast(halves, ir.VectorType(ir.IntType(32), LANES)), arguments[1])
        return target.get_dummy_value()

    return types.void(types.intp, types.intp), generate
