"""Rows of attention scores, and how results of one head go to where they belong.

Rows are as long as whole vectors; ``mask`` has 0 for every token and minus infinity behind them, so
that no loop ends with single numbers. Rows are given by their addresses: for ones so short it would
take longer to make views of them. ``like`` is any array of the dtype of what is not float32.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from vitkit.kernels.cpu import _math, _vectors
from vitkit.kernels.cpu._compile import intrinsic, serial
from vitkit.kernels.cpu._math import ZERO, F
from vitkit.kernels.cpu._numbers import narrow, wide
from vitkit.kernels.cpu._processor import LANES
from vitkit.kernels.cpu._vectors import VECTOR, fma, get, load, over_vectors, put, spread, store


@serial
def fill_mask(mask: np.ndarray, tokens: int) -> None:
    """Write 0 for each token and minus infinity behind."""
    for j in range(mask.size):
        mask[j] = ZERO if j < tokens else F(-np.inf)


def _is_half(array: Any) -> bool:
    return bool(array.dtype == types.uint16)


@intrinsic
def largest_of(context: Any, row: Any, mask: Any, count: Any) -> Any:
    """Put a mask on a row; return the largest number, or NaN where there is one."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        row, mask, count = arguments

        def step(offset: Any, held: list[Any]) -> list[Any]:
            largest, unordered = held
            place = builder.add(row, offset)
            shown = load(builder, builder.add(mask, offset), VECTOR)
            is_score = builder.fcmp_ordered("==", shown, _vectors.whole(0.0))
            x = builder.select(is_score, load(builder, place, VECTOR), shown)
            store(builder, x, place)
            larger = builder.select(builder.fcmp_ordered(">", x, largest), x, largest)
            return [larger, builder.or_(unordered, _vectors.is_nan(builder, x))]

        none = ir.Constant(ir.VectorType(ir.IntType(1), LANES), [0] * LANES)
        found = over_vectors(builder, count, [_vectors.whole(-math.inf), none], step)
        return _vectors.largest(builder, *found)

    return types.float32(types.intp, types.intp, types.intp), generate


@intrinsic
def _exponentials(
    context: Any, row: Any, out: Any, count: Any, largest: Any, scale: Any, like: Any
) -> Any:
    """Write e^((x - largest) scale) of the numbers of a row; return their sum."""
    half = _is_half(like)

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        row, out, count = arguments[:3]
        largest, scale = (spread(builder, number) for number in arguments[3:5])

        def step(offset: Any, held: list[Any]) -> list[Any]:
            x = get(builder, row, offset, half=False)
            e = _vectors.exp(builder, builder.fmul(builder.fsub(x, largest), scale))
            put(builder, e, out, offset, half)
            return [builder.fadd(held[0], e)]

        (sums,) = over_vectors(builder, count, [_vectors.whole(0.0)], step)
        return _vectors.total(builder, sums)

    number = types.float32
    return number(types.intp, types.intp, types.intp, number, number, like), generate


@serial
def exponentials(
    row: int, mask: int, count: int, scale: float, out: int, like: np.ndarray
) -> tuple[float, float]:
    """Write exponentials of scaled scores, less the largest; return that, scaled, and their sum."""
    largest = largest_of(row, mask, count)
    return largest * scale, _exponentials(row, out, count, largest, scale, like)


