"""Attention by products of bfloat16, one head at a time; sums and softmax are float32.

As in :mod:`vitkit.kernels.cpu.attention`; every operand is first laid out for the tile unit, rows
and columns filled up with zeros to whole tiles.
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from vitkit.kernels.cpu._amx import SIDE, configure_tiles, multiply_tiles
from vitkit.kernels.cpu._compile import LANES, parallel, serial, widest_vectors
from vitkit.kernels.cpu._math import ZERO, F, exp
from vitkit.kernels.cpu._memory import empty, scratch
from vitkit.kernels.cpu._numbers import narrow, wide
from vitkit.kernels.cpu._panels import pair_rows, transpose_pairs, transpose_tile
from vitkit.kernels.cpu._rows import convert
from vitkit.kernels.cpu._threads import threads
from vitkit.kernels.cpu.attention import largest_of

QUERIES = 224  # rows of scores at once, a multiple of SIDE


@serial
def tiled(count: int) -> int:
    """Return how many numbers whole tiles hold, along the summed axis."""
    return (count + SIDE - 1) // SIDE * SIDE


@serial
def copied(x: np.ndarray, first: int, column: int, count: int, width: int, out: np.ndarray) -> None:
    """Write some columns of some rows to whole tiles of ``tiled(width)`` columns, zeros beyond."""
    row = tiled(width)
    for i in range(tiled(count)):
        line = out[i * row : (i + 1) * row]
        if i < count:
            line[:width] = x[first + i, column : column + width]
            line[width:] = 0
        else:
            line[:] = 0


@serial
def as_columns(rows: np.ndarray, count: int, width: int, out: np.ndarray) -> None:
    """Lay out ``count`` rows as the columns of a right-hand operand; both sizes are tiled."""
    source, words = rows.ctypes.data, width // 2
    for i in range(0, count, LANES):
        for k in range(0, words, LANES):
            transpose_tile(
                source + (i * words + k) * 4,
                words * 4,
                out.ctypes.data + (k * count + i) * 4,
                count * 4,
            )


@serial
def as_rows(rows: np.ndarray, count: int, width: int, out: np.ndarray) -> None:
    """Lay out ``count`` rows as the rows of a right-hand operand; both sizes are tiled."""
    for p in range(count // 2):
        for j in range(0, width, SIDE):
            pair_rows(
                rows.ctypes.data + (2 * p * width + j) * 2,
                width * 2,
                out.ctypes.data + (p * width + j) * 4,
            )


@serial
def transposed(matrix: np.ndarray, count: int, width: int, out: np.ndarray) -> None:
    """Transpose a matrix (count, width) for the left-hand side; both sizes are tiled."""
    for i in range(0, count, 2 * LANES):
        for j in range(0, width, LANES):
            transpose_pairs(
                matrix.ctypes.data + (i * width + j) * 2,
                width * 2,
                out.ctypes.data + (j * count + i) * 2,
                count * 2,
            )


@serial
def exponentials(scores: np.ndarray, scale: float, out: np.ndarray) -> tuple[float, float]:
    """Write exponentials of scores, relative to the largest; return that one and their sum."""
    widest_vectors()
    largest = largest_of(scores)
    total = ZERO
    for j in range(scores.size):
        e = exp((scores[j] - largest) * scale)
        out[j] = narrow(e, out)
        total += e
    return largest * scale, total


@serial
def score_gradients(
    scores: np.ndarray,
    dp: np.ndarray,
    scale: float,
    log_total: float,
    delta: float,
    p_out: np.ndarray,
    ds_out: np.ndarray,
) -> None:
    """Write probabilities, and the gradients of the scores."""
    widest_vectors()
    largest = largest_of(scores)
    # Not subtracted before exp: beside huge scores it would be lost.
    share = F(math.exp(-log_total))
    for j in range(scores.size):
        p = exp((scores[j] - largest) * scale) * share
        p_out[j] = narrow(p, p_out)
        ds_out[j] = narrow(p * (dp[j] - delta) * scale, ds_out)


@serial
def dot(x: np.ndarray, y: np.ndarray) -> float:
    """Return the sum of products of two rows."""
    widest_vectors()
    total = ZERO
    for k in range(x.size):
        total += wide(x[k]) * wide(y[k])
    return total


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
    count, deep, rows = largest.shape[0], tiled(width), tiled(tokens)
    most = min(QUERIES, rows)
    for t in prange(parts):
        configure_tiles()
        scores, rest = scratch[t, : most * rows], scratch[t, most * rows :]
        result, rest = rest[: most * deep], rest[most * deep :]
        halves = rest.view(np.uint16)
        loose, halves = halves[: rows * deep], halves[rows * deep :]
        queries, halves = halves[: rows * deep], halves[rows * deep :]
        keys, halves = halves[: rows * deep], halves[rows * deep :]
        values, p = halves[: rows * deep], halves[rows * deep :]
        p[: most * rows] = 0
        for z in range(count * t // parts, count * (t + 1) // parts):
            first, column = z // heads * tokens, z % heads * width
            copied(qkv, first, column, tokens, width, queries)
            copied(qkv, first, dim + column, tokens, width, loose)
            as_columns(loose, rows, deep, keys)
            copied(qkv, first, 2 * dim + column, tokens, width, loose)
            as_rows(loose, rows, deep, values)
            for i0 in range(0, tokens, QUERIES):
                taken = min(QUERIES, tokens - i0)
                down = (taken + LANES - 1) // LANES * LANES
                multiply_tiles(
                    down,
                    rows,
                    deep,
                    queries.ctypes.data + i0 * deep * 2,
                    deep * 2,
                    keys.ctypes.data,
                    rows * 4,
                    scores.ctypes.data,
                    rows * 4,
                    0,
                )
                for i in range(taken):
                    line = slice(i * rows, i * rows + tokens)
                    top, total = exponentials(scores[line], scale, p[line])
                    largest[z, i0 + i] = top
                    log_total[z, i0 + i] = total
                multiply_tiles(
                    down,
                    deep,
                    rows,
                    p.ctypes.data,
                    rows * 2,
                    values.ctypes.data,
                    deep * 4,
                    result.ctypes.data,
                    deep * 4,
                    0,
                )
                for i in range(taken):
                    total = log_total[z, i0 + i]
                    convert(
                        result[i * deep : i * deep + width],
                        F(1) / total,
                        y[first + i0 + i, column : column + width],
                    )
                    log_total[z, i0 + i] = math.log(total)


@parallel
def backward(
    dy: np.ndarray,
    qkv: np.ndarray,
    tokens: int,
    heads: int,
    y: np.ndarray,
    log_total: np.ndarray,
    dqkv: np.ndarray,
    scratch: np.ndarray,
    parts: int,
) -> None:
    """Return the gradients of queries, keys and values, a share of the heads for each thread."""
    dim = y.shape[1]
    width = dim // heads
    scale = F(1 / math.sqrt(width))
    count, deep, rows = log_total.shape[0], tiled(width), tiled(tokens)
    most = min(QUERIES, rows)
    for t in prange(parts):
        configure_tiles()
        scores, rest = scratch[t, : most * rows], scratch[t, most * rows :]
        dp, rest = rest[: most * rows], rest[most * rows :]
        dqueries, rest = rest[: most * deep], rest[most * deep :]
        dkeys, rest = rest[: rows * deep], rest[rows * deep :]
        dvalues, rest = rest[: rows * deep], rest[rows * deep :]
        halves = rest.view(np.uint16)
        queries, halves = halves[: rows * deep], halves[rows * deep :]
        dresult, halves = halves[: rows * deep], halves[rows * deep :]
        loose, halves = halves[: rows * deep], halves[rows * deep :]
        keys_t, halves = halves[: rows * deep], halves[rows * deep :]
        values_t, halves = halves[: rows * deep], halves[rows * deep :]
        keys, halves = halves[: rows * deep], halves[rows * deep :]
        paired, halves = halves[: most * deep], halves[most * deep :]
        p, halves = halves[: most * rows], halves[most * rows :]
        ds, halves = halves[: most * rows], halves[most * rows :]
        turned = halves[: most * rows]
        for z in range(count * t // parts, count * (t + 1) // parts):
            first, column = z // heads * tokens, z % heads * width
            copied(qkv, first, column, tokens, width, queries)
            copied(dy, first, column, tokens, width, dresult)
            copied(qkv, first, 2 * dim + column, tokens, width, loose)
            as_columns(loose, rows, deep, values_t)
            copied(qkv, first, dim + column, tokens, width, loose)
            as_columns(loose, rows, deep, keys_t)
            as_rows(loose, rows, deep, keys)
            for i0 in range(0, tokens, QUERIES):
                taken, adds = min(QUERIES, tokens - i0), 1 if i0 else 0
                down = tiled(taken)
                at = i0 * deep
                multiply_tiles(
                    down,
                    rows,
                    deep,
                    queries.ctypes.data + at * 2,
                    deep * 2,
                    keys_t.ctypes.data,
                    rows * 4,
                    scores.ctypes.data,
                    rows * 4,
                    0,
                )
                multiply_tiles(
                    down,
                    rows,
                    deep,
                    dresult.ctypes.data + at * 2,
                    deep * 2,
                    values_t.ctypes.data,
                    rows * 4,
                    dp.ctypes.data,
                    rows * 4,
                    0,
                )
                p[: down * rows] = 0
                ds[: down * rows] = 0
                for i in range(taken):
                    mixed = y[first + i0 + i, column : column + width]
                    delta = dot(dresult[at + i * deep : at + i * deep + width], mixed)
                    line = slice(i * rows, i * rows + tokens)
                    score_gradients(
                        scores[line],
                        dp[line],
                        scale,
                        log_total[z, i0 + i],
                        delta,
                        p[line],
                        ds[line],
                    )
                multiply_tiles(
                    down,
                    deep,
                    rows,
                    ds.ctypes.data,
                    rows * 2,
                    keys.ctypes.data,
                    deep * 4,
                    dqueries.ctypes.data,
                    deep * 4,
                    0,
                )
                transposed(ds, down, rows, turned)
                as_rows(queries[at:], down, deep, paired)
                multiply_tiles(
                    rows,
                    deep,
                    down,
                    turned.ctypes.data,
                    down * 2,
                    paired.ctypes.data,
                    deep * 4,
                    dkeys.ctypes.data,
                    deep * 4,
                    adds,
                )
                transposed(p, down, rows, turned)
                as_rows(dresult[at:], down, deep, paired)
                multiply_tiles(
                    rows,
                    deep,
                    down,
                    turned.ctypes.data,
                    down * 2,
                    paired.ctypes.data,
                    deep * 4,
                    dvalues.ctypes.data,
                    deep * 4,
                    adds,
                )
                for i in range(taken):
                    convert(
                        dqueries[i * deep : i * deep + width],
                        F(1),
                        dqkv[first + i0 + i, column : column + width],
                    )
            for i in range(tokens):
                convert(
                    dkeys[i * deep : i * deep + width],
                    F(1),
                    dqkv[first + i, dim + column : dim + column + width],
                )
                convert(
                    dvalues[i * deep : i * deep + width],
                    F(1),
                    dqkv[first + i, 2 * dim + column : 2 * dim + column + width],
                )


def attend(qkv: np.ndarray, num_heads: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Run the forward kernel on ``qkv`` (B, N, 3 D), bits of bfloat16."""
    batch, tokens, width = qkv.shape
    y = empty((batch, tokens, width // 3), np.uint16)
    largest, log_total = (empty((batch, num_heads, tokens)) for _ in range(2))
    deep, rows = _tiled(width // 3 // num_heads), _tiled(tokens)
    most = min(QUERIES, rows)
    work = scratch(most * rows + most * deep + (4 * rows * deep + most * rows) // 2)
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
    """Run the backward kernel; returns ``dqkv`` (B, N, 3 D), bits of bfloat16.

    It finds the largest score of each row again, before the scores are scaled.
    """
    batch, tokens, width = qkv.shape
    num_heads = log_total.shape[1]
    dqkv = empty(qkv.shape, np.uint16)
    deep, rows = _tiled(width // 3 // num_heads), _tiled(tokens)
    most = min(QUERIES, rows)
    whole = 2 * most * rows + most * deep + 2 * rows * deep
    work = scratch(whole + (6 * rows * deep + most * deep + 3 * most * rows) // 2)
    flat = (batch * num_heads, tokens)
    backward(
        dy.reshape(-1, width // 3),
        qkv.reshape(-1, width),
        tokens,
        num_heads,
        y.reshape(-1, width // 3),
        log_total.reshape(flat),
        dqkv.reshape(-1, width),
        work,
        threads(),
    )
    return dqkv


def _tiled(count: int) -> int:
    return -(-count // SIDE) * SIDE
