"""What flows from block to block, kept in float32 or rounded to bfloat16.

Each of the two branches of a block adds to it. Rounded, it takes half the memory and half the time
to read and write, which on a GPU is much of what a block spends outside its products; each branch
then rounds what it adds to once more, by at most half a last digit of bfloat16, 2**-8 of a number.
Gradients, which flow back the same way, are rounded likewise. NumPy has no bfloat16: both are kept
as its bits, uint16.
"""

from __future__ import annotations

from vitkit.backend import Array, ArrayModule
from vitkit.backend.precision import from_bfloat16, to_bfloat16
from vitkit.ops._op import Op


def is_narrow(x: Array) -> bool:
    """Return whether an array holds bits of bfloat16."""
    return bool(x.dtype == "uint16")


@Op
def narrowed(x: Array, *, xp: ArrayModule) -> Array:
    """Return the bits of float32 numbers rounded to bfloat16, to the nearest, ties to even.

    Parameters
    ----------
    x : array
        Float32 numbers.
    xp : module
        The array module.

    Returns
    -------
    array of uint16
        The upper halves of the rounded numbers; of the same shape.
    """
    return to_bfloat16(x, xp=xp).reshape(x.shape)  # a single number has become a row of one


@Op
def widened(x: Array, *, xp: ArrayModule) -> Array:
    """Return the float32 numbers that bits of bfloat16 stand for.

    Parameters
    ----------
    x : array of uint16
        Bits of bfloat16.
    xp : module
        The array module.

    Returns
    -------
    array of float32
        The numbers, exactly; of the same shape.
    """
    return from_bfloat16(x, xp=xp)


def as_wide(x: Array, *, xp: ArrayModule) -> Array:
    """Return :func:`widened` of bits, and anything else as it is."""
    return widened(x, xp=xp) if is_narrow(x) else x
