"""Attention one head at a time, in the cache; the meaning is in :mod:`vitkit.ops.attention`.

Scores are made for a block of queries, turned into probabilities and multiplied by the values
before the next block; no (N, N) array ever reaches memory. Queries, keys
and values of one head are packed into a few kilobytes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import prange

from vitkit.backend import Array, ArrayModule
from vitkit.kernels.cpu._ahead import ask_for_rows
from vitkit.kernels.cpu._arrays import plain, served
from vitkit.kernels.cpu._compile import parallel, serial, widest_vectors
from vitkit.kernels.cpu._math import ONE, F
from vitkit.kernels.cpu._memory import empty, scratch
from vitkit.kernels.cpu._moves import transpose_tile
from vitkit.kernels.cpu._processor import LANES
from vitkit.kernels.cpu._scores import (
    dot,
    exponentials,
    fill_mask,
    padded,
    put_rows,
    score_gradients,
)
from vitkit.kernels.cpu._threads import threads
from vitkit.kernels.cpu._tile import ROWS, multiply
from vitkit.ops.attention import multi_head_attention, multi_head_attention_backward

QUERIES = 34 * ROWS  # rows of scores at once: all of a 224-pixel image with patches of 16


@serial
def transposed(
    x: np.ndarray, first: int, column: int, count: int, width: int, out: np.ndarray
) -> None:
    """Write ``width`` columns of ``count`` rows of x, as rows of ``padded(count)`` numbers.

    The padding is of no meaning, and finite.
    """
    row = padded(count)
    tiles, lines = count // LANES * LANES, width // LANES * LANES
    source, step = x.ctypes.data + (first * x.shape[1] + column) * 4, x.shape[1] * 4
    for i in range(0, tiles, LANES):
        for c in range(0, lines, LANES):
            transpose_tile(
                source + i * step + c * 4, step, out.ctypes.data + (c * row + i) * 4, row * 4
            )
        for c in range(lines, width):
            for lane in range(i, i + LANES):
                out[c * row + lane] = x[first + lane, column + c]
    for c in range(width):
        for i in range(tiles, count):
            out[c * row + i] = x[first + i, column + c]
        for i in range(count, row):
            out[c * row + i] = 0


@serial
def copied(
    x: np.ndarray,
    first: int,
    column: int,
    count: int,
    width: int,
    factor: float,
    out: np.ndarray,
) -> None:
    """Write ``width`` columns of some rows, times a factor, in rows of ``padded(width)``."""
    widest_vectors()
    row = padded(width)
    for i in range(count):
        source, line = x[first + i, column : column + width], out[i * row : (i + 1) * row]
        for c in range(width):
            line[c] = source[c] * factor
        for c in range(width, row):
            line[c] = 0


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
    for t in prange(parts):
        keys, rest = scratch[t, : width * rows], scratch[t, width * rows :]
        values, rest = rest[: tokens * wide], rest[tokens * wide :]
        queries, rest = rest[: QUERIES * wide], rest[QUERIES * wide :]
        scores, rest = rest[: QUERIES * rows], rest[QUERIES * rows :]
        result, rest = rest[: QUERIES * wide], rest[QUERIES * wide :]
        mask, inverse = rest[:rows], rest[rows : rows + QUERIES]
        fill_mask(mask, tokens)
        for z in range(count * t // parts, count * (t + 1) // parts):
            first, column = z // heads * tokens, z % heads * width
            following, beside = (z + 1) // heads * tokens, (z + 1) % heads * width
            for part in range(3):
                ask_for_rows(qkv, following, part * dim + beside, tokens, width)
            transposed(qkv, first, dim + column, tokens, width, keys)
            copied(qkv, first, 2 * dim + column, tokens, width, ONE, values)
            for i0 in range(0, tokens, QUERIES):
                taken = min(QUERIES, tokens - i0)
                copied(qkv, first + i0, column, taken, width, scale, queries)
                multiply(
                    taken,
                    tokens,
                    width,
                    queries.ctypes.data,
                    wide * 4,
                    4,
                    keys.ctypes.data,
                    rows * 4,
                    scores.ctypes.data,
                    rows * 4,
                    0,
                )
                for i in range(taken):
                    top, total = exponentials(scores[i * rows : (i + 1) * rows], mask)
                    largest[z, i0 + i] = top
                    log_total[z, i0 + i] = math.log(total)
                    inverse[i] = ONE / total
                multiply(
                    taken,
                    width,
                    tokens,
                    scores.ctypes.data,
                    rows * 4,
                    4,
                    values.ctypes.data,
                    wide * 4,
                    result.ctypes.data,
                    wide * 4,
                    0,
                )
                put_rows(result, wide, taken, width, inverse, y, first + i0, column)


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
    scale = F(1 / math.sqrt(width))
    count, wide, rows = log_total.shape[0], padded(width), padded(tokens)
    for t in prange(parts):
        keys_t, rest = scratch[t, : width * rows], scratch[t, width * rows :]
        values_t, rest = rest[: width * rows], rest[width * rows :]
        keys, rest = rest[: tokens * wide], rest[tokens * wide :]
        dkeys, rest = rest[: tokens * wide], rest[tokens * wide :]
        dvalues, rest = rest[: tokens * wide], rest[tokens * wide :]
        queries, rest = rest[: QUERIES * wide], rest[QUERIES * wide :]
        dresult, rest = rest[: QUERIES * wide], rest[QUERIES * wide :]
        dqueries, rest = rest[: QUERIES * wide], rest[QUERIES * wide :]
        scores, rest = rest[: QUERIES * rows], rest[QUERIES * rows :]
        dscores, rest = rest[: QUERIES * rows], rest[QUERIES * rows :]
        mask, rest = rest[:rows], rest[rows:]
        ones, scales = rest[:rows], rest[rows : 2 * rows]
        fill_mask(mask, tokens)
        ones[:] = ONE
        scales[:] = scale
        for z in range(count * t // parts, count * (t + 1) // parts):
            first, column = z // heads * tokens, z % heads * width
            following, beside = (z + 1) // heads * tokens, (z + 1) % heads * width
            for part in range(3):
                ask_for_rows(qkv, following, part * dim + beside, tokens, width)
            ask_for_rows(dy, following, beside, tokens, width)
            ask_for_rows(y, following, beside, tokens, width)
            transposed(qkv, first, dim + column, tokens, width, keys_t)
            transposed(qkv, first, 2 * dim + column, tokens, width, values_t)
            copied(qkv, first, dim + column, tokens, width, ONE, keys)
            for i0 in range(0, tokens, QUERIES):
                taken, adds = min(QUERIES, tokens - i0), 1 if i0 else 0
                copied(qkv, first + i0, column, taken, width, scale, queries)
                copied(dy, first + i0, column, taken, width, ONE, dresult)
                multiply(
                    taken,
                    tokens,
                    width,
                    queries.ctypes.data,
                    wide * 4,
                    4,
                    keys_t.ctypes.data,
                    rows * 4,
                    scores.ctypes.data,
                    rows * 4,
                    0,
                )
                multiply(
                    taken,
                    tokens,
                    width,
                    dresult.ctypes.data,
                    wide * 4,
                    4,
                    values_t.ctypes.data,
                    rows * 4,
                    dscores.ctypes.data,
                    rows * 4,
                    0,
                )
                for i in range(taken):
                    line = y[first + i0 + i, column : column + width]
                    delta = dot(dresult[i * wide : i * wide + width], line)
                    score_gradients(
                        scores[i * rows : (i + 1) * rows],
                        mask,
                        dscores[i * rows : (i + 1) * rows],
                        largest[z, i0 + i],
                        log_total[z, i0 + i],
                        delta,
                    )
                multiply(
                    taken,
                    width,
                    tokens,
                    dscores.ctypes.data,
                    rows * 4,
                    4,
                    keys.ctypes.data,
                    wide * 4,
                    dqueries.ctypes.data,
                    wide * 4,
                    0,
                )
                multiply(
                    tokens,
                    width,
                    taken,
                    dscores.ctypes.data,
                    4,
                    rows * 4,
                    queries.ctypes.data,
                    wide * 4,
                    dkeys.ctypes.data,
                    wide * 4,
                    adds,
                )
                multiply(
                    tokens,
                    width,
                    taken,
                    scores.ctypes.data,
                    4,
                    rows * 4,
                    dresult.ctypes.data,
                    wide * 4,
                    dvalues.ctypes.data,
                    wide * 4,
                    adds,
                )
                put_rows(dqueries, wide, taken, width, scales, dqkv, first + i0, column)
            put_rows(dkeys, wide, tokens, width, ones, dqkv, first, dim + column)
            put_rows(dvalues, wide, tokens, width, ones, dqkv, first, 2 * dim + column)


def _whole(count: int) -> int:
    return -(-count // LANES) * LANES


def attend(qkv: np.ndarray, num_heads: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Run the forward kernel on ``qkv`` (B, N, 3 D)."""
    batch, tokens, width = qkv.shape
    y = empty((batch, tokens, width // 3))
    largest, log_total = (empty((batch, num_heads, tokens)) for _ in range(2))
    wide, rows = _whole(width // 3 // num_heads), _whole(tokens)
    work = scratch(2 * wide * rows + QUERIES * (rows + 2 * wide + 1) + rows)
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
    wide, rows = _whole(width // 3 // num_heads), _whole(tokens)
    work = scratch(5 * wide * rows + QUERIES * (2 * rows + 3 * wide) + 3 * rows)
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
    """Replace :func:`vitkit.ops.multi_head_attention` for float32."""
    if not served(qkv) or precision != "float32":
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
    """Replace :func:`vitkit.ops.multi_head_attention_backward` for float32."""
    if not served(dy, qkv, y, largest, log_total) or precision != "float32":
        return NotImplemented
    return attend_backward(*map(plain, (dy, qkv, y, largest, log_total)))