@intrinsic
def multiply_by(context: Any, row: Any, count: Any, factor: Any) -> Any:
    """Multiply ``count`` numbers, whole vectors, by a factor where they lie."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        row, count, factor = arguments
        factor = spread(builder, factor)

        def step(offset: Any, held: list[Any]) -> list[Any]:
            x = get(builder, row, offset, half=False)
            put(builder, builder.fmul(x, factor), row, offset, half=False)
            return []

        over_vectors(builder, count, [], step)
        return target.get_dummy_value()

    return types.void(types.intp, types.intp, types.float32), generate


@intrinsic
def _score_gradients(
    context: Any, row: Any, mask: Any, dp: Any, count: Any, p: Any, ds: Any, numbers: Any, like: Any
) -> Any:
    """Write p = e^((x - largest) scale) share and ds = p (dp - delta) slope."""
    half = _is_half(like)

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        row, mask, dp, count, p, ds, numbers, _ = arguments
        largest, scale, share, delta, slope = (
            spread(builder, builder.extract_value(numbers, index)) for index in range(5)
        )

        def step(offset: Any, held: list[Any]) -> list[Any]:
            x = builder.fadd(
                get(builder, row, offset, half=False), get(builder, mask, offset, half=False)
            )
            e = _vectors.exp(builder, builder.fmul(builder.fsub(x, largest), scale))
            chance = builder.fmul(e, share)
            along = builder.fsub(get(builder, dp, offset, half=False), delta)
            put(builder, chance, p, offset, half)
            put(builder, builder.fmul(builder.fmul(chance, along), slope), ds, offset, half)
            return []

        over_vectors(builder, count, [], step)
        return target.get_dummy_value()

    place = types.intp
    return types.void(place, place, place, place, place, place, numbers, like), generate


@serial
def score_gradients(
    row: int,
    mask: int,
    dp: int,
    count: int,
    scales: tuple[float, float],
    largest: float,
    log_total: float,
    delta: float,
    p: int,
    ds: int,
    like: np.ndarray,
) -> None:
    """Write the probabilities of a row of scores, and the gradients of the scores.

    ``scales`` are the factor that the scores still lack, and that of their gradients. ``largest``
    lacks the first, as the row does.
    """
    share = _math.exp(-log_total)  # subtracted before exp it would be lost beside huge scores
    numbers = (largest, scales[0], share, delta, scales[1])
    _score_gradients(row, mask, dp, count, p, ds, numbers, like)


@intrinsic
def _dot(context: Any, x: Any, y: Any, count: Any, like: Any) -> Any:
    """Return the sum of products of two rows of whole vectors."""
    half = _is_half(like)

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, y, count, _ = arguments

        def step(offset: Any, held: list[Any]) -> list[Any]:
            one, other = (get(builder, row, offset, half) for row in (x, y))
            return [fma(builder, one, other, held[0])]

        (sums,) = over_vectors(builder, count, [_vectors.whole(0.0)], step)
        return _vectors.total(builder, sums)

    return types.float32(types.intp, types.intp, types.intp, like), generate


@serial
def dot(x: np.ndarray, i: int, y: np.ndarray, j: int, count: int) -> float:
    """Return the sum of products of ``count`` numbers of two flat arrays, from i and j on."""
    whole, total = count // LANES * LANES, ZERO
    if whole:
        total = _dot(x.ctypes.data + i * x.itemsize, y.ctypes.data + j * y.itemsize, whole, x)
    for k in range(whole, count):
        total += wide(x[i + k]) * wide(y[j + k])
    return total


@intrinsic
def _put_row(context: Any, source: Any, count: Any, factor: Any, result: Any) -> Any:
    """Write float32, whole vectors, times a factor as bfloat16."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, count, factor, result = arguments
        factor = spread(builder, factor)

        def step(offset: Any, held: list[Any]) -> list[Any]:
            x = get(builder, source, offset, half=False)
            put(builder, builder.fmul(x, factor), result, offset, half=True)
            return []

        over_vectors(builder, count, [], step)
        return target.get_dummy_value()

    return types.void(types.intp, types.intp, types.float32, types.intp), generate


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
    """Write rows of a head, each times its factor, to some columns of the bfloat16 rows of y."""
    whole = width // LANES * LANES
    for i in range(count):
        source, factor = block.ctypes.data + i * step * 4, factors[i]
        result = y.ctypes.data + ((first + i) * y.shape[1] + column) * 2
        if whole:
            _put_row(source, whole, factor, result)
        for c in range(whole, width):
            y[first + i, column + c] = narrow(block[i * step + c] * factor, y)
