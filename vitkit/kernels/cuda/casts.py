"""Numbers of another precision: arrays for products, and gradients on their way to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np

from vitkit import kernels
from vitkit.backend import Array, ArrayModule
from vitkit.kernels.cuda._arrays import WIDTH, plain, pointer, vector
from vitkit.kernels.cuda._kernel import FLOWING, LOW, STORED, TYPES, Family, blocks, type_of
from vitkit.kernels.cuda._products import DTYPES
from vitkit.kernels.cuda.column_sums import add_column_sums
from vitkit.ops.residual import narrowed, widened

THREADS, ROUNDS = 256, 4  # of a block
LANES, WARPS = 32, 8  # of a warp, and of a block
PARTS = 256  # blocks that share the rows at most, on any GPU, for equal bits
NARROW = Family("casts.cuh", "cast<float, {y}, {v}>", y=LOW, v=(1, WIDTH))
WIDEN = Family("casts.cuh", "cast<{x}, float, {v}>", x=LOW, v=(1, WIDTH))
GAINED = Family("casts.cuh", "gained_cast<float, {y}, {v}>", y=STORED, v=(1, WIDTH))
GAINED_LOW = Family("casts.cuh", "gained_cast<bf16, bf16, {v}>", v=(1, WIDTH))
ADD_GAINED = Family("casts.cuh", "add_gained<{x}, {v}>", x=FLOWING, v=(1, WIDTH))
_COPIES: ContextVar[tuple[tuple[Array, Array], ...]] = ContextVar("copies", default=())
"""Float32 arrays, and what each is rounded to while a block lasts."""


@contextmanager
def rounded_once(arrays: Sequence[Array], precision: str, xp: ArrayModule) -> Iterator[None]:
    """Do as :func:`vitkit.kernels.rounded_once`: a kernel for each array, not for each part."""
    dtype = DTYPES[precision]
    rounded = [array for array in arrays if array.dtype == "float32" and dtype != "float32"]
    copies = [(array, _rounded(array, dtype, xp)) for array in rounded]
    before = _COPIES.set((*copies, *_COPIES.get()))  # what changed since is in the newest
    try:
        yield
    finally:
        _COPIES.reset(before)


kernels.ROUNDED["cupy"] = rounded_once


def _copied(x: Array, dtype: str) -> Array | None:
    """Return the part of a copy that ``x`` is there, if it is a part of what was copied."""
    for values, copy in _COPIES.get():
        start, rest = divmod(x.data.ptr - values.data.ptr, values.itemsize)
        inside = not rest and 0 <= start <= values.size - x.size
        if inside and copy.dtype == dtype and x.flags.c_contiguous:
            return copy[start : start + x.size].reshape(x.shape)
    return None


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
        Without gaps; ``x`` itself if that is of the dtype already, or a part of the copy that
        :func:`rounded_once` has made.

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
    copied = _copied(x, dtype)
    return _rounded(x, dtype, xp) if copied is None else copied


def _rounded(x: Array, dtype: str, xp: ArrayModule) -> Array:
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
        Float32, or what is returned too: bits of bfloat16 as uint16.
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
    if gain is None and dtype == dy.dtype:
        add_column_sums(dy.reshape(rows, width), dbias, xp=xp)
        return dy
    y = xp.empty(dy.shape, dtype)
    v = vector(width, dy, y)
    across, count = blocks(width, LANES * v), min(PARTS, blocks(rows, 2 * WARPS))
    parts = xp.empty((count, width), "float32")
    factors = None if gain is None else plain(gain, xp)
    kernel = GAINED(y=type_of(y), v=v) if dy.dtype == "float32" else GAINED_LOW(v=v)
    kernel(
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


def add_gained(residual: Array, branch: Array, gain: Array, xp: ArrayModule) -> Array:
    """Return a residual plus a branch times the gain of each sample.

    Parameters
    ----------
    residual : array, shape (B, N, D)
        Float32, or bits of bfloat16 as uint16; without gaps.
    branch : array, shape (B, N, D)
        Float32, without gaps.
    gain : array, shape (B,)
        Float32.
    xp : module
        The array module.

    Returns
    -------
    array, shape (B, N, D)
        The sums, in the dtype of the residual.
    """
    y, each = xp.empty(residual.shape, residual.dtype), residual.size // len(residual)
    v = vector(each, residual, branch, y)
    across = blocks(each, THREADS * v)
    given = residual, branch, plain(gain, xp), y, across, each
    ADD_GAINED(x=type_of(y), v=v)((len(residual) * across,), (THREADS,), *given, xp=xp)
    return y


@narrowed.kernel("cupy")
def narrowed_cuda(x: Array, *, xp: ArrayModule) -> Array:
    """Replace :func:`vitkit.ops.residual.narrowed` for float32."""
    return cast(x, "uint16", xp) if x.dtype == "float32" else NotImplemented


@widened.kernel("cupy")
def widened_cuda(x: Array, *, xp: ArrayModule) -> Array:
    """Replace :func:`vitkit.ops.residual.widened`."""
    return cast(x, "float32", xp) if x.dtype == "uint16" else NotImplemented
