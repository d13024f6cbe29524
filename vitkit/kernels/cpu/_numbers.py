"""float32 and bfloat16 in the same kernels: what differs is chosen by the dtype of the arrays.

A kernel is written once. Numba compiles it for float32 arrays and for uint16 ones, which hold the
bits of bfloat16; at the few places where that matters it calls one of these functions, of which
Numba takes the body that fits the types.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from vitkit.kernels.cpu._compile import serial, widest_vectors

WORD, HALF = ir.IntType(32), ir.IntType(16)


@intrinsic
def to_bits(context: Any, x: Any) -> Any:
    """Round a float32 to the nearest bfloat16, ties to even; NaN stays NaN."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def word(value: int) -> Any:
            return ir.Constant(WORD, value)

        bits = builder.bitcast(arguments[0], WORD)
        high = builder.lshr(bits, word(16))
        carried = builder.add(bits, builder.add(word(0x7FFF), builder.and_(high, word(1))))
        rounded = builder.lshr(carried, word(16))
        is_nan = builder.fcmp_unordered("uno", arguments[0], arguments[0])
        chosen = builder.select(is_nan, builder.or_(high, word(0x40)), rounded)
        return builder.trunc(chosen, HALF)

    return types.uint16(types.float32), generate


def round_vector(builder: Any, x: Any, count: int) -> Any:
    """Return a vector of float32 as bfloat16 bits, rounded as :func:`to_bits` does."""
    words = ir.VectorType(WORD, count)

    def same(value: int) -> Any:
        return ir.Constant(words, [value] * count)

    bits = builder.bitcast(x, words)
    high = builder.lshr(bits, same(16))
    carried = builder.add(bits, builder.add(same(0x7FFF), builder.and_(high, same(1))))
    rounded = builder.lshr(carried, same(16))
    is_nan = builder.fcmp_unordered("uno", x, x)
    chosen = builder.select(is_nan, builder.or_(high, same(0x40)), rounded)
    return builder.trunc(chosen, ir.VectorType(HALF, count))


@intrinsic
def from_bits(context: Any, bits: Any) -> Any:
    """Return the float32 that the bits of a bfloat16 stand for."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = builder.shl(builder.zext(arguments[0], WORD), ir.Constant(WORD, 16))
        return builder.bitcast(word, ir.FloatType())

    return types.float32(types.uint16), generate


@intrinsic
def _both(context: Any, low: Any, high: Any) -> Any:
    """Put two 16-bit halves into one word."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        low, high = (builder.zext(half, WORD) for half in arguments)
        return builder.or_(low, builder.shl(high, ir.Constant(WORD, 16)))

    return types.uint32(types.uint16, types.uint16), generate


@serial
def pair_up(low: np.ndarray, high: np.ndarray, words: np.ndarray) -> None:
    """Write pairs of float32, rounded to bfloat16, as words."""
    widest_vectors()
    for k in range(words.size):
        words[k] = _both(to_bits(low[k]), to_bits(high[k]))


def narrow(x: Any, like: Any) -> Any:
    """Return a float32 as a number of the array ``like``."""
    return x


@overload(narrow)
def _narrow(x: Any, like: Any) -> Any:
    def rounded(x: Any, like: Any) -> Any:
        return to_bits(x)

    return rounded if like.dtype == types.uint16 else narrow


def wide(x: Any) -> Any:
    """Return a number of a float32 or bfloat16 array as float32."""
    return x


@overload(wide)
def _wide(x: Any) -> Any:
    def widened(x: Any) -> Any:
        return from_bits(x)

    return widened if x == types.uint16 else wide


def kind_of(memory: Any, like: Any) -> Any:
    """Return float32 scratch memory as an array of the dtype of ``like``."""
    return memory


@overload(kind_of)
def _kind_of(memory: Any, like: Any) -> Any:
    def halved(memory: Any, like: Any) -> Any:
        return memory.view(np.uint16)

    return halved if like.dtype == types.uint16 else kind_of
