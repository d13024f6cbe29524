"""Vector registers by hand, where loops that Numba makes into vectors are not good enough.

A loop over a short row spends its time on what is left over behind the last whole vector, and on
finding out whether its arrays overlap. These functions build LLVM instead, inside an intrinsic.
Addresses and offsets are in bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from llvmlite import ir

from vitkit.kernels.cpu import _math
from vitkit.kernels.cpu._compile import function
from vitkit.kernels.cpu._processor import LANES

FLOAT, WORD, INT = ir.FloatType(), ir.IntType(32), ir.IntType(64)
VECTOR = ir.VectorType(FLOAT, LANES)
BYTES = 4 * LANES  # of one vector


class Bfloat(ir.Type):  # type: ignore[misc]
    """LLVM's bfloat16, which llvmlite does not name."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bfloat)

    def __hash__(self) -> int:
        return hash(Bfloat)


def load(builder: Any, address: Any, kind: Any, align: int = 4) -> Any:
    """Return what is at an address, of an LLVM type."""
    value = builder.load(builder.inttoptr(address, ir.PointerType(kind)))
    value.align = align
    return value


def store(builder: Any, value: Any, address: Any, align: int = 4) -> None:
    """Write a value to an address."""
    stored = builder.store(value, builder.inttoptr(address, ir.PointerType(value.type)))
    stored.align = align


def spread(builder: Any, number: Any) -> Any:
    """Return a vector with ``number`` in every lane."""
    undefined = ir.Constant(VECTOR, ir.Undefined)
    first = builder.insert_element(undefined, number, ir.Constant(WORD, 0))
    lanes = ir.Constant(ir.VectorType(WORD, LANES), [0] * LANES)
    return builder.shuffle_vector(first, undefined, lanes)


def whole(value: Any) -> Any:
    """Return a constant vector."""
    return ir.Constant(VECTOR, [float(value)] * LANES)


def fma(builder: Any, x: Any, y: Any, total: Any) -> Any:
    """Return x y + total, rounded once."""
    name = f"llvm.fma.v{LANES}f32"
    call = function(builder.module, name, VECTOR, VECTOR, VECTOR, VECTOR)
    return builder.call(call, [x, y, total])


def over_vectors(
    builder: Any,
    count: Any,
    first: list[Any],
    step: Callable[[Any, list[Any]], list[Any]],
) -> list[Any]:
    """Build a loop over ``count`` float32, a multiple of LANES and at least that.

    ``step(offset, values)`` returns new values, given the offset of a vector and those that the
    last step returned, or the first; the values after the last step are returned.
    """
    before, loop = builder.block, builder.append_basic_block("vectors")
    done = builder.append_basic_block("done")
    builder.branch(loop)
    builder.position_at_end(loop)
    place = builder.phi(count.type)
    values = [builder.phi(value.type) for value in first]
    following = step(builder.mul(place, ir.Constant(count.type, 4)), values)
    moved = builder.add(place, ir.Constant(count.type, LANES))
    place.add_incoming(ir.Constant(count.type, 0), before)
    place.add_incoming(moved, loop)
    for value, start, new in zip(values, first, following, strict=True):
        value.add_incoming(start, before)
        value.add_incoming(new, loop)
    builder.cbranch(builder.icmp_signed("<", moved, count), loop, done)
    builder.position_at_end(done)
    return following


def total(builder: Any, vector: Any) -> Any:
    """Return the sum of a vector's lanes."""
    add = function(builder.module, f"llvm.vector.reduce.fadd.v{LANES}f32", FLOAT, FLOAT, VECTOR)
    return builder.call(add, [ir.Constant(FLOAT, -0.0), vector], fastmath=["reassoc"])


def put(builder: Any, vector: Any, row: Any, offset: Any, half: bool) -> None:
    """Write a vector to a row, as float32 or as bfloat16; the offset is that of float32."""
    if not half:
        store(builder, vector, builder.add(row, offset))
        return
    rounded = builder.fptrunc(vector, ir.VectorType(Bfloat(), LANES))
    store(builder, rounded, builder.add(row, builder.lshr(offset, ir.Constant(INT, 1))), 2)


def get(builder: Any, row: Any, offset: Any, half: bool) -> Any:
    """Return a vector of a row, as float32."""
    if not half:
        return load(builder, builder.add(row, offset), VECTOR)
    place = builder.add(row, builder.lshr(offset, ir.Constant(INT, 1)))
    return builder.fpext(load(builder, place, ir.VectorType(Bfloat(), LANES), 2), VECTOR)


def exp(builder: Any, x: Any) -> Any:
    """Return e^x of a vector, as :func:`vitkit.kernels.cpu._math.exp` does of a number."""
    lowest = whole(float(_math.SMALLEST))
    highest = whole(100.0 if LANES == 16 else float(_math.LARGEST))
    below = builder.fcmp_ordered("<", x, lowest)  # false for NaN, which is carried on
    x = builder.select(below, lowest, x)
    x = builder.select(builder.fcmp_ordered(">", x, highest), highest, x)
    round_ = function(builder.module, f"llvm.rint.v{LANES}f32", VECTOR, VECTOR)
    n = builder.call(round_, [builder.fmul(x, whole(_math.LOG2_E))])
    r = fma(builder, n, whole(-_math.LN2_HIGH), x)
    r = fma(builder, n, whole(-_math.LN2_LOW), r)
    p = whole(_math.E0)
    for coefficient in (_math.E1, _math.E2, _math.E3, _math.E4, _math.E5):
        p = fma(builder, p, r, whole(coefficient))
    y = builder.fadd(fma(builder, builder.fmul(p, r), r, r), whole(1.0))
    return builder.select(below, whole(0.0), _times_power_of_two(builder, y, n))


def _times_power_of_two(builder: Any, y: Any, n: Any) -> Any:
    if LANES == 16:  # one instruction, which ends in infinity by itself
        mask = ir.IntType(16)
        name = "llvm.x86.avx512.mask.scalef.ps.512"
        scale = function(builder.module, name, VECTOR, VECTOR, VECTOR, VECTOR, mask, WORD)
        return builder.call(scale, [y, n, y, ir.Constant(mask, -1), ir.Constant(WORD, 4)])
    words = ir.VectorType(WORD, LANES)
    n = builder.select(builder.fcmp_ordered(">", n, whole(-126.0)), n, whole(-126.0))  # no NaN
    exponent = builder.add(builder.fptosi(n, words), ir.Constant(words, [127] * LANES))
    power = builder.shl(exponent, ir.Constant(words, [23] * LANES))
    return builder.fmul(y, builder.bitcast(power, VECTOR))


def is_nan(builder: Any, x: Any) -> Any:
    """Return which lanes are no numbers."""
    return builder.fcmp_unordered("uno", x, x)


def largest(builder: Any, vector: Any, unordered: Any) -> Any:
    """Return the largest lane of a vector, or NaN where any of ``unordered`` is set."""
    highest = function(builder.module, f"llvm.vector.reduce.fmax.v{LANES}f32", FLOAT, VECTOR)
    bits = f"llvm.vector.reduce.or.v{LANES}i1"
    any_of = function(builder.module, bits, ir.IntType(1), unordered.type)
    return builder.select(
        builder.call(any_of, [unordered]),
        ir.Constant(FLOAT, math.nan),
        builder.call(highest, [vector]),
    )
