"""Products of many rows with a packed weight, and what is done to a row before and after.

Rows are taken in blocks that stay in the cache from the first step to the last, so that what lies
between two products never waits for memory. Every kernel shares the rows among the threads. What
products read and write for other products is float32, or bfloat16 where the panels are.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from vitkit.kernels.cpu._ahead import Soon, beside, into
from vitkit.kernels.cpu._compile import parallel, serial
from vitkit.kernels.cpu._numbers import kind_of
from vitkit.kernels.cpu._panels import GROUP, multiply_panels, prepare
from vitkit.kernels.cpu._processor import LANES
from vitkit.kernels.cpu._rows import (
    add_bias,
    add_branch,
    convert,
    normalize,
    normalize_again,
    normalize_backward,
    scale_by,
)

BLOCK = 96
"""Rows of a block, a multiple of the rows of every tile."""
ROOM = BLOCK + 32
"""Rows that a block has at most: the last one takes in a rest that is too little for a tile."""


def room(width: int) -> int:
    """Return how many float32 a block of rows of this width takes, rounded up to whole vectors."""
    return ROOM * (-(-width // LANES) * LANES)


@serial
def rows_now(r: int, last: int) -> int:
    """Return how many rows the block has that begins at ``r``."""
    return last - r if last - r < ROOM else BLOCK


@serial
def block_at(memory: np.ndarray, width: int) -> np.ndarray:
    """Return the beginning of some memory as a block of rows."""
    return memory[: ROOM * width].reshape((ROOM, width))


@serial
def multiply_block(
    x: np.ndarray,
    r: int,
    count: int,
    panels: np.ndarray,
    n: int,
    end: int,
    block: np.ndarray,
    soon: Soon,
) -> None:
    """Write columns ``n`` to ``end`` of ``count`` rows of x times packed panels to a block.

    Meanwhile ``soon`` is asked for: where the block's rows will go, and what will be added to them.
    """
    row = x.shape[1] * x.itemsize
    multiply_panels(
        count,
        n,
        end,
        x.shape[1],
        x.ctypes.data + r * row,
        row,
        panels,
        block.ctypes.data,
        block.shape[1] * 4,
        soon,
    )


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
    count, width = y.shape
    for t in prange(parts):
        prepare(panels)
        block = block_at(scratch[t], GROUP)
        r, last = count * t // parts, count * (t + 1) // parts
        while r < last:
            taken = rows_now(r, last)
            for n in range(0, width, GROUP):
                end = min(n + GROUP, width)
                multiply_block(x, r, taken, panels, n, end, block, into(y, r, n))
                for i in range(taken):
                    add_bias(block[i, : end - n], bias[n:end], y[r + i, n:end])
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
    count, width = y.shape
    for t in prange(parts):
        prepare(panels)
        block = block_at(scratch[t], GROUP)
        r, last = count * t // parts, count * (t + 1) // parts
        while r < last:
            taken = rows_now(r, last)
            for n in range(0, width, GROUP):
                end = min(n + GROUP, width)
                multiply_block(x, r, taken, panels, n, end, block, beside(skip, y, r, n))
                for i in range(taken):
                    add_branch(
                        block[i, : end - n],
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

    Scratch is ``room(GROUP) + room(depth)`` a thread.
    """
    count, width = y.shape
    for t in prange(parts):
        prepare(panels)
        block = block_at(scratch[t], GROUP)
        normal = block_at(kind_of(scratch[t, block.size :], panels), x.shape[1])
        r, last = count * t // parts, count * (t + 1) // parts
        while r < last:
            taken = rows_now(r, last)
            for i in range(taken):
                mean[r + i], rstd[r + i] = normalize(
                    x[r + i], norm_weight, norm_bias, eps, normal[i]
                )
            for n in range(0, width, GROUP):
                end = min(n + GROUP, width)
                multiply_block(normal, 0, taken, panels, n, end, block, into(y, r, n))
                for i in range(taken):
                    add_bias(block[i, : end - n], bias[n:end], y[r + i, n:end])
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
    count, width = dx.shape
    for t in prange(parts):
        prepare(panels)
        block = block_at(scratch[t], GROUP)
        r, last = count * t // parts, count * (t + 1) // parts
        while r < last:
            taken = rows_now(r, last)
            for n in range(0, width, GROUP):
                end = min(n + GROUP, width)
                multiply_block(dy, r, taken, panels, n, end, block, beside(slope, dx, r, n))
                for i in range(taken):
                    scale_by(block[i, : end - n], slope[r + i, n:end], dx[r + i, n:end])
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
    count, width = x.shape
    for t in prange(parts):
        prepare(panels)
        block = block_at(scratch[t], (width + LANES - 1) // LANES * LANES)
        dweight, dbias = sums[t, 0], sums[t, 1]
        dweight[:] = 0
        dbias[:] = 0
        r, last = count * t // parts, count * (t + 1) // parts
        while r < last:
            taken = rows_now(r, last)
            multiply_block(dy, r, taken, panels, 0, width, block, beside(x, skip, r, 0))
            for i in range(r, r + taken):
                normalize_backward(
                    block[i - r, :width],
                    x[i],
                    norm_weight,
                    mean[i],
                    rstd[i],
                    skip[i],
                    dx[i],
                    dweight,
                    dbias,
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
