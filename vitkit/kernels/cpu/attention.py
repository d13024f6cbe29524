"""Attention one head at a time, in the cache; the meaning is in :mod:`vitkit.ops.attention`.

Scores are made for a block of queries, turned into probabilities and multiplied by the values
before the next block; no (N, N) array ever reaches memory. Only a head's keys are packed,
transposed, and for gradients its values; all else is read and written where it lies, if the rows of
a head are whole vectors. What is spare is used only where they are not.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import prange

from vitkit.backend import Array, ArrayModule
from vitkit.kernels.cpu._ahead import ask_for_head
from vitkit.kernels.cpu._arrays import padded, plain, served
from vitkit.kernels.cpu._compile import parallel, serial
from vitkit.kernels.cpu._math import ONE, F
from vitkit.kernels.cpu._memory import empty, scratch
from vitkit.kernels.cpu._moves import transpose_scaled
from vitkit.kernels.cpu._processor import LANES
from vitkit.kernels.cpu._scores import (
    dot,
    exponentials,
    fill_mask,
    multiply_by,
    score_gradients,
)
from vitkit.kernels.cpu._threads import threads
from vitkit.kernels.cpu._tile import ROWS, multiply
from vitkit.ops.attention import multi_head_attention, multi_head_attention_backward

QUERIES = 34 * ROWS  # rows of scores at once: all of a 224-pixel image with patches of 16
Place = tuple[int, int]
"""Where a matrix is, and how far it is to its next row, in bytes."""


@serial
def transposed(
    x: np.ndarray, first: int, column: int, count: int, width: int, factor: float, out: np.ndarray
) -> None:
    """Write ``width`` columns of ``count`` rows of x, times a factor, as rows of whole vectors.

    The padding is of no meaning, and finite.
    """
    row = padded(count)
    tiles, lines = count // LANES * LANES, width // LANES * LANES
    source, step = x.ctypes.data + (first * x.shape[1] + column) * 4, x.shape[1] * 4
    for i in range(0, tiles, LANES):
        for c in range(0, lines, LANES):
            transpose_scaled(
                source + i * step + c * 4,
                step,
                out.ctypes.data + (c * row + i) * 4,
                row * 4,
                factor,
            )
        for c in range(lines, width):
            for lane in range(i, i + LANES):
                out[c * row + lane] = x[first + lane, column + c] * factor
    for c in range(width):
        for i in range(tiles, count):
            out[c * row + i] = x[first + i, column + c] * factor
        for i in range(count, row):
            out[c * row + i] = 0


@serial
def place_of(x: np.ndarray, row: int, column: int) -> Place:
    """Return where a row of x is, from a column on."""
    return x.ctypes.data + (row * x.shape[1] + column) * 4, x.shape[1] * 4


@serial
def vectors_of(
    x: np.ndarray, row: int, column: int, count: int, width: int, spare: np.ndarray
) -> Place:
    """Return where some columns of rows of x can be read as whole vectors: there, or copied."""
    if width % LANES == 0:
        return place_of(x, row, column)
    step = padded(width)
    for i in range(count):
        for c in range(step):
            spare[i * step + c] = x[row + i, column + c] if c < width else 0
    return spare.ctypes.data, step * 4


@serial
def room_for(x: np.ndarray, row: int, column: int, width: int, spare: np.ndarray) -> Place:
    """Return where to write whole vectors that belong to some columns of x: there, or to spare."""
    if width % LANES == 0:
        return place_of(x, row, column)
    return spare.ctypes.data, padded(width) * 4


@serial
def put_back(
    spare: np.ndarray, count: int, width: int, x: np.ndarray, row: int, column: int
) -> None:
    """Copy what :func:`room_for` had no room for in x."""
    step = padded(width)
    if width % LANES:
        for i in range(count):
            for c in range(width):
                x[row + i, column + c] = spare[i * step + c]


@parallel
def forward(
    qkv: np.ndarray,
    tokens: int,
    heads: int,
    y: np.ndarray,
    largest: np.ndarray,
    log_total: np.ndarray,
    scratch: np.ndarray,
    parts: int,
) -> None:
    """Attend, a share of the heads for each thread."""
    dim = y.shape[1]
    width = dim // heads
    scale = F(1 / math.sqrt(width))
    count, wide, rows = largest.shape[0], padded(width), padded(tokens)
    line = rows * 4
    for t in prange(parts):
        keys_t, rest = scratch[t, : width * rows], scratch[t, width * rows :]
        spare_v, rest = rest[: tokens * wide], rest[tokens * wide :]
        scores, rest = rest[: QUERIES * rows], rest[QUERIES * rows :]
        spare, mask = rest[: QUERIES * wide], rest[QUERIES * wide :][:rows]
        fill_mask(mask, tokens)
        s = scores.ctypes.data
        for z in range(count * t // parts, count * (t + 1) // parts):
            first, column = z // heads * tokens, z % heads * width
            ask_for_head(qkv, z + 1, heads, tokens, width, 3)
            transposed(qkv, first, dim + column, tokens, width, scale, keys_t)
            v, v_row = vectors_of(qkv, first, 2 * dim + column, tokens, width, spare_v)
            for i0 in range(0, tokens, QUERIES):
                taken = min(QUERIES, tokens - i0)
                q, q_row = place_of(qkv, first + i0, column)
                multiply(taken, tokens, width, q, q_row, 4, keys_t.ctypes.data, line, s, line, 0)
                for i in range(taken):
                    row = s + i * line
                    top, total = exponentials(row, mask.ctypes.data, rows, ONE, row, scores)
                    multiply_by(row, rows, ONE / total)
                    largest[z, i0 + i], log_total[z, i0 + i] = top, math.log(total)
                out, out_row = room_for(y, first + i0, column, width, spare)
                multiply(taken, width, tokens, s, line, 4, v, v_row, out, out_row, 0)
                put_back(spare, taken, width, y, first + i0, column)


@parallel
def backward(
    dy: np.ndarray,
    qkv: np.ndarray,
    tokens: int,
    heads: int,
    y: np.ndarray,
    largest: np.ndarray,
    log_total: np.ndarray,
    dqkv: np.ndarray,
    scratch: np.ndarray,
    parts: int,
) -> None:
    """Write the gradients of queries, keys and values, a share of the heads for each thread."""
    dim = y.shape[1]
    width = dim // heads
    scales = ONE, F(1 / math.sqrt(width))  # of scores, whose keys are scaled, and of gradients
    count, wide, rows = log_total.shape[0], padded(width), padded(tokens)
    line = rows * 4
    flat_dy, flat_y = dy.reshape(-1), y.reshape(-1)
    for t in prange(parts):
        keys_t, rest = scratch[t, : width * rows], scratch[t, width * rows :]
        values_t, rest = rest[: width * rows], rest[width * rows :]
        spare_k, rest = rest[: tokens * wide], rest[tokens * wide :]
        spare_dk, rest = rest[: tokens * wide], rest[tokens * wide :]
        spare_dv, rest = rest[: tokens * wide], rest[tokens * wide :]
        spare_q, rest = rest[: QUERIES * wide], rest[QUERIES * wide :]
        spare_d, rest = rest[: QUERIES * wide], rest[QUERIES * wide :]
        spare_dq, rest = rest[: QUERIES * wide], rest[QUERIES * wide :]
        scores, rest = rest[: QUERIES * rows], rest[QUERIES * rows :]
        dscores, mask = rest[: QUERIES * rows], rest[QUERIES * rows :][:rows]
        fill_mask(mask, tokens)
        s, ds = scores.ctypes.data, dscores.ctypes.data
        for z in range(count * t // parts, count * (t + 1) // parts):
            first, column = z // heads * tokens, z % heads * width
            ask_for_head(qkv, z + 1, heads, tokens, width, 3)
            ask_for_head(dy, z + 1, heads, tokens, width, 1)
            ask_for_head(y, z + 1, heads, tokens, width, 1)
            transposed(qkv, first, dim + column, tokens, width, scales[1], keys_t)
            transposed(qkv, first, 2 * dim + column, tokens, width, ONE, values_t)
            k, k_row = vectors_of(qkv, first, dim + column, tokens, width, spare_k)
            dk, dk_row = room_for(dqkv, first, dim + column, width, spare_dk)
            dv, dv_row = room_for(dqkv, first, 2 * dim + column, width, spare_dv)
            for i0 in range(0, tokens, QUERIES):
                taken, adds = min(QUERIES, tokens - i0), 1 if i0 else 0
                q, q_row = vectors_of(qkv, first + i0, column, taken, width, spare_q)
                d, d_row = vectors_of(dy, first + i0, column, taken, width, spare_d)
                dq, dq_row = room_for(dqkv, first + i0, column, width, spare_dq)
                multiply(taken, tokens, width, q, q_row, 4, keys_t.ctypes.data, line, s, line, 0)
                multiply(taken, tokens, width, d, d_row, 4, values_t.ctypes.data, line, ds, line, 0)
                for i in range(taken):
                    row, drow, at = s + i * line, ds + i * line, (first + i0 + i) * dim + column
                    score_gradients(
                        row,
                        mask.ctypes.data,
                        drow,
                        rows,
                        scales,
                        largest[z, i0 + i],
                        log_total[z, i0 + i],
                        dot(flat_dy, at, flat_y, at, width),
                        row,
                        drow,
                        scores,
                    )
                multiply(taken, width, tokens, ds, line, 4, k, k_row, dq, dq_row, 0)
                multiply(tokens, width, taken, ds, 4, line, q, q_row, dk, dk_row, adds)
                multiply(tokens, width, taken, s, 4, line, d, d_row, dv, dv_row, adds)
                put_back(spare_dq, taken, width, dqkv, first + i0, column)
            put_back(spare_dk, tokens, width, dqkv, first, dim + column)
            put_back(spare_dv, tokens, width, dqkv, first, 2 * dim + column)


def attend(qkv: np.ndarray, num_heads: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Run the forward kernel on ``qkv`` (B, N, 3 D)."""
    batch, tokens, width = qkv.shape
    y = empty((batch, tokens, width // 3))
    largest, log_total = (empty((batch, num_heads, tokens)) for _ in range(2))
    wide, rows = padded(width // 3 // num_heads), padded(tokens)
    work = scratch(2 * wide * rows + QUERIES * (rows + wide) + rows)
    flat = (batch * num_heads, tokens)
    forward(
        qkv.reshape(-1, width),
        tokens,
        num_heads,
        y.reshape(-1, width // 3),
        largest.reshape(flat),
        log_total.reshape(flat),
        work,
        threads(),
    )
    return y, largest, log_total


def attend_backward(
    dy: np.ndarray, qkv: np.ndarray, y: np.ndarray, largest: np.ndarray, log_total: np.ndarray
) -> np.ndarray:
    """Run the backward kernel; returns ``dqkv`` (B, N, 3 D)."""
    batch, tokens, width = qkv.shape
    num_heads = log_total.shape[1]
    dqkv = empty(qkv.shape)
    wide, rows = padded(width // 3 // num_heads), padded(tokens)
    work = scratch(5 * wide * rows + QUERIES * (2 * rows + 3 * wide) + rows)
    flat = (batch * num_heads, tokens)
    backward(
        dy.reshape(-1, width // 3),
        qkv.reshape(-1, width),
        tokens,
        num_heads,
        y.reshape(-1, width // 3),
        largest.reshape(flat),
        log_total.reshape(flat),
        dqkv.reshape(-1, width),
        work,
        threads(),
    )
    return dqkv


@multi_head_attention.kernel("numpy")
def multi_head_attention_cpu(
    qkv: Array, num_heads: int, precision: str = "float32", *, xp: ArrayModule
) -> Any:
    """Replace :func:`vitkit.ops.multi_head_attention` for float32 arrays, rounding nothing."""
    if not served(qkv):
        return NotImplemented
    return attend(plain(qkv), num_heads)


@multi_head_attention_backward.kernel("numpy")
def multi_head_attention_backward_cpu(
    dy: Array,
    qkv: Array,
    y: Array,
    largest: Array,
    log_total: Array,
    precision: str = "float32",
    *,
    xp: ArrayModule,
) -> Any:
    """Replace :func:`vitkit.ops.multi_head_attention_backward` for float32 arrays."""
    if not served(dy, qkv, y, largest, log_total):
        return NotImplemented
    return attend_backward(*map(plain, (dy, qkv, y, largest, log_total)))
