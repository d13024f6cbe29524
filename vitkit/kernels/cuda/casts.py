"""Numbers of another precision: arrays for products, and gradients on their way to them."""

from __future__ import annotations

import numpy as np

from vitkit.backend import Array, ArrayModule
from vitkit.kernels.cuda._arrays import WIDTH, plain, pointer, vector
from vitkit.kernels.cuda._kernel import LOW, STORED, TYPES, Family, blocks, type_of
from vitkit.kernels.cuda.column_sums import add_column_sums

THREADS, ROUNDS = 256, 4  # of a block
LANES, WARPS = 32, 8  # of a warp, and of a block
PARTS = 256  # blocks that share the rows at most, on any GPU, for equal bits
NARROW = Family("casts.cuh", "cast<float, {y}, {v}>", y=LOW, v=(1, WIDTH))
WIDEN = Family("casts.cuh", "cast<{x}, float, {v}>", x=LOW, v=(1, WIDTH))
GAINED = Family("casts.cuh", "gained_cast<{y}, {v}>", y=STORED, v=(1, WIDTH))


def cast(x: Array, dtype: str, xp: ArrayModule) -> Array:
    """Return the numbers of ``x`` in another dtype, rounded to the nearest, ties to even.

    Parameters
    ----------
    x : array
        Float32, float16, or the bits of bfloat16 as uint16.
    dtype : str
        ``"float32"``, or what float32 is rounded to: ``"float16"`` or ``"uint16"``.
    xp : module
        The array module.

    Returns
    -------
    array
        Without gaps; ``x`` itself if that is of the dtype already.

    Raises
    ------
    ValueError
        If neither of the two is float32, or one is none of these.
    """
    if x.dtype == dtype:
        return plain(x, xp)
    names = {x.dtype.name, dtype}
    if "float32" not in names or not names <= set(TYPES):
        raise ValueError(f"A cast is from or to float32, of {', '.join(TYPES)}; got {names}.")
    inputs, y = plain(x, xp), xp.empty(x.shape, dtype)
    v = vector(WIDTH, inputs, y)
    kernel = NARROW(y=type_of(y), v=v) if x.dtype == "float32" else WIDEN(x=type_of(x), v=v)
    grid = (blocks(x.size, THREADS * ROUNDS * v),)
    kernel(grid, (THREADS,), inputs, y, np.int64(x.size), xp=xp)
    return y


def gained_cast(dy: Array, gain: Array | None, dtype: str, dbias: Array, xp: ArrayModule) -> Array:
    """Return ``dy`` times the gain of each sample, in a dtype, and add its sums to ``dbias``.

    Parameters
    ----------
    dy : array, shape (B, N, D)
        Float32.
    gain : array, shape (B,), or None
        Float32; None for 1.
    dtype : str
        ``"float32"``, ``"float16"`` or ``"uint16"``, bits of bfloat16.
    dbias : array, shape (D,)
        Float32, without gaps; the sums over samples and tokens of what is returned are added.
    xp : module
        The array module.

    Returns
    -------
    array, shape (B, N, D)
        The products, rounded; ``dy`` itself where nothing changes.
    """
    batch, tokens, width = dy.shape
    rows = batch * tokens
    dy = plain(dy, xp)
    if not dy.size:
        return dy.astype(dtype)
    if gain is None and dtype == "float32":
        add_column_sums(dy.reshape(rows, width), dbias, xp=xp)
        return dy
    y = xp.empty(dy.shape, dtype)
    v = vector(width, dy, y)
    across, count = blocks(width, LANES * v), min(PARTS, blocks(rows, 2 * WARPS))
    parts = xp.empty((count, width), "float32")
    factors = None if gain is None else plain(gain, xp)
    GAINED(y=type_of(y), v=v)(
        (across, count),
        (LANES * WARPS,),
        dy,
        pointer(factors),
        y,
        parts,
        rows,
        tokens,
        width,
        xp=xp,
    )
    add_column_sums(parts, dbias, xp=xp)
    return y
