"""Updates that the device may decide to skip, without the host knowing which.

The update is computed in any case, and put back where it is not to be. How many were skipped is
counted on the device, so that the host's count less that one is the count of updates made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from vitkit.backend import Array, ArrayModule, to_numpy


@contextmanager
def undone_unless(where: Array | None, arrays: Sequence[Array], xp: ArrayModule) -> Iterator[None]:
    """Put arrays back, bit for bit, to what they were before the block, unless ``where`` is true.

    Parameters
    ----------
    where : array, shape (), or None
        A boolean on the device, which is not waited for; None is true.
    arrays : sequence of array
        What the block changes in place.
    xp : module
        Their array module.
    """
    before = [] if where is None else [array.copy() for array in arrays]
    yield
    if where is not None:
        for array, old in zip(arrays, before, strict=True):
            array[...] = xp.where(where, array, old)


class Skipped:
    """How many of the updates that the host has counted were skipped; none until it is told."""

    def __init__(self) -> None:
        self._count: Array | None = None

    def expect(self, where: Array | None, xp: ArrayModule) -> None:
        """Count on the device from now on, if ``where`` is not None."""
        if where is not None and self._count is None:
            self._count = xp.zeros((), "int64")

    def reset(self) -> None:
        """Forget those there were; a recorded step goes on counting where it did."""
        if self._count is not None:
            self._count.fill(0)

    def made(self, counted: int) -> Array:
        """Return how many of those counted were made: a number, or an array on the device."""
        return counted if self._count is None else counted - self._count

    def made_on_host(self, counted: int) -> np.ndarray:
        """Return the same as int64 of shape () on the host; this waits for the device."""
        return np.asarray(to_numpy(self.made(counted)), np.int64)

    def add_unless(self, where: Array | None, xp: ArrayModule) -> None:
        """Count one more unless ``where`` is true; None is true, and counts nothing."""
        if where is not None:
            self._count += xp.logical_not(where)
