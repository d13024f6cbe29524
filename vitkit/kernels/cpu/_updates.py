"""The loops of the update rules, over flat arrays that are changed where they lie.

Formulas stand apart from the loops and may not be reordered: a square that is infinite in the
reference would be finite here. ``settings`` are float32, in the order in which they are unpacked.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from vitkit.kernels.cpu._compile import exact, parallel, plainly, serial, widest_vectors
from vitkit.kernels.cpu._math import ONE, ZERO
from vitkit.kernels.cpu._rows import piece

Settings = tuple[Any, ...]
CHUNK = 1 << 16  # numbers whose squares are added up by one thread, one after the other


@exact
def decayed(g: float, w: float, decay: float) -> float:
    """Return g + decay w; without decay g alone, which infinite weights must not make NaN."""
    return g + decay * w if decay != ZERO else g


@exact
def moved(w: float, rate: float, step: float) -> float:
    """Return w - rate step."""
    return w - rate * step


@exact
def moments(g: float, m: float, v: float, betas: Settings) -> tuple[float, float]:
    """Return the running means of the gradient and of its square."""
    return betas[0] * m + betas[1] * g, betas[2] * v + betas[3] * (g * g)


@exact
def direction(m: float, v: float, root: float, eps: float) -> Any:
    """Return Adam's direction but for the factor of the first moment's bias correction."""
    return m / (np.sqrt(v) * root + eps)


@plainly
def lion_step(g: float, w: float, m: float, settings: Settings) -> tuple[float, float]:
    """Return weight and mean after a step; the sign of a sum turns on its last bit."""
    lr, decay, beta1, rest1, beta2, rest2 = settings
    mixed = beta1 * m + rest1 * g
    u = ONE if mixed > ZERO else (-ONE if mixed < ZERO else mixed)
    u = u + decay * w if decay != ZERO else u
    return w - lr * u, m * beta2 + rest2 * g


@serial
def _descend(w: np.ndarray, g: np.ndarray, m: np.ndarray, kind: int, settings: Settings) -> None:
    widest_vectors()
    lr, decay, momentum = settings
    if kind == 0:
        for k in range(w.size):
            w[k] = moved(w[k], lr, decayed(g[k], w[k], decay))
    else:
        for k in range(w.size):
            step = decayed(g[k], w[k], decay)
            velocity = decayed(step, m[k], momentum)
            m[k] = velocity
            w[k] = moved(w[k], lr, decayed(step, velocity, momentum) if kind == 2 else velocity)


@parallel
def descend(
    w: np.ndarray, g: np.ndarray, m: np.ndarray, kind: int, settings: Settings, parts: int
) -> None:
    """Step down the gradient: plainly (0), by a velocity (1), or with Nesterov's look-ahead (2)."""
    for t in prange(parts):
        i, j = piece(w.size, t, parts)
        _descend(w[i:j], g[i:j], m[i:j], kind, settings)


@serial
def _adam(
    w: np.ndarray, g: np.ndarray, m: np.ndarray, v: np.ndarray, betas: Settings, settings: Settings
) -> None:
    widest_vectors()
    rate, shrink, decay, root, eps = settings
    for k in range(w.size):
        x = w[k]
        m[k], v[k] = moments(decayed(g[k], x, decay), m[k], v[k], betas)
        w[k] = moved(x * shrink, rate, direction(m[k], v[k], root, eps))


@parallel
def adam(
    w: np.ndarray,
    g: np.ndarray,
    m: np.ndarray,
    v: np.ndarray,
    betas: Settings,
    settings: Settings,
    parts: int,
) -> None:
    """Step along Adam's direction, from weights that are multiplied by ``shrink`` before."""
    for t in prange(parts):
        i, j = piece(w.size, t, parts)
        _adam(w[i:j], g[i:j], m[i:j], v[i:j], betas, settings)


@exact
def lamb_step(w: float, m: float, v: float, settings: Settings) -> Any:
    """Return Adam's direction plus the decay."""
    scale, decay, root, eps = settings
    return decayed(direction(m, v, root, eps) * scale, w, decay)


@serial
def _lamb_moments(
    w: np.ndarray, g: np.ndarray, m: np.ndarray, v: np.ndarray, betas: Settings, settings: Settings
) -> tuple[float, float]:
    widest_vectors()
    squares, steps = 0.0, 0.0
    for k in range(w.size):
        m[k], v[k] = moments(g[k], m[k], v[k], betas)
        u = lamb_step(w[k], m[k], v[k], settings)
        squares += np.float64(w[k] * w[k])
        steps += np.float64(u * u)
    return squares, steps


@parallel
def lamb_moments(
    w: np.ndarray,
    g: np.ndarray,
    m: np.ndarray,
    v: np.ndarray,
    betas: Settings,
    settings: Settings,
    sums: np.ndarray,
) -> None:
    """Move the moments, and write the sums of the squares of weights and step, chunk by chunk."""
    for c in prange(len(sums)):
        i, j = c * CHUNK, min((c + 1) * CHUNK, w.size)
        sums[c, 0], sums[c, 1] = _lamb_moments(w[i:j], g[i:j], m[i:j], v[i:j], betas, settings)


@serial
def _lamb(w: np.ndarray, m: np.ndarray, v: np.ndarray, rate: float, settings: Settings) -> None:
    widest_vectors()
    for k in range(w.size):
        w[k] = moved(w[k], rate, lamb_step(w[k], m[k], v[k], settings))


@parallel
def lamb(
    w: np.ndarray, m: np.ndarray, v: np.ndarray, rate: float, settings: Settings, parts: int
) -> None:
    """Take the step, which is computed anew: keeping it would take memory."""
    for t in prange(parts):
        i, j = piece(w.size, t, parts)
        _lamb(w[i:j], m[i:j], v[i:j], rate, settings)


@serial
def _lion(w: np.ndarray, g: np.ndarray, m: np.ndarray, settings: Settings) -> None:
    widest_vectors()
    for k in range(w.size):
        w[k], m[k] = lion_step(g[k], w[k], m[k], settings)


@parallel
def lion(w: np.ndarray, g: np.ndarray, m: np.ndarray, settings: Settings, parts: int) -> None:
    """Step by the sign of a mean of the gradient."""
    for t in prange(parts):
        i, j = piece(w.size, t, parts)
        _lion(w[i:j], g[i:j], m[i:j], settings)


@serial
def _average(average: np.ndarray, w: np.ndarray, rest: float) -> None:
    widest_vectors()
    for k in range(w.size):
        average[k] = moved(average[k], rest, average[k] - w[k])


@parallel
def average(mean: np.ndarray, w: np.ndarray, rest: float, parts: int) -> None:
    """Move a mean towards the weights."""
    for t in prange(parts):
        i, j = piece(w.size, t, parts)
        _average(mean[i:j], w[i:j], rest)
