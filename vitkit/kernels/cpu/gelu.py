"""The tanh form of GELU in cache-sized blocks; the meaning is in :mod:`vitkit.ops.gelu`."""

from __future__ import annotations

import numpy as np

from vitkit.backend import Array, ArrayModule
from vitkit.kernels.cpu._blocks import blockable, in_blocks
from vitkit.ops.gelu import CERTAIN, CUBIC, SQRT_2_OVER_PI, gelu_tanh, gelu_tanh_backward


@gelu_tanh.kernel("numpy")
def gelu_tanh_cpu(x: Array, *, xp: ArrayModule) -> Array:
    """Replace :func:`vitkit.ops.gelu_tanh` for contiguous arrays."""
    if not blockable(x):
        return NotImplemented
    return in_blocks(_forward, np.empty_like(x), x, scratch=1)


@gelu_tanh_backward.kernel("numpy")
def gelu_tanh_backward_cpu(dy: Array, x: Array, *, xp: ArrayModule) -> Array:
    """Replace :func:`vitkit.ops.gelu_tanh_backward` for contiguous arrays."""
    if not blockable(x, dy):
        return NotImplemented
    return in_blocks(_backward, np.empty_like(x), dy, x, scratch=2)


def _forward(y: Array, x: Array, clipped: Array) -> None:
    np.clip(x, -CERTAIN, CERTAIN, out=clipped)
    np.multiply(clipped, clipped, out=y)
    _tanh_inner(y, clipped, y)
    y += 1
    y *= x
    y *= 0.5


def _backward(dx: Array, dy: Array, x: Array, tanh: Array, square: Array) -> None:
    np.clip(x, -CERTAIN, CERTAIN, out=dx)
    np.multiply(dx, dx, out=square)
    _tanh_inner(tanh, dx, square)
    # With c = sqrt(2/pi) and k = CUBIC: dx/dy = (1 + t) (1 + c x (1 - t) (1 + 3 k x^2)) / 2.
    square *= 3 * CUBIC * SQRT_2_OVER_PI
    square += SQRT_2_OVER_PI
    dx *= square
    np.subtract(1, tanh, out=square)
    dx *= square
    dx += 1
    tanh += 1
    dx *= tanh
    dx *= 0.5
    dx *= dy


def _tanh_inner(out: Array, x: Array, square: Array) -> None:
    """Write tanh(c (x + k x^3)); ``square`` holds x^2, and may be ``out``."""
    np.multiply(square, CUBIC * SQRT_2_OVER_PI, out=out)
    out += SQRT_2_OVER_PI
    out *= x
    np.tanh(out, out=out)
