"""Products of many rows with a packed weight, and what is done to a row before and after.

Rows are taken in blocks that stay in the cache from the first step to the last, so that what lies
between two products never waits for memory. Every kernel shares the rows among the threads. What
products read and write for other products is float32, or bfloat16 where the panels are.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from vitkit.kernels.cpu._compile import LANES, parallel, serial
from vitkit.kernels.cpu._numbers import kind_of
from vitkit.kernels.cpu._panels import GROUP, multiply_panels, prepare
from vitkit.kernels.cpu._rows import (
    add_bias,
    add_branch,
    convert,
    normalize,
    normalize_again,
    normalize_backward,
    scale_by,
)
from vitkit.kernels.cpu._tile import ROWS

BLOCK = 96
"""Rows of a block, a multiple of the rows of a tile; the last one has up to ``REST`` more."""
REST = 31  # so that no block has fewer rows than a tile of bfloat16, unless all have


def room(width: int) -> int:
    """Return how many float32 a block of rows of this width takes, rounded up to whole vectors."""
    return (BLOCK + REST + 1) * (-(-width // LANES) * LANES)


@serial
def behind(width: int) -> int:
    """Return :func:`room`, in a kernel: where in the scratch memory the next block begins."""
    return (BLOCK + REST + 1) * ((width + LANES - 1) // LANES * LANES)


@serial
def rows_now(r: int, last: int) -> int:
    """Return how many rows the block has that begins at ``r``."""
    return last - r if last - r <= BLOCK + REST else BLOCK


@serial
def address(array: np.ndarray, row: int) -> int:
    """Return where a row of a matrix begins."""
    return array.ctypes.data + row * array.shape[1] * array.itemsize


@parallel
def affine(
    x: np.ndarray,
    panels: np.ndarray,
    bias: np.ndarray,
    y: np.ndarray,
    scratch: np.ndarray,
    parts: int,
) -> None:
    """Write x times packed panels plus bias; scratch is ``room(GROUP)`` a thread."""
    count, depth = x.shape
    width = y.shape[1]
    for t in prange(parts):
        prepare(panels)
        block = scratch[t]
        r, last = count * t // parts, count * (t + 1) // parts
        while r < last:
            taken = rows_now(r, last)
            for n in range(0, width, GROUP):
                end = min(n + GROUP, width)
                multiply_panels(
                    taken,
                    n,
                    end,
                    depth,
                    address(x, r),
                    depth * x.itemsize,
                    panels,
                    block.ctypes.data,
                    GROUP * 4,
                )
                for i in range(taken):
                    add_bias(block[i * GROUP : i * GROUP + end - n], bias[n:end], y[r + i, n:end])
            r += taken


@parallel
def affine_add(
    x: np.ndarray,
    panels: np.ndarray,
    bias: np.ndarray,
    gains: np.ndarray,
    tokens: int,
    skip: np.ndarray,
    y: np.ndarray,
    scratch: np.ndarray,
    parts: int,
) -> None:
    """Write skip + gain (x times packed panels plus bias), a gain for each ``tokens`` rows.

    Scratch is ``room(GROUP)`` a thread.
    """
    count, depth = x.shape
    width = y.shape[1]
    for t in prange(parts):
        prepare(panels)
        block = scratch[t]
        r, last = count * t // parts, count * (t + 1) // parts
        while r < last:
            taken = rows_now(r, last)
            for n in range(0, width, GROUP):
                end = min(n + GROUP, width)
                multiply_panels(
                    taken,
                    n,
                    end,
                    depth,
                    address(x, r),
                    depth * x.itemsize,
                    panels,
                    block.ctypes.data,
                    GROUP * 4,
                )
                for i in range(taken):
                    add_branch(
                        block[i * GROUP : i * GROUP + end - n],
                        bias[n:end],
                        gains[(r + i) // tokens],
                        skip[r + i, n:end],
                        y[r + i, n:end],
                    )
            r += taken


@parallel
def norm_affine(
    x: np.ndarray,
    norm_weight: np.ndarray,
    norm_bias: np.ndarray,
    eps: float,
    panels: np.ndarray,
    bias: np.ndarray,
    y: np.ndarray,
    mean: np.ndarray,
    rstd: np.ndarray,
    scratch: np.ndarray,
    parts: int,
) -> None:
    """Write layer_norm(x) times packed panels plus bias, and the statistics of the rows.

    Scratch is ``room(depth) + room(GROUP)`` a thread.
    """
    count, depth = x.shape
    width = y.shape[1]
    for t in prange(parts):
        prepare(panels)
        normal, block = kind_of(scratch[t], panels), scratch[t, behind(depth) :]
        r, last = count * t // parts, count * (t + 1) // parts
        while r < last:
            taken = rows_now(r, last)
            for i in range(taken):
                mean[r + i], rstd[r + i] = normalize(
                    x[r + i], norm_weight, norm_bias, eps, normal[i * depth : (i + 1) * depth]
                )
            for n in range(0, width, GROUP):
                end = min(n + GROUP, width)
                multiply_panels(
                    taken,
                    n,
                    end,
                    depth,
                    normal.ctypes.data,
                    depth * normal.itemsize,
                    panels,
                    block.ctypes.data,
                    GROUP * 4,
                )
                for i in range(taken):
                    add_bias(block[i * GROUP : i * GROUP + end - n], bias[n:end], y[r + i, n:end])
            r += taken


@parallel
def scaled_product(
    dy: np.ndarray,
    panels: np.ndarray,
    slope: np.ndarray,
    dx: np.ndarray,
    scratch: np.ndarray,
    parts: int,
) -> None:
    """Write dy times packed panels times slope; scratch is ``room(GROUP)`` a thread."""
    count, depth = dy.shape
    width = dx.shape[1]
    for t in prange(parts):
        prepare(panels)
        block = scratch[t]
        r, last = count * t // parts, count * (t + 1) // parts
        while r < last:
            taken = rows_now(r, last)
            for n in range(0, width, GROUP):
                end = min(n + GROUP, width)
                multiply_panels(
                    taken,
                    n,
                    end,
                    depth,
                    address(dy, r),
                    depth * dy.itemsize,
                    panels,
                    block.ctypes.data,
                    GROUP * 4,
                )
                for i in range(taken):
                    scale_by(
                        block[i * GROUP : i * GROUP + end - n],
                        slope[r + i, n:end],
                        dx[r + i, n:end],
                    )
            r += taken


@parallel
def norm_backward_product(
    dy: np.ndarray,
    panels: np.ndarray,
    x: np.ndarray,
    norm_weight: np.ndarray,
    norm_bias: np.ndarray,
    mean: np.ndarray,
    rstd: np.ndarray,
    skip: np.ndarray,
    dx: np.ndarray,
    normal: np.ndarray,
    sums: np.ndarray,
    scratch: np.ndarray,
    parts: int,
) -> None:
    """Write skip + the gradient of a layer norm, given what follows it: dy times packed panels.

    Also write the layer norm itself, for the gradient of the weight that follows, and each
    thread's part of the gradients of the norm's weight and bias to ``sums`` (parts, 2, width).
    Scratch is ``room(width)`` a thread.
    """
    count, depth = dy.shape
    width = x.shape[1]
    padded = (width + LANES - 1) // LANES * LANES
    for t in prange(parts):
        prepare(panels)
        block, dweight, dbias = scratch[t], sums[t, 0], sums[t, 1]
        dweight[:] = 0
        dbias[:] = 0
        r, last = count * t // parts, count * (t + 1) // parts
        while r < last:
            taken = rows_now(r, last)
            multiply_panels(
                taken,
                0,
                width,
                depth,
                address(dy, r),
                depth * dy.itemsize,
                panels,
                block.ctypes.data,
                padded * 4,
            )
            for i in range(r, r + taken):
                row = block[(i - r) * padded : (i - r) * padded + width]
                normalize_backward(
                    row, x[i], norm_weight, mean[i], rstd[i], skip[i], dx[i], dweight, dbias
                )
                normalize_again(x[i], norm_weight, norm_bias, mean[i], rstd[i], normal[i])
            r += taken


@parallel
def converted(x: np.ndarray, gains: np.ndarray, tokens: int, y: np.ndarray, parts: int) -> None:
    """Write x times the gain of each ``tokens`` rows, in the dtype of y."""
    count = x.shape[0]
    for t in prange(parts):
        for r in range(count * t // parts, count * (t + 1) // parts):
            convert(x[r], gains[r // tokens], y[r])
