"""Finds where float32 arrays are computed with in float64, even if the result is stored narrow."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import numpy as np

_lists: list[list[str]] = []


class Watched(np.ndarray):
    """A host array that notes where a float64 array is computed from it; see :func:`watching`.

    Views share the memory of the array they watch: ``array.view(Watched)``.
    """

    def __array_finalize__(self, source: object) -> None:
        """Note the line that makes this array, if it is a wide one of several numbers."""
        if source is not None and self.dtype == np.float64 and self.size > 1:
            for seen in _lists:
                seen.append(_caller(sys._getframe(1)))


@contextmanager
def watching() -> Iterator[list[str]]:
    """Yield a list that grows by a place, as ``file.py, line 3``, for each float64 array made.

    Only arrays computed from a :class:`Watched` one by NumPy's operators and element-wise
    functions are seen; single numbers, such as a norm added up in float64, are not counted.
    """
    seen: list[str] = []
    _lists.append(seen)
    try:
        yield seen
    finally:
        _lists[:] = [other for other in _lists if other is not seen]


def _caller(frame: FrameType | None) -> str:
    """Return the innermost place that is not inside NumPy."""
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "numpy":
        frame = frame.f_back
    if frame is None:
        return "an unknown place"
    return f"{frame.f_code.co_filename.rpartition('/')[2]}, line {frame.f_lineno}"
