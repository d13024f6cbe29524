"""Which numbers matrix products are made of.

A float32 has 8 bits of exponent and 23 of mantissa, a tf32 8 and 10, a bfloat16 8 and 7, a float16
5 and 10. So float16 alone lacks float32's range: its largest number is 65504, its smallest 6e-8.

A tf32 is a float32 whose last 13 bits are zero. NumPy has no bfloat16; vitkit keeps its 16 bits,
the upper half of a float32, as uint16.
"""

from __future__ import annotations

import numpy as np

from vitkit.backend.types import Array, ArrayModule

PRECISIONS = ("float32", "tf32", "bfloat16", "float16")
"""What ``precision=`` may be. Weights, their gradients, sums, normalization, softmax, losses and
optimizers are float32 in all of them."""


def to_tf32(x: Array, *, xp: ArrayModule) -> Array:
    """Round float32 to the nearest number with 10 bits of mantissa, ties to even.

    NaN stays NaN; what is nearer to infinity than to the largest such number becomes infinite.
    """
    bits = xp.ascontiguousarray(x, dtype="float32").view("uint32")
    rounded = (bits + (0xFFF + ((bits >> 13) & 1))) & 0xFFFFE000
    return xp.where((bits & 0x7FFFFFFF) > 0x7F800000, bits, rounded).view("float32")


def to_bfloat16(x: Array, *, xp: ArrayModule) -> Array:
    """Round float32 to the nearest bfloat16, ties to even, and return their bits as uint16.

    NaN stays NaN; what is nearer to infinity than to the largest bfloat16 becomes infinite.
    """
    bits = xp.ascontiguousarray(x, dtype="float32").view("uint32")
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    quiet = (bits >> 16) | 0x40  # a NaN's low bits could be its only ones
    return xp.where((bits & 0x7FFFFFFF) > 0x7F800000, quiet, rounded).astype("uint16")


def from_bfloat16(bits: Array, *, xp: ArrayModule) -> Array:
    """Return the float32 numbers that bfloat16 bits stand for."""
    return (bits.astype("uint32") << 16).view("float32")


def to_float16(x: Array, *, xp: ArrayModule) -> Array:
    """Round float32 to the nearest float16, ties to even.

    NaN stays NaN; what is nearer to infinity than to the largest float16 becomes infinite, and
    what is nearer to zero than to the smallest becomes zero.
    """
    with np.errstate(all="ignore"):  # too large is an answer here, and NumPy would warn of it
        return x.astype("float16")


def stored(x: Array, precision: str, *, xp: ArrayModule) -> Array:
    """Return what is kept of ``x`` for a later product.

    Itself for float32 and tf32; the bits of bfloat16; an array of float16.
    """
    if precision == "bfloat16":
        return to_bfloat16(x, xp=xp)
    return to_float16(x, xp=xp) if precision == "float16" else x


def operand(x: Array, precision: str, *, xp: ArrayModule) -> Array:
    """Return ``x``, or what was stored of it, as a product sees it: rounded, as float32 again."""
    if precision == "tf32":
        return to_tf32(x, xp=xp)
    if precision == "bfloat16":
        return from_bfloat16(x if x.dtype == "uint16" else to_bfloat16(x, xp=xp), xp=xp)
    if precision == "float16":
        half = x if x.dtype == "float16" else to_float16(x, xp=xp)
        return half.astype("float32")
    return x
