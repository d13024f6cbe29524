"""Rows of attention scores, and how results of one head go to where they belong.

Rows are as long as whole vectors; ``mask`` has 0 for every token and minus infinity behind them, so
that no loop ends with single numbers.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import overload

from vitkit.kernels.cpu._compile import function, intrinsic, serial, widest_vectors
from vitkit.kernels.cpu._math import ZERO, F, exp
from vitkit.kernels.cpu._numbers import narrow, round_vector, wide
from vitkit.kernels.cpu._processor import LANES
from vitkit.kernels.cpu._tile import VECTOR, load, spread, store


@serial
def padded(count: int) -> int:
    """Return how many numbers whole vectors hold."""
    return (count + LANES - 1) // LANES * LANES


@serial
def fill_mask(mask: np.ndarray, tokens: int) -> None:
    """Write 0 for each token and minus infinity behind."""
    for j in range(mask.size):
        mask[j] = ZERO if j < tokens else F(-np.inf)


def _over_vectors(builder: Any, count: Any, first: list[Any], step: Any) -> list[Any]:
    """Build a loop over whole vectors; ``step(offset in bytes, values)`` returns new values."""
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
    return list(following)


def _whole_vector(value: float) -> Any:
    return ir.Constant(VECTOR, [value] * LANES)


@intrinsic
def total_of(context: Any, row: Any, count: Any) -> Any:
    """Return the sum of ``count`` float32 at an address, a multiple of LANES."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address, count = arguments
        (sums,) = _over_vectors(
            builder,
            count,
            [_whole_vector(0.0)],
            lambda offset, held: [
                builder.fadd(held[0], load(builder, builder.add(address, offset), VECTOR))
            ],
        )
        number = ir.FloatType()
        add = function(
            builder.module, f"llvm.vector.reduce.fadd.v{LANES}f32", number, number, VECTOR
        )
        return builder.call(add, [ir.Constant(number, -0.0), sums], fastmath=["reassoc"])

    return types.float32(types.intp, types.intp), generate


