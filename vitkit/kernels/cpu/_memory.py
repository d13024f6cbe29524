"""Memory that large arrays are lent from and come back to.

What the system is given back it hands out again page by page, each cleared first; in a training
step that costs more than the arithmetic on small models. So an array of :func:`empty` returns its
memory, when the last view of it dies, to a shelf that the next array of its size is served from.
Arrays begin at a multiple of 64 bytes: NumPy's begin 16 bytes into a page, and every vector of
AVX-512 in them would straddle two cache lines.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np

from vitkit.kernels.cpu._threads import threads

PAGE = 4096


class _Loan:
    """The owner of one array's memory, which it puts back on its shelf when the array dies."""

    _shelf: Workspace | None = None

    def __init__(self, shelf: Workspace, block: np.ndarray, shape: tuple[int, ...], kind: str):
        self._block = block
        self._shelf = shelf  # last: a signal may end the program between any two lines
        address = -(-block.ctypes.data // 64) * 64
        self.__array_interface__ = {
            "version": 3,
            "shape": shape,
            "typestr": kind,
            "data": (address, False),
        }

    def __del__(self) -> None:
        if self._shelf is not None:
            self._shelf._return(self._block)


class Workspace:
    """Keeps the memory of dead arrays for the next ones of their size.

    What waits is let go of when other sizes are asked for and its own has not been for long: a
    training step asks for the same sizes again and again, in the same order.

    Attributes
    ----------
    lent, held : int
        Bytes of arrays alive, and of these and those waiting.
    """

    PATIENCE = 4096  # arrays that are asked for meanwhile; a step of a large ViT takes about 1000

    def __init__(self) -> None:
        self.lent = self.held = 0
        self._waiting: dict[int, list[np.ndarray]] = {}
        self._asked: dict[int, int] = {}  # when each size was asked for last
        self._count = 0
        self._lock = threading.RLock()  # a loan may end, by the garbage collector, while one starts

    def empty(self, shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
        """Return a C-contiguous array of whatever content.

        Parameters
        ----------
        shape : tuple of int
            Its shape.
        dtype : str or numpy.dtype, default float32
            Its dtype.
        """
        dtype = np.dtype(dtype)
        size = -(-(math.prod(shape) * dtype.itemsize + 64) // PAGE) * PAGE
        with self._lock:
            self._count += 1
            self._asked[size] = self._count
            waiting = self._waiting.get(size)
            block = waiting.pop() if waiting else None
            self.lent += size
            if block is None:
                self._discard(self._count - self.PATIENCE)
                self.held += size
        if block is None:
            block = np.empty(size, np.uint8)
        return np.asarray(_Loan(self, block, shape, dtype.str))

    def clear(self) -> None:
        """Give back to the system what waits."""
        with self._lock:
            self._discard(self._count + 1)

    def _return(self, block: np.ndarray) -> None:
        with self._lock:
            self.lent -= block.size
            self._waiting.setdefault(block.size, []).append(block)

    def _discard(self, since: int) -> None:
        """Let go of waiting blocks of sizes that have not been asked for since a count."""
        for size in [size for size in self._waiting if self._asked[size] < since]:
            self.held -= size * len(self._waiting.pop(size))


workspace = Workspace()
"""The one that all CPU kernels share."""

empty = workspace.empty


def scratch(numbers: int) -> np.ndarray:
    """Return memory for each thread to work in, one row a thread, rows 64 bytes apart at least."""
    return empty((threads(), -(-numbers // 16) * 16))
