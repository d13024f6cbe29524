"""The update rules in one pass over memory; the meaning is in :mod:`vitkit.ops.updates`.

Weights and slots are changed where they lie: what cannot be written to in order is left to the
reference.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from vitkit.backend import Array, ArrayModule
from vitkit.kernels.cpu import _updates as loops
from vitkit.kernels.cpu._arrays import column, served
from vitkit.kernels.cpu._math import ONE, ZERO, F
from vitkit.kernels.cpu._threads import threads
from vitkit.ops.updates import (
    adam_update_inplace,
    adamw_update_inplace,
    ema_update_inplace,
    lamb_update_inplace,
    lion_update_inplace,
    sgd_update_inplace,
)


def in_order(g: Array, *changed: Array) -> bool:
    """Whether float32 arrays of one shape can be walked side by side, and all but ``g`` changed."""
    return served(g, *changed) and all(
        array.shape == g.shape and array.flags.carray  # contiguous and writable
        for array in changed
    )


def flat(g: Array, *changed: Array) -> list[np.ndarray]:
    """Return the arrays with one axis; those that are changed as views, ``g`` second."""
    first, *others = (array.reshape(-1) for array in changed)
    return [first, column(g), *others]


def betas_of(beta1: float, beta2: float) -> tuple[Any, ...]:
    """Return each beta and what it lacks to one."""
    return F(beta1), F(1 - beta1), F(beta2), F(1 - beta2)


@sgd_update_inplace.kernel("numpy")
def sgd_cpu(
    w: Array,
    g: Array,
    m: Array,
    *,
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    xp: ArrayModule,
) -> Any:
    """Replace :func:`vitkit.ops.sgd_update_inplace` for contiguous float32."""
    m = m if momentum else w  # not used, but of the type that the loop is compiled for
    if not in_order(g, w, m):
        return NotImplemented
    kind = 2 if momentum and nesterov else 1 if momentum else 0
    settings = F(lr), F(weight_decay), F(momentum)
    loops.descend(*flat(g, w, m), kind, settings, threads())
    return None


@adam_update_inplace.kernel("numpy")
def adam_cpu(
    w: Array,
    g: Array,
    m: Array,
    v: Array,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
    xp: ArrayModule,
) -> Any:
    """Replace :func:`vitkit.ops.adam_update_inplace` for contiguous float32."""
    if not in_order(g, w, m, v):
        return NotImplemented
    settings = F(lr / (1 - beta1**step)), ONE, F(weight_decay), _root(beta2, step), F(eps)
    loops.adam(*flat(g, w, m, v), betas_of(beta1, beta2), settings, threads())
    return None


@adamw_update_inplace.kernel("numpy")
def adamw_cpu(
    w: Array,
    g: Array,
    m: Array,
    v: Array,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
    xp: ArrayModule,
) -> Any:
    """Replace :func:`vitkit.ops.adamw_update_inplace` for contiguous float32."""
    if not in_order(g, w, m, v):
        return NotImplemented
    rate, shrink = F(lr / (1 - beta1**step)), F(1 - lr * weight_decay)
    settings = rate, shrink, ZERO, _root(beta2, step), F(eps)
    loops.adam(*flat(g, w, m, v), betas_of(beta1, beta2), settings, threads())
    return None


@lamb_update_inplace.kernel("numpy")
def lamb_cpu(
    w: Array,
    g: Array,
    m: Array,
    v: Array,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
    xp: ArrayModule,
) -> Any:
    """Replace :func:`vitkit.ops.lamb_update_inplace` for contiguous float32."""
    if not in_order(g, w, m, v):
        return NotImplemented
    weights, gradient, mean, square = flat(g, w, m, v)
    settings = F(1 / (1 - beta1**step)), F(weight_decay), _root(beta2, step), F(eps)
    sums = np.empty((-(-w.size // loops.CHUNK), 2))
    betas = betas_of(beta1, beta2)
    loops.lamb_moments(weights, gradient, mean, square, betas, settings, sums)
    with np.errstate(all="ignore"):  # infinite where float32 squares are, as in the reference
        length, size = np.sqrt(sums.sum(axis=0).astype(np.float32))
        rate = F(lr * (length / size if length > 0 and size > 0 else ONE))
    loops.lamb(weights, mean, square, rate, settings, threads())
    return None


@lion_update_inplace.kernel("numpy")
def lion_cpu(
    w: Array,
    g: Array,
    m: Array,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    weight_decay: float,
    xp: ArrayModule,
) -> Any:
    """Replace :func:`vitkit.ops.lion_update_inplace` for contiguous float32."""
    if not in_order(g, w, m):
        return NotImplemented
    settings = F(lr), F(weight_decay), *betas_of(beta1, beta2)
    loops.lion(*flat(g, w, m), settings, threads())
    return None


@ema_update_inplace.kernel("numpy")
def ema_cpu(average: Array, w: Array, *, decay: float, xp: ArrayModule) -> Any:
    """Replace :func:`vitkit.ops.ema_update_inplace` for contiguous float32."""
    if not in_order(w, average):
        return NotImplemented
    loops.average(*flat(w, average), F(1 - decay), threads())
    return None


def _root(beta2: float, step: int) -> Any:
    """Return by what the root of the second moment is multiplied to correct its bias."""
    return F(1 / math.sqrt(1 - beta2**step))