@intrinsic
def _largest_of(context: Any, row: Any, mask: Any, count: Any) -> Any:
    """Put a mask on a row; return the largest number, or NaN where there is one."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        row, mask, count = arguments

        def step(offset: Any, held: list[Any]) -> list[Any]:
            largest, unordered = held
            place = builder.add(row, offset)
            shown = load(builder, builder.add(mask, offset), VECTOR)
            is_score = builder.fcmp_ordered("==", shown, _whole_vector(0.0))
            x = builder.select(is_score, load(builder, place, VECTOR), shown)
            store(builder, x, place)
            larger = builder.select(builder.fcmp_ordered(">", x, largest), x, largest)
            return [larger, builder.or_(unordered, builder.fcmp_unordered("uno", x, x))]

        bits = ir.VectorType(ir.IntType(1), LANES)
        largest, unordered = _over_vectors(
            builder, count, [_whole_vector(-math.inf), ir.Constant(bits, [0] * LANES)], step
        )
        number = ir.FloatType()
        highest = function(builder.module, f"llvm.vector.reduce.fmax.v{LANES}f32", number, VECTOR)
        any_of = function(builder.module, f"llvm.vector.reduce.or.v{LANES}i1", ir.IntType(1), bits)
        return builder.select(
            builder.call(any_of, [unordered]),
            ir.Constant(number, math.nan),
            builder.call(highest, [largest]),
        )

    return types.float32(types.intp, types.intp, types.intp), generate


@serial
def largest_of(scores: np.ndarray, mask: np.ndarray) -> float:
    """Take what is no score away; return the largest one, or NaN where there is one."""
    return _largest_of(scores.ctypes.data, mask.ctypes.data, mask.size)


# The sums below are taken by themselves: a loop that also sums is cut into pieces of four vectors,
# and what is left over of so short a row would be done number by number.


@serial
def exponentials(scores: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """Turn scores into exponentials, relative to the largest; return that one and their sum."""
    widest_vectors()
    largest = largest_of(scores, mask)
    for j in range(mask.size):
        scores[j] = exp(scores[j] - largest)
    return largest, total_of(scores.ctypes.data, mask.size)


@serial
def rounded_exponentials(
    scores: np.ndarray, mask: np.ndarray, scale: float, out: np.ndarray
) -> tuple[float, float]:
    """Write exponentials of scaled scores as bfloat16; return the largest one and their sum."""
    widest_vectors()
    largest = largest_of(scores, mask)
    for j in range(mask.size):
        e = exp((scores[j] - largest) * scale)
        scores[j] = e
        out[j] = narrow(e, out)
    return largest * scale, total_of(scores.ctypes.data, mask.size)


@serial
def score_gradients(
    scores: np.ndarray,
    mask: np.ndarray,
    dp: np.ndarray,
    largest: float,
    log_total: float,
    delta: float,
) -> None:
    """Turn scores into probabilities, and their gradients into those of the scores."""
    widest_vectors()
    share = exp(-log_total)  # subtracted before exp it would be lost beside huge scores
    for j in range(mask.size):
        p = exp(scores[j] + mask[j] - largest) * share
        scores[j] = p
        dp[j] = p * (dp[j] - delta)


@serial
def rounded_score_gradients(
    scores: np.ndarray,
    mask: np.ndarray,
    dp: np.ndarray,
    scale: float,
    log_total: float,
    delta: float,
    p_out: np.ndarray,
    ds_out: np.ndarray,
) -> None:
    """Write probabilities, and the gradients of the scores, as bfloat16."""
    widest_vectors()
    largest = largest_of(scores, mask)
    share = exp(-log_total)
    for j in range(mask.size):
        p = exp((scores[j] - largest) * scale) * share
        p_out[j] = narrow(p, p_out)
        ds_out[j] = narrow(p * (dp[j] - delta) * scale, ds_out)


@serial
def dot(x: np.ndarray, y: np.ndarray) -> float:
    """Return the sum of products of two rows."""
    widest_vectors()
    total = ZERO
    for k in range(x.size):
        total += wide(x[k]) * wide(y[k])
    return total


@intrinsic
def _put_float32(context: Any, source: Any, factor: Any, result: Any) -> Any:
    """Write LANES float32 times a factor."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, factor, result = arguments
        scaled = builder.fmul(load(builder, source, VECTOR), spread(builder, factor))
        store(builder, scaled, result)
        return target.get_dummy_value()

    return types.void(types.intp, types.float32, types.intp), generate


@intrinsic
def _put_bfloat16(context: Any, source: Any, factor: Any, result: Any) -> Any:
    """Write LANES float32 times a factor as bfloat16."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, factor, result = arguments
        scaled = builder.fmul(load(builder, source, VECTOR), spread(builder, factor))
        halves = round_vector(builder, scaled, LANES)
        stored = builder.store(halves, builder.inttoptr(result, ir.PointerType(halves.type)))
        stored.align = 2
        return target.get_dummy_value()

    return types.void(types.intp, types.float32, types.intp), generate


def _put(source: Any, factor: Any, y: Any, result: Any) -> None:
    """Write LANES float32 times a factor to an address in an array, in its dtype."""


@overload(_put)
def _put_as(source: Any, factor: Any, y: Any, result: Any) -> Any:
    kernel = _put_bfloat16 if y.dtype == types.uint16 else _put_float32

    def put(source: Any, factor: Any, y: Any, result: Any) -> None:
        kernel(source, factor, result)

    return put


@serial
def put_rows(
    block: np.ndarray,
    step: int,
    count: int,
    width: int,
    factors: np.ndarray,
    y: np.ndarray,
    first: int,
    column: int,
) -> None:
    """Write rows of a head, each times its factor, to some columns of the rows of y.

    By addresses: for rows so short it would take longer to make views of them.
    """
    whole = width // LANES * LANES
    for i in range(count):
        source, factor = block.ctypes.data + i * step * 4, factors[i]
        result = y.ctypes.data + ((first + i) * y.shape[1] + column) * y.itemsize
        for c in range(0, whole, LANES):
            _put(source + 4 * c, factor, y, result + c * y.itemsize)
        for c in range(whole, width):
            y[first + i, column + c] = narrow(block[i * step + c] * factor, y)
