"""Dropout and drop path on a GPU, by the same masks; the meaning is in :mod:`vitkit.ops.dropout`.

The step of a key may lie on the device, so that a CUDA graph draws anew each time it runs.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from vitkit.backend import Array, ArrayModule, philox
from vitkit.kernels.cuda._arrays import WIDTH, plain, pointer, served, vector
from vitkit.kernels.cuda._kernel import Family, blocks
from vitkit.ops.dropout import (
    Key,
    drop_path,
    drop_path_backward,
    dropout,
    dropout_backward,
)

THREADS = 256  # of a block
DRAWN = 8  # numbers that a thread draws
DROP = Family("dropout.cuh", "drop_numbers<{v}>", v=(1, WIDTH))
SCALE = Family("dropout.cuh", "scale_samples<{v}>", v=(1, WIDTH))


def drawable(rate: float, key: Key, xp: ArrayModule) -> bool:
    """Return whether a kernel draws masks of this rate, with the step known here or there."""
    step = key[1] if len(key) == 3 else None
    if isinstance(step, xp.ndarray):
        return step.shape == () and step.dtype == "int64" and 0 <= rate < 1
    return isinstance(step, (int, np.integer)) and 0 <= rate < 1


def drop_numbers(x: Array | None, y: Array, rate: float, key: Key, xp: ArrayModule) -> None:
    """Write ``x``, or 1 for None, times a mask and ``1 / (1 - rate)`` to ``y``; without gaps."""
    seed, step, draws = key
    on_device = isinstance(step, xp.ndarray)
    state = philox(seed, "dropout", 0 if on_device else step, draws).bit_generator.state["state"]
    counter = pointer(step if on_device else None), *state["counter"][1:]
    # A number is m 2^-24 with a whole m, so it is at least the rate where m is at least this.
    least = np.uint32(math.ceil(float(np.float32(rate)) * 2**24))
    v = vector(WIDTH, y) if x is None else vector(WIDTH, x, y)
    grid, count = (blocks(y.size, THREADS * DRAWN),), np.int64(y.size)
    mask = *state["key"], *counter, least, 1 / (1 - rate)
    DROP(v=v)(grid, (THREADS,), pointer(x), *mask, y, count, xp=xp)


def _gains(batch: int, rate: float, key: Key, xp: ArrayModule) -> Array:
    gains = xp.empty(batch, "float32")
    drop_numbers(None, gains, rate, key, xp)
    return gains


def _dropped(x: Array, rate: float, key: Key, xp: ArrayModule) -> Any:
    if not served(x) or not drawable(rate, key, xp):
        return NotImplemented
    x, y = plain(x, xp), xp.empty(x.shape, "float32")
    drop_numbers(x, y, rate, key, xp)
    return y


def _samples_dropped(x: Array, rate: float, key: Key, xp: ArrayModule) -> Any:
    if not served(x) or x.ndim == 0 or not drawable(rate, key, xp):
        return NotImplemented
    x, y = plain(x, xp), xp.empty(x.shape, "float32")
    samples, width = len(x), x.size // len(x)
    v = vector(width, x, y)
    across = blocks(width, THREADS * v)
    sizes = (samples * across,), (THREADS,)
    SCALE(v=v)(*sizes, x, _gains(samples, rate, key, xp), y, np.int64(width), across, xp=xp)
    return y


@dropout.kernel("cupy")
def dropout_cuda(x: Array, rate: float, key: Key, *, xp: ArrayModule) -> Any:
    """Replace :func:`vitkit.ops.dropout` for float32."""
    return _dropped(x, rate, key, xp)


@dropout_backward.kernel("cupy")
def dropout_backward_cuda(dy: Array, rate: float, key: Key, *, xp: ArrayModule) -> Any:
    """Replace :func:`vitkit.ops.dropout_backward` for float32."""
    return _dropped(dy, rate, key, xp)


@drop_path.kernel("cupy")
def drop_path_cuda(x: Array, rate: float, key: Key, *, xp: ArrayModule) -> Any:
    """Replace :func:`vitkit.ops.drop_path` for float32."""
    return _samples_dropped(x, rate, key, xp)


@drop_path_backward.kernel("cupy")
def drop_path_backward_cuda(dy: Array, rate: float, key: Key, *, xp: ArrayModule) -> Any:
    """Replace :func:`vitkit.ops.drop_path_backward` for float32."""
    return _samples_dropped(dy, rate, key, xp)
