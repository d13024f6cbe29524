"""Matrix products of bfloat16 on the tile unit of newer Intel processors (AMX).

A tile register holds 16 rows of 64 bytes; one instruction multiplies two of them, 16 x 32 with
32 x 16 bfloat16, and adds 256 sums to a third. A block of 32 x 32 results takes four tiles of sums
and two of each operand, all eight there are (Intel, Architecture Instruction Set Extensions
Programming Reference, chapter 3). The right-hand operand has its rows in pairs, since one step of
the instruction multiplies two.
"""

from __future__ import annotations

from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from vitkit.kernels.cpu._ahead import Soon
from vitkit.kernels.cpu._compile import OPTIONS, function, serial

SIDE = 32  # rows and columns of a block of results, and how many products one step sums
ROW_UNIT, DEPTH_UNIT = 16, SIDE

BYTE, INT = ir.IntType(8), ir.IntType(64)
POINTER = ir.PointerType(BYTE)


@intrinsic
def configure_tiles(context: Any) -> Any:
    """Make all eight tiles of the running thread 16 rows of 64 bytes; every thread has its own."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        palette = [1] + [0] * 15 + [64, 0] * 8 + [0] * 16 + [16] * 8 + [0] * 8
        kind = ir.ArrayType(BYTE, 64)
        name = "vitkit.tiles"
        place = builder.module.globals.get(name)
        if place is None:
            place = ir.GlobalVariable(builder.module, kind, name)
            place.linkage, place.global_constant, place.align = "internal", True, 64
            place.initializer = ir.Constant(kind, bytearray(palette))
        call = function(builder.module, "llvm.x86.ldtilecfg", ir.VoidType(), POINTER)
        builder.call(call, [builder.bitcast(place, POINTER)])
        return target.get_dummy_value()

    return types.void(), generate


def _block(down: int, across: int) -> Any:
    """Return the intrinsic for a block of results of ``down`` x ``across`` tiles.

    Its arguments are addresses, and steps in bytes: of A to the next row, of B to the next pair
    of rows, of C to the next row; how many products are summed, a multiple of SIDE, and whether to
    add to what C holds.
    """

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        a, a_row, b, b_row, c, c_row, depth, adds = arguments
        module, void = builder.module, ir.VoidType()
        load = function(module, "llvm.x86.tileloadd64", void, BYTE, POINTER, INT)
        save = function(module, "llvm.x86.tilestored64", void, BYTE, POINTER, INT)
        clear = function(module, "llvm.x86.tilezero", void, BYTE)
        multiply = function(module, "llvm.x86.tdpbf16ps", void, BYTE, BYTE, BYTE)

        def tile(number: int) -> Any:
            return ir.Constant(BYTE, number)

        def at(address: Any, offset: int = 0, step: Any = None) -> Any:
            moved = (
                ir.Constant(INT, offset)
                if step is None
                else builder.mul(step, ir.Constant(INT, offset))
            )
            return builder.inttoptr(builder.add(address, moved), POINTER)

        sums = [(i, j) for i in range(down) for j in range(across)]
        places = [
            builder.add(
                builder.add(c, builder.mul(c_row, ir.Constant(INT, 16 * i))),
                ir.Constant(INT, 64 * j),
            )
            for i, j in sums
        ]
        resume, fresh, loop, done = (
            builder.append_basic_block(name) for name in ("resume", "fresh", "loop", "done")
        )
        builder.cbranch(builder.icmp_signed("!=", adds, ir.Constant(INT, 0)), resume, fresh)
        with builder.goto_block(resume):
            for number, place in enumerate(places):
                builder.call(load, [tile(number), at(place), c_row])
            builder.branch(loop)
        with builder.goto_block(fresh):
            for number in range(len(sums)):
                builder.call(clear, [tile(number)])
            builder.branch(loop)

        builder.position_at_end(loop)
        k, at_a, at_b = (builder.phi(INT) for _ in range(3))
        for j in range(across):
            builder.call(load, [tile(6 + j), at(at_b, 64 * j), b_row])
        for i in range(down):
            builder.call(load, [tile(4 + i), at(at_a, 16 * i, a_row), a_row])
            for j in range(across):
                builder.call(multiply, [tile(i * across + j), tile(4 + i), tile(6 + j)])
        following = builder.add(k, ir.Constant(INT, SIDE))
        for start in (resume, fresh):
            k.add_incoming(ir.Constant(INT, 0), start)
            at_a.add_incoming(a, start)
            at_b.add_incoming(b, start)
        k.add_incoming(following, loop)
        at_a.add_incoming(builder.add(at_a, ir.Constant(INT, 64)), loop)
        at_b.add_incoming(builder.add(at_b, builder.mul(b_row, ir.Constant(INT, 16))), loop)
        builder.cbranch(builder.icmp_signed("<", following, depth), loop, done)

        builder.position_at_end(done)
        for number, place in enumerate(places):
            builder.call(save, [tile(number), at(place), c_row])
        return target.get_dummy_value()

    def block(
        context: Any,
        a: Any,
        a_row: Any,
        b: Any,
        b_row: Any,
        c: Any,
        c_row: Any,
        depth: Any,
        adds: Any,
    ) -> Any:
        return types.void(*[types.intp] * 8), generate

    return intrinsic(block)


def _compiled(down: int, across: int) -> Any:
    block = _block(down, across)

    def call(
        a: int, a_row: int, b: int, b_row: int, c: int, c_row: int, depth: int, adds: int
    ) -> None:
        block(a, a_row, b, b_row, c, c_row, depth, adds)

    return numba.njit(inline="never", **OPTIONS)(call)


_WHOLE, _LEFT, _UPPER, _CORNER = (_compiled(i, j) for i, j in ((2, 2), (2, 1), (1, 2), (1, 1)))


@serial
def multiply_tiles(
    rows: int,
    width: int,
    depth: int,
    a: int,
    a_row: int,
    b: int,
    b_row: int,
    c: int,
    c_row: int,
    adds: int,
) -> None:
    """Write, or add, A B to C: (rows, depth) times (depth, width), sizes that tiles fill.

    Rows and width are multiples of 16, depth is one of 32; addresses and steps in bytes, of B to
    the next pair of rows.
    """
    for j in range(0, width, SIDE):
        for i in range(0, rows, SIDE):
            at_a, at_b, at_c = a + i * a_row, b + 4 * j, c + i * c_row + 4 * j
            if i + SIDE <= rows:
                if j + SIDE <= width:
                    _WHOLE(at_a, a_row, at_b, b_row, at_c, c_row, depth, adds)
                else:
                    _LEFT(at_a, a_row, at_b, b_row, at_c, c_row, depth, adds)
            elif j + SIDE <= width:
                _UPPER(at_a, a_row, at_b, b_row, at_c, c_row, depth, adds)
            else:
                _CORNER(at_a, a_row, at_b, b_row, at_c, c_row, depth, adds)


@serial
def multiply_rows(
    rows: int, depth: int, a: int, a_row: int, panel: int, c: int, c_row: int, soon: Soon
) -> None:
    """Write A times one panel of SIDE columns to C; at least SIDE rows.

    The last rows are done twice rather than in a smaller tile. ``soon`` is not asked for: whether
    that pays beside the tile unit has not been measured.
    """
    for r in range(0, rows, SIDE):
        i = min(r, rows - SIDE)
        _WHOLE(a + i * a_row, a_row, panel, 4 * SIDE, c + i * c_row, c_row, depth, 0)


@serial
def add_columns(rows: int, depth: int, a: int, a_row: int, panel: int, c: int, c_row: int) -> None:
    """Add A times one panel of SIDE columns to C; rows are a multiple of SIDE."""
    for i in range(0, rows, SIDE):
        _WHOLE(a + i * a_row, a_row, panel, 4 * SIDE, c + i * c_row, c_row, depth, 1)
