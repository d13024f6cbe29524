"""Memory that is asked for before it is needed: while something else is computed.

The processor foresees what is read line after line; not the rows of a block, of which each is a
piece of a longer row. Few lines must be asked for at a time, or asking becomes waiting.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from vitkit.kernels.cpu._compile import function, intrinsic, serial

LINE = 64  # bytes
Soon = tuple[int, int, int, int]
"""What a product asks for meanwhile: two addresses, 0 for none, and for both the bytes to the next
row and to the next column."""
NOTHING: Soon = (0, 0, 0, 0)


@intrinsic
def _prefetch(context: Any, address: Any) -> Any:
    """Ask for a line of memory to be brought to the second-level cache."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, word = ir.PointerType(ir.IntType(8)), ir.IntType(32)
        ask = function(builder.module, "llvm.prefetch.p0", ir.VoidType(), pointer, word, word, word)
        settings = [ir.Constant(word, value) for value in (0, 2, 1)]  # to read, level, of data
        builder.call(ask, [builder.inttoptr(arguments[0], pointer), *settings])
        return target.get_dummy_value()

    return types.void(types.intp), generate


@serial
def ask_for_rows(x: np.ndarray, first: int, column: int, count: int, width: int) -> None:
    """Ask for some columns of some rows; for none behind the last."""
    for i in range(first, min(first + count, x.shape[0])):
        place = x.ctypes.data + (i * x.shape[1] + column) * x.itemsize
        for offset in range(0, width * x.itemsize, LINE):
            _prefetch(place + offset)


@serial
def ask_for_head(x: np.ndarray, z: int, heads: int, tokens: int, width: int, parts: int) -> None:
    """Ask for the columns of head z in each of ``parts`` (queries, keys, values) side by side.

    All at once: it takes much longer to attend than to wait for them.
    """
    for part in range(parts):
        column = (part * heads + z % heads) * width
        ask_for_rows(x, z // heads * tokens, column, tokens, width)


@serial
def beside(x: np.ndarray, y: np.ndarray, row: int, column: int) -> Soon:
    """Return what to ask for: of two arrays, alike in width and dtype, from a row and column on."""
    row_bytes = x.shape[1] * x.itemsize
    offset = row * row_bytes + column * x.itemsize
    return x.ctypes.data + offset, y.ctypes.data + offset, row_bytes, x.itemsize


@serial
def into(y: np.ndarray, row: int, column: int) -> Soon:
    """Return what to ask for of one array, from a row and column on."""
    row_bytes = y.shape[1] * y.itemsize
    return y.ctypes.data + row * row_bytes + column * y.itemsize, 0, row_bytes, y.itemsize


@serial
def moved(soon: Soon, column: int) -> Soon:
    """Return the same some columns further right."""
    first, second, row, size = soon
    return (
        first + column * size if first else 0,
        second + column * size if second else 0,
        row,
        size,
    )


@serial
def _ask_for_lines(place: int, row: int, rows: int, width: int) -> None:
    for k in range(rows):
        for offset in range(0, width, LINE):
            _prefetch(place + k * row + offset)


@serial
def ask_for_tile(soon: Soon, i: int, j: int, rows: int, width: int) -> None:
    """Ask for what belongs to one tile of a block."""
    first, second, row, size = soon
    if first:
        _ask_for_lines(first + i * row + j * size, row, rows, width * size)
    if second:
        _ask_for_lines(second + i * row + j * size, row, rows, width * size)
