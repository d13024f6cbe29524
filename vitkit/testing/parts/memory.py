"""Where arrays lie in memory: inside larger buffers, with gaps, and never by luck on zeros."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from vitkit.backend import Array, ArrayModule, to_numpy

MARGIN = 256
"""How many numbers lie before and after an array; who reads or writes fewer too many is found."""

Shape = tuple[int, ...]


class Layout(NamedTuple):
    """A way for an array to lie in a one-dimensional buffer.

    Attributes
    ----------
    size : callable
        ``size(shape)`` is the length of the buffer for an array of that shape.
    view : callable
        ``view(buffer, shape)`` is the array.
    least : int, default 0
        How many dimensions an array must have for it to be anything special.
    """

    size: Callable[[Shape], int]
    view: Callable[[Array, Shape], Array]
    least: int = 0


def _every_second(buffer: Array, shape: Shape) -> Array:
    return buffer.reshape(*shape[:-1], 2 * shape[-1])[..., ::2]


CONTIGUOUS = Layout(math.prod, lambda buffer, shape: buffer.reshape(shape))
"""All elements side by side."""
STRIDED = {
    "every second element of a larger array": Layout(
        lambda shape: 2 * math.prod(shape), _every_second, 1
    ),
    "an array backwards": Layout(
        math.prod, lambda buffer, shape: buffer.reshape(shape)[..., ::-1], 1
    ),
    "a transposed array": Layout(math.prod, lambda buffer, shape: buffer.reshape(shape[::-1]).T, 2),
}
"""What is not contiguous, by what it is."""


class Placed:
    """A copy of a host array that lies in a buffer of ``xp``, with a margin on both sides.

    Parameters
    ----------
    host : numpy.ndarray
        The values.
    layout : Layout, default CONTIGUOUS
        How it lies between the margins.
    before, after : float, default 0
        What the first and the second half of the buffer hold where the array does not lie; for
        an array of integers, anything but 0 is their largest.
    xp : module, default numpy
        The array module.

    Attributes
    ----------
    array : array
        The array, to be handed to what is checked.
    """

    def __init__(
        self,
        host: np.ndarray,
        layout: Layout = CONTIGUOUS,
        *,
        before: float = 0,
        after: float = 0,
        xp: ArrayModule = np,
    ) -> None:
        buffer = np.zeros(layout.size(host.shape) + 2 * MARGIN, host.dtype)
        buffer[: buffer.size // 2] = filling(before, host.dtype)
        buffer[buffer.size // 2 :] = filling(after, host.dtype)
        self._layout, self._shape = layout, host.shape
        self._view(buffer)[...] = host
        self._outside = self._around(buffer)
        self._buffer = xp.asarray(buffer)
        self.array = self._view(self._buffer)

    def _view(self, buffer: Array) -> Array:
        return self._layout.view(buffer[MARGIN : len(buffer) - MARGIN], self._shape)

    def intact(self) -> bool:
        """Return whether the buffer is what it was where the array does not lie."""
        return same_bits(self._around(to_numpy(self._buffer)), self._outside)

    def _around(self, buffer: np.ndarray) -> np.ndarray:
        around = buffer.copy()
        self._view(around)[...] = 0
        return around


def filling(value: float, dtype: np.dtype) -> Any:
    """Return ``value``, or for another dtype than a float what comes nearest to it."""
    if dtype.kind == "f" or value == 0:
        return value
    return np.iinfo(dtype).max if dtype.kind in "iu" else True


def same_bits(one: np.ndarray, two: np.ndarray) -> bool:
    """Return whether two host arrays are equal, NaN for NaN."""
    return one.shape == two.shape and bool(((one == two) | ((one != one) & (two != two))).all())


@contextmanager
def watched_memory(xp: ArrayModule) -> Iterator[Callable[[], bool]]:
    """Let ``xp.empty`` and ``xp.empty_like`` give NaN with a margin on both sides.

    So that memory which is never written does not hold an earlier and right answer by luck, and
    that what is written beyond its end is seen. Yields a function: whether all margins are intact.
    """
    made: list[Placed] = []
    originals = {name: getattr(xp, name) for name in ("empty", "empty_like")}

    def watched(original: Callable[..., Array]) -> Callable[..., Array]:
        def make(*args: Any, **kwargs: Any) -> Array:
            array = original(*args, **kwargs)
            if array.dtype.kind != "f":
                return array
            if not array.flags.c_contiguous:
                array.fill(np.nan)
                return array
            made.append(Placed(np.full(array.shape, np.nan, array.dtype), before=1, after=1, xp=xp))
            return made[-1].array

        return make

    for name, original in originals.items():
        setattr(xp, name, watched(original))
    try:
        yield lambda: all(placed.intact() for placed in made)
    finally:
        for name, original in originals.items():
            setattr(xp, name, original)
