"""Mish on the CPU, in pieces that stay in the cache; the meaning is in ``mish.py``.

NumPy computes a formula one operation after the other, each over the whole array, so a large one
travels from memory and back a dozen times. In blocks it travels once.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vitkit.backend import Array, ArrayModule
from vitkit_extras_optim.mish import CERTAIN

BLOCK = 16384  # numbers; a handful of such float32 arrays fit the cache of a core


def mish_numpy(x: Array, *, xp: ArrayModule) -> Array:
    """Replace :func:`vitkit_extras_optim.mish` for contiguous arrays."""
    if not x.flags.c_contiguous:
        return NotImplemented
    y = np.empty_like(x)
    for out, at, e in _blocks((y, x), scratch=1):
        np.minimum(at, CERTAIN, out=e)
        np.exp(e, out=e)
        np.add(e, 2, out=out)
        out *= e  # n
        np.add(out, 2, out=e)
        out /= e
        out *= at
    return y


def mish_backward_numpy(dy: Array, x: Array, *, xp: ArrayModule) -> Array:
    """Replace :func:`vitkit_extras_optim.mish_backward` for contiguous arrays of one dtype."""
    same = dy.dtype == x.dtype and dy.shape == x.shape
    if not (same and dy.flags.c_contiguous and x.flags.c_contiguous):
        return NotImplemented
    dx = np.empty_like(x)
    for out, up, at, cut, e, r in _blocks((dx, dy, x), scratch=3):
        np.minimum(at, CERTAIN, out=cut)
        np.exp(cut, out=e)
        np.add(e, 2, out=out)
        out *= e  # n
        np.add(out, 2, out=r)
        np.divide(1, r, out=r)
        np.subtract(out, e, out=e)  # e (e + 1)
        out *= r
        e *= r
        e *= r
        cut *= 4
        e *= cut
        out += e
        out *= up
    return dx


def _blocks(arrays: tuple[Array, ...], *, scratch: int) -> Iterator[list[Array]]:
    """Yield the same piece of each array, flat, and as many scratch arrays of its length."""
    flat = [array.reshape(-1) for array in arrays]
    size = flat[0].size
    spare = [np.empty(min(BLOCK, size), flat[0].dtype) for _ in range(scratch)]
    for start in range(0, size, BLOCK):
        stop = min(start + BLOCK, size)
        yield [*(a[start:stop] for a in flat), *(s[: stop - start] for s in spare)]
