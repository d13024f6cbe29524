"""The innermost loop of matrix products: one tile of the result held in registers.

A tile is some rows of some vectors. Those of :func:`multiply` are ``ROWS`` x 1 to ``VECTORS``;
:func:`tiles` makes others, for another instruction if need be. For each step along the summed axis
a tile takes one number of each row of A and one row of vectors of B, and multiplies all with all.
With AVX-512 that is 6 x 64 results in 24 registers, 4 for B and the rest for A; written as LLVM's
vectors, since no loop that Numba vectorizes keeps its sums in registers.
"""

from __future__ import annotations

import functools
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from vitkit.kernels.cpu._ahead import NOTHING, Soon, ask_for_tile
from vitkit.kernels.cpu._compile import OPTIONS, serial, widest_vectors
from vitkit.kernels.cpu._processor import LANES
from vitkit.kernels.cpu._vectors import BYTES, FLOAT, INT, VECTOR, fma, load, spread, store

ROWS = 6
VECTORS = (
    4 if LANES == 16 else 2 if LANES == 8 else 4
)  # as many as leave room in 32 or 16 registers
PANEL = LANES * VECTORS  # columns of a full tile


def _tile(rows: int, vectors: int, multiply_add: Any) -> Any:
    """Return the intrinsic for a tile of ``rows`` rows and ``vectors`` vectors.

    ``multiply_add`` builds one step, given a word of A in every lane, a vector of B, and sums.
    The intrinsic's arguments are addresses, and steps in bytes: of A to the next row and the next
    summed index, of B to the next summed index, of C to the next row; how many indices are summed,
    and whether to add to what C holds.
    """

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        a, a_row, a_step, b, b_step, c, c_row, depth, adds = arguments
        zero = ir.Constant(INT, 0)
        offsets, results = [zero], [c]
        for _ in range(rows - 1):
            offsets.append(builder.add(offsets[-1], a_row))
            results.append(builder.add(results[-1], c_row))
        places = [
            builder.add(row, ir.Constant(INT, BYTES * v)) for row in results for v in range(vectors)
        ]

        start = builder.block
        resume, loop, done = (
            builder.append_basic_block(name) for name in ("resume", "loop", "done")
        )
        builder.cbranch(builder.icmp_signed("!=", adds, zero), resume, loop)
        with builder.goto_block(resume):
            held = [load(builder, place, VECTOR) for place in places]
            builder.branch(loop)

        builder.position_at_end(loop)
        k, at_a, at_b = (builder.phi(INT) for _ in range(3))
        sums = [builder.phi(VECTOR) for _ in places]
        row = [
            load(builder, builder.add(at_b, ir.Constant(INT, BYTES * v)), VECTOR)
            for v in range(vectors)
        ]
        new = []
        for i in range(rows):
            number = spread(builder, load(builder, builder.add(at_a, offsets[i]), FLOAT))
            new += [
                multiply_add(builder, number, row[v], sums[i * vectors + v]) for v in range(vectors)
            ]
        following = builder.add(k, ir.Constant(INT, 1))
        for block, values in ((start, None), (resume, held)):
            k.add_incoming(zero, block)
            at_a.add_incoming(a, block)
            at_b.add_incoming(b, block)
            for index, total in enumerate(sums):
                first = ir.Constant(VECTOR, [0.0] * LANES) if values is None else values[index]
                total.add_incoming(first, block)
        k.add_incoming(following, loop)
        at_a.add_incoming(builder.add(at_a, a_step), loop)
        at_b.add_incoming(builder.add(at_b, b_step), loop)
        for total, value in zip(sums, new, strict=True):
            total.add_incoming(value, loop)
        builder.cbranch(builder.icmp_signed("<", following, depth), loop, done)

        builder.position_at_end(done)
        for value, place in zip(new, places, strict=True):
            store(builder, value, place)
        return target.get_dummy_value()

    def tile(
        context: Any,
        a: Any,
        a_row: Any,
        a_step: Any,
        b: Any,
        b_step: Any,
        c: Any,
        c_row: Any,
        depth: Any,
        adds: Any,
    ) -> Any:
        return types.void(*[types.intp] * 9), generate

    return intrinsic(tile)


