"""How rows that are read as one are shared out, as ``rows.cuh`` takes them."""

from __future__ import annotations

from vitkit.kernels.cuda._kernel import Size, blocks

LANES, BLOCK = SHARING = (32, 256)  # threads that share a row: a warp, or a whole block
WARP_ROWS = 4  # of a block, where a warp takes a row
LONG = 2048  # numbers in a row that a whole block is for


def sharing(rows: int, width: int) -> tuple[int, tuple[Size, Size]]:
    """Return how many threads share a row, and the sizes of grid and block for all rows."""
    if width < LONG:
        return LANES, ((blocks(rows, WARP_ROWS),), (LANES * WARP_ROWS,))
    return BLOCK, ((rows,), (BLOCK,))
