"""Which numbers matrix products are made of.

A bfloat16 is the upper half of a float32: its range, with 8 significant bits instead of 24. NumPy
has no such dtype; vitkit keeps the 16 bits as uint16.
"""

from __future__ import annotations

from vitkit.backend.types import Array, ArrayModule

PRECISIONS = ("float32", "bfloat16")
"""What ``precision=`` may be. Weights, sums, normalization and losses are float32 in both."""


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


def stored(x: Array, precision: str, *, xp: ArrayModule) -> Array:
    """Return what is kept of ``x`` for a later product: itself, or its bfloat16 bits."""
    return to_bfloat16(x, xp=xp) if precision == "bfloat16" else x


def operand(x: Array, precision: str, *, xp: ArrayModule) -> Array:
    """Return ``x`` as a product sees it: itself, or rounded to bfloat16 and widened again."""
    if precision != "bfloat16":
        return x
    return from_bfloat16(x if x.dtype == "uint16" else to_bfloat16(x, xp=xp), xp=xp)
