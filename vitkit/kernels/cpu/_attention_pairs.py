"""Attention by products of bfloat16, one head at a time; sums and softmax are float32.

As in :mod:`vitkit.kernels.cpu.attention`; every operand is first laid out for the tile unit, rows
and columns filled up with zeros to whole tiles.
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange
from numba.extending import register_jitable

from vitkit.kernels.cpu._ahead import ask_for_head
from vitkit.kernels.cpu._arrays import filled, padded
from vitkit.kernels.cpu._compile import parallel, serial
from vitkit.kernels.cpu._math import ONE, F
from vitkit.kernels.cpu._memory import empty, scratch
from vitkit.kernels.cpu._moves import (
    copy_line,
    pair_rows,
    transpose_pairs,
    transpose_tile,
)
from vitkit.kernels.cpu._pairs import DEPTH_UNIT, ROW_UNIT, SIDE, configure_tiles, multiply_tiles
from vitkit.kernels.cpu._processor import LANES
from vitkit.kernels.cpu._scores import (
    dot,
    exponentials,
    fill_mask,
    largest_of,
    put_rows,
    score_gradients,
)
from vitkit.kernels.cpu._threads import threads

QUERIES = 224  # rows of scores at once, a multiple of SIDE


@register_jitable
def tiled(count: int) -> int:
    """Return how many numbers whole tiles hold, along the summed axis."""
    return filled(count, SIDE)


@serial
def copied(
    x: np.ndarray, first: int, column: int, count: int, width: int, rows: int, out: np.ndarray
) -> None:
    """Write some columns of ``count`` rows, ``tiled(width)`` wide, and zeros up to ``rows``."""
    row, whole = tiled(width), width // SIDE * SIDE
    source, result = x.ctypes.data + (first * x.shape[1] + column) * 2, out.ctypes.data
    for i in range(count):
        # Lines by hand: a loop over so few numbers is not long enough for Numba's vectors.
        for c in range(0, whole, SIDE):
            copy_line(source + (i * x.shape[1] + c) * 2, result + (i * row + c) * 2)
        for c in range(whole, row):
            out[i * row + c] = x[first + i, column + c] if c < width else 0
    out[count * row : rows * row] = 0


@serial
def as_columns(rows: np.ndarray, count: int, width: int, out: np.ndarray) -> None:
    """Lay out ``count`` rows as the columns of a right-hand operand; both sizes fill tiles."""
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
    """Lay out ``count`` rows as the rows of a right-hand operand; both sizes fill tiles."""
    for p in range(count // 2):
        for j in range(0, width, SIDE):
            pair_rows(
                rows.ctypes.data + (2 * p * width + j) * 2,
                width * 2,
                out.ctypes.data + (p * width + j) * 4,
            )


@serial
def transposed(matrix: np.ndarray, count: int, width: int, row: int, out: np.ndarray) -> None:
    """Transpose (count, width) for the left-hand side; rows are ``row`` numbers apart."""
    for i in range(0, count, 2 * LANES):
        for j in range(0, width, LANES):
            transpose_pairs(
                matrix.ctypes.data + (i * row + j) * 2,
                row * 2,
                out.ctypes.data + (j * count + i) * 2,
                count * 2,
            )


@parallel
def forward(
    qkv: np.ndarray,
    tokens: int,
    heads: int,
    y: np.ndarray,
    largest: np.ndarray,
    log_total: np.ndarray,
    scratch: np.ndarray,
    masks: np.ndarray,
    parts: int,
) -> None:
    """Attend, a share of the heads for each thread."""
    dim = y.shape[1]
    width = dim // heads
    scale = F(1 / math.sqrt(width))
    # Laid out for whole tiles of 16 where tokens are rows or columns, and of 32 where they are
    # summed; products take only as many as the unit needs.
    count, deep, rows, summed = largest.shape[0], tiled(width), padded(tokens), tiled(tokens)
    most, keys_summed = min(QUERIES, rows), filled(tokens, DEPTH_UNIT)
    for t in prange(parts):
        configure_tiles()
        scores, rest = scratch[t, : most * rows], scratch[t, most * rows :]
        result, rest = rest[: most * deep], rest[most * deep :]
        halves = rest.view(np.uint16)
        loose, halves = halves[: summed * deep], halves[summed * deep :]
        queries, halves = halves[: rows * deep], halves[rows * deep :]
        keys, halves = halves[: rows * deep], halves[rows * deep :]
        values, p = halves[: summed * deep], halves[summed * deep :]
        p[: most * summed] = 0  # the columns that fill the last tile stay so
        mask, inverse = masks[t, :rows], masks[t, rows:]
        fill_mask(mask, tokens)
        s, line = scores.ctypes.data, rows * 4
        for z in range(count * t // parts, count * (t + 1) // parts):
            first, column = z // heads * tokens, z % heads * width
            ask_for_head(qkv, z + 1, heads, tokens, width, 3)
            copied(qkv, first, column, tokens, width, rows, queries)
            copied(qkv, first, dim + column, tokens, width, rows, loose)
            as_columns(loose, rows, deep, keys)
            copied(qkv, first, 2 * dim + column, tokens, width, summed, loose)
            as_rows(loose, summed, deep, values)
            k, v = keys.ctypes.data, values.ctypes.data
            for i0 in range(0, tokens, QUERIES):
                taken = min(QUERIES, tokens - i0)
                down, q = filled(taken, ROW_UNIT), queries.ctypes.data + i0 * deep * 2
                multiply_tiles(down, rows, deep, q, deep * 2, k, line, s, line, 0)
                for i in range(taken):
                    top, total = exponentials(
                        s + i * line,
                        mask.ctypes.data,
                        rows,
                        scale,
                        p.ctypes.data + i * summed * 2,
                        p,
                    )
                    largest[z, i0 + i] = top
                    log_total[z, i0 + i] = math.log(total)
                    inverse[i] = ONE / total
                e, out = p.ctypes.data, result.ctypes.data
                multiply_tiles(
                    down, deep, keys_summed, e, summed * 2, v, deep * 4, out, deep * 4, 0
                )
                put_rows(result, deep, taken, width, inverse, y, first + i0, column)


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
    masks: np.ndarray,
    parts: int,
) -> None:
    """Write the gradients of queries, keys and values, a share of the heads for each thread."""
    dim = y.shape[1]
    width = dim // heads
    scale = F(1 / math.sqrt(width))
    mixed = y.reshape(-1)
    count, deep, rows, summed = log_total.shape[0], tiled(width), padded(tokens), tiled(tokens)
    most, most_summed = min(QUERIES, rows), min(QUERIES, summed)
    keys_summed = filled(tokens, DEPTH_UNIT)
    for t in prange(parts):
        configure_tiles()
        scores, rest = scratch[t, : most * rows], scratch[t, most * rows :]
        dp, rest = rest[: most * rows], rest[most * rows :]
        dqueries, rest = rest[: most * deep], rest[most * deep :]
        dkeys, rest = rest[: rows * deep], rest[rows * deep :]
        dvalues, rest = rest[: rows * deep], rest[rows * deep :]
        halves = rest.view(np.uint16)
        queries, halves = halves[: summed * deep], halves[summed * deep :]
        dresult, halves = halves[: summed * deep], halves[summed * deep :]
        loose, halves = halves[: summed * deep], halves[summed * deep :]
        keys, halves = halves[: summed * deep], halves[summed * deep :]
        keys_t, halves = halves[: rows * deep], halves[rows * deep :]
        values_t, halves = halves[: rows * deep], halves[rows * deep :]
        paired, halves = halves[: most_summed * deep], halves[most_summed * deep :]
        turned, halves = halves[: most_summed * rows], halves[most_summed * rows :]
        p, ds = halves[: most_summed * summed], halves[most_summed * summed :]
        p[:] = 0  # the columns that fill the last tile stay so
        ds[: most_summed * summed] = 0
        mask, ones = masks[t, :rows], masks[t, rows:]
        fill_mask(mask, tokens)
        ones[:] = ONE
        s, dp_at, line, half = scores.ctypes.data, dp.ctypes.data, rows * 4, summed * 2
        for z in range(count * t // parts, count * (t + 1) // parts):
            first, column = z // heads * tokens, z % heads * width
            ask_for_head(qkv, z + 1, heads, tokens, width, 3)
            ask_for_head(dy, z + 1, heads, tokens, width, 1)
            ask_for_head(y, z + 1, heads, tokens, width, 1)
            copied(qkv, first, column, tokens, width, summed, queries)
            copied(dy, first, column, tokens, width, summed, dresult)
            copied(qkv, first, 2 * dim + column, tokens, width, rows, loose)
            as_columns(loose, rows, deep, values_t)
            copied(qkv, first, dim + column, tokens, width, summed, loose)
            as_columns(loose, rows, deep, keys_t)
            as_rows(loose, summed, deep, keys)
            for i0 in range(0, tokens, QUERIES):
                taken, at, adds = min(QUERIES, tokens - i0), i0 * deep, 1 if i0 else 0
                down, sums = filled(taken, ROW_UNIT), tiled(taken)
                q, d = queries.ctypes.data + at * 2, dresult.ctypes.data + at * 2
                k, v = keys_t.ctypes.data, values_t.ctypes.data
                multiply_tiles(down, rows, deep, q, deep * 2, k, line, s, line, 0)
                multiply_tiles(down, rows, deep, d, deep * 2, v, line, dp_at, line, 0)
                for i in range(taken):
                    place = (first + i0 + i) * dim + column
                    score_gradients(
                        s + i * line,
                        mask.ctypes.data,
                        dp_at + i * line,
                        rows,
                        (scale, scale),
                        largest_of(s + i * line, mask.ctypes.data, rows),
                        log_total[z, i0 + i],
                        dot(dresult, at + i * deep, mixed, place, width),
                        p.ctypes.data + i * half,
                        ds.ctypes.data + i * half,
                        p,
                    )
                p[taken * summed : sums * summed] = 0
                ds[taken * summed : sums * summed] = 0
                k, out = keys.ctypes.data, dqueries.ctypes.data
                multiply_tiles(
                    down, deep, keys_summed, ds.ctypes.data, half, k, deep * 4, out, deep * 4, 0
                )
                put_rows(dqueries, deep, taken, width, ones, dqkv, first + i0, column)
                for matrix, right, gradient in ((ds, queries, dkeys), (p, dresult, dvalues)):
                    transposed(matrix, sums, rows, summed, turned)
                    as_rows(right[at:], sums, deep, paired)
                    multiply_tiles(
                        filled(tokens, ROW_UNIT),
                        deep,
                        filled(taken, DEPTH_UNIT),
                        turned.ctypes.data,
                        sums * 2,
                        paired.ctypes.data,
                        deep * 4,
                        gradient.ctypes.data,
                        deep * 4,
                        adds,
                    )
            put_rows(dkeys, deep, tokens, width, ones, dqkv, first, dim + column)
            put_rows(dvalues, deep, tokens, width, ones, dqkv, first, 2 * dim + column)


def attend(qkv: np.ndarray, num_heads: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Run the forward kernel on ``qkv`` (B, N, 3 D), bits of bfloat16."""
    batch, tokens, width = qkv.shape
    y = empty((batch, tokens, width // 3), np.uint16)
    largest, log_total = (empty((batch, num_heads, tokens)) for _ in range(2))
    deep, rows, summed = tiled(width // 3 // num_heads), padded(tokens), tiled(tokens)
    most = min(QUERIES, rows)
    halves = 2 * summed * deep + 2 * rows * deep + most * summed
    work = scratch(most * rows + most * deep + halves // 2)
    flat = (batch * num_heads, tokens)
    forward(
        qkv.reshape(-1, width),
        tokens,
        num_heads,
        y.reshape(-1, width // 3),
        largest.reshape(flat),
        log_total.reshape(flat),
        work,
        scratch(rows + max(most, rows)),
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
    num_heads = largest.shape[1]
    dqkv = empty(qkv.shape, np.uint16)
    deep, rows, summed = tiled(width // 3 // num_heads), padded(tokens), tiled(tokens)
    most, most_summed = min(QUERIES, rows), min(QUERIES, summed)
    whole = 2 * most * rows + most * deep + 2 * rows * deep
    halves = 4 * summed * deep + 2 * rows * deep + most_summed * (deep + rows + 2 * summed)
    work = scratch(whole + halves // 2)
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
        scratch(rows + max(most, rows)),
        threads(),
    )
    return dqkv
