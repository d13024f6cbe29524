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
from vitkit.kernels.cpu._vectors import WORD, Bfloat

HALF = ir.IntType(16)


@intrinsic
def to_bits(context: Any, x: Any) -> Any:
    """Round a float32 to the nearest bfloat16, ties to even; NaN stays NaN.

    A processor that multiplies bfloat16 has an instruction for it. As its products do, it takes
    what is below the smallest normal number for zero.
    """

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(builder.fptrunc(arguments[0], Bfloat()), HALF)

    return types.uint16(types.float32), generate


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
