"""The MLP branch in the cache; the meaning is in :mod:`vitkit.ops.mlp`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from vitkit.backend import Array, ArrayModule
from vitkit.kernels.cpu._ahead import NOTHING, beside
from vitkit.kernels.cpu._arrays import column, plain, rows
from vitkit.kernels.cpu._branch import (
    add_gradients,
    can_add_to,
    dtype_of,
    gained,
    gains_of,
    holds,
    serves,
    through_norm,
)
from vitkit.kernels.cpu._compile import parallel
from vitkit.kernels.cpu._math import F
from vitkit.kernels.cpu._memory import empty, scratch
from vitkit.kernels.cpu._numbers import kind_of
from vitkit.kernels.cpu._panels import GROUP, packed, packed_transposed, prepare
from vitkit.kernels.cpu._products import (
    ROOM,
    block_at,
    multiply_block,
    room,
    rows_now,
    scaled_product,
)
from vitkit.kernels.cpu._rows import activate, activate_only, add_branch, normalize
from vitkit.kernels.cpu._threads import parts, threads
from vitkit.ops.mlp import (
    ACTIVATIONS,
    MLPArrays,
    mlp_branch,
    mlp_branch_backward_inplace,
)

KINDS = list(ACTIVATIONS)


@parallel
def forward(
    x: np.ndarray,
    norm_weight: np.ndarray,
    norm_bias: np.ndarray,
    eps: float,
    kind: int,
    panels1: np.ndarray,
    bias1: np.ndarray,
    panels2: np.ndarray,
    bias2: np.ndarray,
    gains: np.ndarray,
    tokens: int,
    mean: np.ndarray,
    rstd: np.ndarray,
    hidden: np.ndarray,
    slope: np.ndarray,
    keeps: bool,
    y: np.ndarray,
    scratch: np.ndarray,
    parts: int,
) -> None:
    """Take each block of rows through the whole branch.

    ``hidden`` and ``slope`` have all rows where they are kept; else ``hidden`` has one block for
    each thread, and ``slope`` is not used.
    """
    count, width = x.shape
    middle = bias1.size
    for t in prange(parts):
        prepare(panels1)
        block = block_at(scratch[t], GROUP)
        normal = block_at(kind_of(scratch[t, block.size :], panels1), width)
        r, last = count * t // parts, count * (t + 1) // parts
        while r < last:
            taken, h = rows_now(r, last), r if keeps else t * ROOM
            for i in range(taken):
                mean[r + i], rstd[r + i] = normalize(
                    x[r + i], norm_weight, norm_bias, eps, normal[i]
                )
            for n in range(0, middle, GROUP):
                end = min(n + GROUP, middle)
                soon = beside(hidden, slope, r, n) if keeps else NOTHING
                multiply_block(normal, 0, taken, panels1, n, end, block, soon)
                for i in range(taken):
                    line = block[i, : end - n]
                    if keeps:
                        activate(
                            kind, line, bias1[n:end], hidden[h + i, n:end], slope[h + i, n:end]
                        )
                    else:
                        activate_only(kind, line, bias1[n:end], hidden[h + i, n:end])
            for n in range(0, width, GROUP):
                end = min(n + GROUP, width)
                multiply_block(hidden, h, taken, panels2, n, end, block, beside(x, y, r, n))
                for i in range(taken):
                    add_branch(
                        block[i, : end - n],
                        bias2[n:end],
                        gains[(r + i) // tokens],
                        x[r + i, n:end],
                        y[r + i, n:end],
                    )
            r += taken


@mlp_branch.kernel("numpy")
def mlp_branch_cpu(
    x: Array,
    weights: MLPArrays,
    eps: float,
    activation: str,
    gain: Array | None,
    precision: str,
    keep: bool,
    *,
    xp: ArrayModule,
) -> Any:
    """Replace :func:`vitkit.ops.mlp_branch` for float32 weights."""
    if not serves(x, weights.fc1_weight.shape, precision, (gain, *weights)):
        return NotImplemented
    norm_weight, norm_bias, w1, b1, w2, b2 = map(plain, weights)
    flat, middle = rows(x), w1.shape[0]
    y, mean, rstd = empty(x.shape), empty((*x.shape[:2], 1)), empty((*x.shape[:2], 1))
    kept_rows = x.shape[:2] if keep else (1, threads() * ROOM)
    hidden = empty((*kept_rows, middle), dtype_of(precision))
    slope = empty(hidden.shape, hidden.dtype) if keep else hidden
    forward(
        flat,
        norm_weight,
        norm_bias,
        F(eps),
        KINDS.index(activation),
        packed_transposed(w1, precision),
        b1,
        packed_transposed(w2, precision),
        b2,
        gains_of(gain, x),
        x.shape[1],
        column(mean),
        column(rstd),
        rows(hidden),
        rows(slope),
        keep,
        rows(y),
        scratch(room(x.shape[2]) + room(GROUP)),
        parts(len(flat)),
    )
    return y, (mean, rstd, hidden, slope) if keep else ()


@mlp_branch_backward_inplace.kernel("numpy")
def mlp_branch_backward_cpu(
    dy: Array,
    x: Array,
    kept: tuple[Array, ...],
    weights: MLPArrays,
    grads: MLPArrays,
    gain: Array | None,
    precision: str,
    *,
    xp: ArrayModule,
) -> Any:
    """Replace :func:`vitkit.ops.mlp_branch_backward_inplace` for float32 weights."""
    mean, rstd, hidden, slope = kept
    arrays = (dy, gain, mean, rstd, *weights, *grads)
    if not serves(x, weights.fc1_weight.shape, precision, arrays):
        return NotImplemented
    if not (holds((hidden, slope), precision) and can_add_to(grads)):
        return NotImplemented
    branch = gained(dy, gain, precision)
    add_gradients(branch, rows(hidden), grads.fc2_weight, grads.fc2_bias)
    dh = empty(hidden.shape, hidden.dtype)
    scaled_product(
        branch,
        packed(weights.fc2_weight, precision),
        rows(slope),
        rows(dh),
        scratch(room(GROUP)),
        parts(len(branch)),
    )
    dx, u = through_norm(rows(dh), weights.fc1_weight, x, weights, mean, rstd, dy, grads, precision)
    add_gradients(rows(dh), u, grads.fc1_weight, grads.fc1_bias)
    return dx
