"""Both forms of GELU on a GPU; the meaning is in :mod:`vitkit.ops.gelu`."""

from __future__ import annotations

from typing import Any

import numpy as np

from vitkit.backend import Array, ArrayModule
from vitkit.kernels.cuda._arrays import ALIGNMENT, WIDTH, plain, pointer, rows_of, served, vector
from vitkit.kernels.cuda._kernel import LOW, Family, blocks, type_of
from vitkit.kernels.cuda.column_sums import add_column_sums
from vitkit.ops.gelu import gelu, gelu_backward, gelu_tanh, gelu_tanh_backward

THREADS, ROUNDS = 256, 2  # of a block
LANES, WARPS = 32, 8  # of a warp, and of a block
PARTS = 256  # blocks that share the rows at most, on any GPU, for equal bits
AHEAD = 4  # rows of a warp that are read at once
FORMS = {"gelu": "Erf", "gelu_tanh": "Tanh"}
"""What the activations of an MLP branch are called in C++."""

FILE, NAMES, WIDTHS = "gelu.cuh", tuple(FORMS.values()), (1, WIDTH)
HALVES = 2 * WIDTH  # numbers of 16 bits that are read at once
ACTIVATE = Family(FILE, "activate<float, {form}, {v}>", form=NAMES, v=WIDTHS)
ACTIVATE_LOW = Family(FILE, "activate<{t}, {form}, {v}>", t=LOW, form=NAMES, v=(1, HALVES))
BACKWARD = Family(FILE, "gelu_backward<{form}, {v}>", form=NAMES, v=WIDTHS)
THROUGH = Family(FILE, "through_activation<float, {v}>", v=WIDTHS)
THROUGH_LOW = Family(FILE, "through_activation<{t}, {v}>", t=LOW, v=(1, HALVES))


def activate(h: Array, activation: str, keep: bool, xp: ArrayModule) -> tuple[Array, Array | None]:
    """Return an activation of ``h`` and its derivative, computed in float32.

    Parameters
    ----------
    h : array
        The pre-activation, without gaps: float32, float16, or the bits of bfloat16 as uint16.
    activation : str
        ``"gelu"`` or ``"gelu_tanh"``.
    keep : bool
        Whether the derivative is wanted.
    xp : module
        The array module.

    Returns
    -------
    hidden : array
        ``f(h)``, of the shape and dtype of ``h``.
    slope : array or None
        ``f'(h)``, the same.
    """
    hidden = xp.empty(h.shape, h.dtype)
    slope = xp.empty(h.shape, h.dtype) if keep else None
    arrays = (h, hidden) if slope is None else (h, hidden, slope)
    form, v = FORMS[activation], _vector(0, *arrays)
    low = h.dtype != "float32"
    kernel = ACTIVATE_LOW(t=type_of(h), form=form, v=v) if low else ACTIVATE(form=form, v=v)
    grid, count = (blocks(h.size, THREADS * ROUNDS * v),), np.int64(h.size)
    kernel(grid, (THREADS,), h, hidden, pointer(slope), count, xp=xp)
    return hidden, slope


def through_activation(dhidden: Array, slope: Array, dbias: Array, xp: ArrayModule) -> Array:
    """Take a gradient through an activation where it lies, and add that of the bias before it.

    Parameters
    ----------
    dhidden, slope : array, shape (..., M)
        The gradient of the activation's output, which is overwritten, and the derivative that
        :func:`activate` returned: of one dtype, without gaps.
    dbias : array, shape (M,)
        Float32, without gaps; the sums over all rows of what is returned are added.
    xp : module
        The array module.

    Returns
    -------
    array, shape (..., M)
        ``dhidden * slope``, in the memory of ``dhidden``.
    """
    if not dhidden.size:
        return dhidden
    rows, width = rows_of(dhidden), dhidden.shape[-1]
    v, low = _vector(width, dhidden, slope), dhidden.dtype != "float32"
    kernel = THROUGH_LOW(t=type_of(dhidden), v=v) if low else THROUGH(v=v)
    across, count = blocks(width, LANES * v), min(PARTS, blocks(rows, AHEAD * WARPS))
    parts = xp.empty((count, width), "float32")
    sizes = (across, count), (LANES * WARPS,)
    kernel(*sizes, dhidden, slope, parts, rows, width, xp=xp)
    add_column_sums(parts, dbias, xp=xp)
    return dhidden


def _vector(width: int, *arrays: Array) -> int:
    """Return how many numbers of rows this wide fill 16 bytes, or 1, of arrays of one dtype."""
    most = ALIGNMENT // int(arrays[0].itemsize)
    whole = width % most == 0 and all(array.data.ptr % ALIGNMENT == 0 for array in arrays)
    return most if whole else 1


def _activated(form: str, x: Array, xp: ArrayModule) -> Any:
    return activate(plain(x, xp), form, False, xp)[0] if served(x) else NotImplemented


def _differentiated(form: str, dy: Array, x: Array, xp: ArrayModule) -> Any:
    if not served(dy, x) or dy.shape != x.shape:
        return NotImplemented
    dy, x, dx = plain(dy, xp), plain(x, xp), xp.empty(x.shape, "float32")
    v = vector(WIDTH, dy, x, dx)
    grid = (blocks(x.size, THREADS * v),)
    BACKWARD(form=FORMS[form], v=v)(grid, (THREADS,), dy, x, dx, np.int64(x.size), xp=xp)
    return dx


@gelu.kernel("cupy")
def gelu_cuda(x: Array, *, xp: ArrayModule) -> Any:
    """Replace :func:`vitkit.ops.gelu` for float32."""
    return _activated("gelu", x, xp)


@gelu_backward.kernel("cupy")
def gelu_backward_cuda(dy: Array, x: Array, *, xp: ArrayModule) -> Any:
    """Replace :func:`vitkit.ops.gelu_backward` for float32."""
    return _differentiated("gelu", dy, x, xp)


@gelu_tanh.kernel("cupy")
def gelu_tanh_cuda(x: Array, *, xp: ArrayModule) -> Any:
    """Replace :func:`vitkit.ops.gelu_tanh` for float32."""
    return _activated("gelu_tanh", x, xp)


@gelu_tanh_backward.kernel("cupy")
def gelu_tanh_backward_cuda(dy: Array, x: Array, *, xp: ArrayModule) -> Any:
    """Replace :func:`vitkit.ops.gelu_tanh_backward` for float32."""
    return _differentiated("gelu_tanh", dy, x, xp)