@functools.cache
def _compiled(rows: int, vectors: int, multiply_add: Any) -> Any:
    """Return the compiled tile, a function of its own: inlined, it would be compiled each time."""
    tile = _tile(rows, vectors, multiply_add)

    def call(
        a: int,
        a_row: int,
        a_step: int,
        b: int,
        b_step: int,
        c: int,
        c_row: int,
        depth: int,
        adds: int,
    ) -> None:
        widest_vectors()
        tile(a, a_row, a_step, b, b_step, c, c_row, depth, adds)

    return numba.njit(inline="never", **OPTIONS)(call)


def tiles(rows: int, most: int = VECTORS, multiply_add: Any = fma) -> Any:
    """Return a function for tiles of some rows and as many vectors as it is told, 1 to ``most``.

    Its other arguments are those of the intrinsic of :func:`_tile`.
    """
    one, two, three, four = (_compiled(rows, min(v, most), multiply_add) for v in (1, 2, 3, 4))

    def call(
        vectors: int,
        a: int,
        a_row: int,
        a_step: int,
        b: int,
        b_step: int,
        c: int,
        c_row: int,
        depth: int,
        adds: int,
    ) -> None:
        if vectors == 4:
            four(a, a_row, a_step, b, b_step, c, c_row, depth, adds)
        elif vectors == 3:
            three(a, a_row, a_step, b, b_step, c, c_row, depth, adds)
        elif vectors == 2:
            two(a, a_row, a_step, b, b_step, c, c_row, depth, adds)
        else:
            one(a, a_row, a_step, b, b_step, c, c_row, depth, adds)

    return numba.njit(**OPTIONS)(call)


_ROWS, _ROW = tiles(ROWS), tiles(1)


@serial
def multiply(
    rows: int,
    width: int,
    depth: int,
    a: int,
    a_row: int,
    a_step: int,
    b: int,
    b_step: int,
    c: int,
    c_row: int,
    adds: int,
    soon: Soon = NOTHING,
) -> None:
    """Write, or add, A B to C: (rows, depth) times (depth, width).

    Addresses and steps are in bytes. The rows of B and C must have room for a multiple of
    ``LANES``; what C holds behind ``width`` is of no meaning afterwards.

    Parameters
    ----------
    rows, width, depth : int
        The sizes.
    a, a_row, a_step : int
        Where A is, and how far it is to its next row and to its next column.
    b, b_step, c, c_row : int
        Where B and C are, whose columns lie side by side, and how far it is to the next row.
    adds : int
        1 to add to what C holds.
    soon : Soon, optional
        What to ask for meanwhile.
    """
    j = 0
    while j < width:
        left = (width - j + LANES - 1) // LANES
        # Two tiles of three and two vectors are faster than of four and one.
        vectors = (left + 1) // 2 if left == VECTORS + 1 else min(left, VECTORS)
        i = 0
        while i + ROWS <= rows:
            ask_for_tile(soon, i, j, ROWS, vectors * LANES)
            _ROWS(
                vectors,
                a + i * a_row,
                a_row,
                a_step,
                b + 4 * j,
                b_step,
                c + i * c_row + 4 * j,
                c_row,
                depth,
                adds,
            )
            i += ROWS
        if i < rows and rows >= ROWS and adds == 0:  # writing some rows twice beats single rows
            i = rows - ROWS
            _ROWS(
                vectors,
                a + i * a_row,
                a_row,
                a_step,
                b + 4 * j,
                b_step,
                c + i * c_row + 4 * j,
                c_row,
                depth,
                adds,
            )
            i = rows
        while i < rows:
            _ROW(
                vectors,
                a + i * a_row,
                a_row,
                a_step,
                b + 4 * j,
                b_step,
                c + i * c_row + 4 * j,
                c_row,
                depth,
                adds,
            )
            i += 1
        j += vectors * LANES
