"""The update rules in one pass on a GPU; the meaning is in :mod:`vitkit.ops.updates`.

Weights and slots are changed where they lie. The learning rate, the count of updates and the decay
of an average may lie on the device, so that a CUDA graph reads them anew each time it runs. What
follows from them is computed in float64: here, or by one thread of a kernel of its own, since a
power in float64 by each of the others would take longer than the update.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from vitkit.backend import Array, ArrayModule
from vitkit.kernels.cuda._arrays import WIDTH, plain, pointer, served, vector
from vitkit.kernels.cuda._kernel import LOW, Family, blocks, type_of
from vitkit.ops.updates import (
    adam_update_inplace,
    adamw_update_inplace,
    ema_update_inplace,
    lamb_update_inplace,
    lion_update_inplace,
    sgd_update_inplace,
)

THREADS = 256  # of a block
LAMB_ROUNDS = 4  # of a block whose squares are added up
KINDS = {"float32": 0, "float64": 1, "int64": 2}  # of numbers on the device
FILE, WIDTHS = "updates.cuh", (1, WIDTH)
HOLD = Family(FILE, "hold_factors")
SGD = Family(FILE, "sgd_update<{v}>", v=WIDTHS)
ADAM = Family(FILE, "adam_update<{low}, {v}>", low=LOW, v=WIDTHS)
LAMB_MOMENTS = Family(FILE, "lamb_moments<{v}>", v=WIDTHS)
LAMB_RATE = Family(FILE, "lamb_rate")
LAMB = Family(FILE, "lamb_update<{v}>", v=WIDTHS)
LION = Family(FILE, "lion_update<{v}>", v=WIDTHS)
EMA = Family(FILE, "ema_update<{v}>", v=WIDTHS)

Number = float | Array
"""A Python number, or an array of shape () on the device."""


class Factors(NamedTuple):
    """What is the same for all numbers of an update.

    Attributes
    ----------
    lr : float
        The learning rate.
    rate : float
        It by the correction of the first moment's bias, ``lr / (1 - beta1**step)``.
    shrink : float
        What weights are multiplied by, ``1 - lr * weight_decay``.
    first : float
        ``1 / (1 - beta1**step)``.
    root : float
        ``1 / sqrt(1 - beta2**step)``.
    held : array, shape (5,), or a null pointer
        All of them, where only the device knows them; the numbers above are not used then.
    """

    lr: float
    rate: float
    shrink: float
    first: float
    root: float
    held: Any


def in_order(g: Array, *changed: Array) -> bool:
    """Return whether float32 arrays of one shape can be walked side by side, and changed."""
    return served(g, *changed) and all(
        array.shape == g.shape and array.flags.c_contiguous for array in changed
    )


def known(*numbers: Number, xp: ArrayModule) -> bool:
    """Return whether numbers are Python's, or of a kind that kernels read on the device."""
    return all(
        number.shape == () and number.dtype.name in KINDS
        if isinstance(number, xp.ndarray)
        else isinstance(number, (int, float, np.number))
        for number in numbers
    )


def factors(
    lr: Number,
    step: Number = 1,
    *,
    betas: tuple[float, float] = (0.0, 0.0),
    weight_decay: float = 0.0,
    xp: ArrayModule,
) -> Factors:
    """Return what is the same for all numbers, computed in float64; on the device if need be."""
    if any(isinstance(number, xp.ndarray) for number in (lr, step)):
        held = xp.empty(len(Factors._fields) - 1, "float32")
        settings = map(np.float64, (*betas, weight_decay))
        HOLD()((1,), (1,), *_passed(lr, xp), *_passed(step, xp), *settings, held, xp=xp)
        return Factors(0.0, 0.0, 0.0, 0.0, 0.0, held)
    lr, (first, second) = float(lr), (1 - beta ** int(step) for beta in betas)
    shrink = 1 - lr * weight_decay
    return Factors(lr, lr / first, shrink, 1 / first, 1 / math.sqrt(second), pointer(None))


@sgd_update_inplace.kernel("cupy")
def sgd_cuda(
    w: Array,
    g: Array,
    m: Array,
    *,
    lr: Number,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    xp: ArrayModule,
) -> Any:
    """Replace :func:`vitkit.ops.sgd_update_inplace` for contiguous float32."""
    slots = (m,) if momentum else ()
    if not (in_order(g, w, *slots) and known(lr, xp=xp)):
        return NotImplemented
    g, chosen = plain(g, xp), factors(lr, xp=xp)
    settings = chosen.lr, chosen.held, float(momentum), int(nesterov), float(weight_decay)
    v, grid, count = _divided(w, g, *slots)
    arrays = w, g, pointer(m if momentum else None)
    SGD(v=v)(grid, (THREADS,), *arrays, count, *settings, xp=xp)
    return None


@adam_update_inplace.kernel("cupy")
def adam_cuda(
    w: Array,
    g: Array,
    m: Array,
    v: Array,
    *,
    lr: Number,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: Number,
    xp: ArrayModule,
) -> Any:
    """Replace :func:`vitkit.ops.adam_update_inplace` for contiguous float32."""
    if not (in_order(g, w, m, v) and known(lr, step, xp=xp)):
        return NotImplemented
    betas = beta1, beta2
    chosen = factors(lr, step, betas=betas, xp=xp)
    _adam((w, plain(g, xp), m, v), None, chosen, betas, eps, weight_decay, xp)
    return None


@adamw_update_inplace.kernel("cupy")
def adamw_cuda(
    w: Array,
    g: Array,
    m: Array,
    v: Array,
    *,
    lr: Number,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: Number,
    xp: ArrayModule,
) -> Any:
    """Replace :func:`vitkit.ops.adamw_update_inplace` for contiguous float32."""
    if not (in_order(g, w, m, v) and known(lr, step, xp=xp)):
        return NotImplemented
    adamw_update_with_copy(
        w,
        g,
        m,
        v,
        None,
        lr=lr,
        betas=(beta1, beta2),
        eps=eps,
        weight_decay=weight_decay,
        step=step,
        xp=xp,
    )
    return None


def adamw_update_with_copy(
    w: Array,
    g: Array,
    m: Array,
    v: Array,
    low: Array | None,
    *,
    lr: Number,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    step: Number,
    xp: ArrayModule,
) -> None:
    """Step by AdamW and write the new weights a second time, in less precision.

    Parameters
    ----------
    w, g, m, v : array
        As for :func:`vitkit.ops.adamw_update_inplace`; float32 of one shape, not empty, all but
        ``g`` without gaps.
    low : array or None
        Where the copy goes: like ``w``, but float16, or uint16 for the bits of bfloat16.
    lr, betas, eps, weight_decay, step, xp : as for the operation
        ``lr`` and ``step`` may be arrays of shape (), float32, float64 or int64.
    """
    chosen = factors(lr, step, betas=betas, weight_decay=weight_decay, xp=xp)
    _adam((w, plain(g, xp), m, v), low, chosen, betas, eps, 0.0, xp)


@lamb_update_inplace.kernel("cupy")
def lamb_cuda(
    w: Array,
    g: Array,
    m: Array,
    v: Array,
    *,
    lr: Number,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: Number,
    xp: ArrayModule,
) -> Any:
    """Replace :func:`vitkit.ops.lamb_update_inplace` for contiguous float32."""
    if not (in_order(g, w, m, v) and known(lr, step, xp=xp)):
        return NotImplemented
    g, betas = plain(g, xp), (beta1, beta2)
    chosen = factors(lr, step, betas=betas, xp=xp)
    corrections = chosen.first, chosen.root, chosen.held
    last = float(eps), float(weight_decay)
    width, grid, count = _divided(w, g, m, v)
    parts = blocks(w.size, THREADS * LAMB_ROUNDS * width)
    sums, rate = xp.empty((2, parts), "float32"), xp.empty((), "float32")
    LAMB_MOMENTS(v=width)(
        (parts,), (THREADS,), w, g, m, v, count, *corrections, *_rests(betas), *last, sums, xp=xp
    )
    LAMB_RATE()((1,), (THREADS,), sums, parts, chosen.lr, chosen.held, rate, xp=xp)
    LAMB(v=width)(grid, (THREADS,), w, m, v, count, *corrections, *last, rate, xp=xp)
    return None


@lion_update_inplace.kernel("cupy")
def lion_cuda(
    w: Array,
    g: Array,
    m: Array,
    *,
    lr: Number,
    beta1: float,
    beta2: float,
    weight_decay: float,
    xp: ArrayModule,
) -> Any:
    """Replace :func:`vitkit.ops.lion_update_inplace` for contiguous float32."""
    if not (in_order(g, w, m) and known(lr, xp=xp)):
        return NotImplemented
    g, chosen = plain(g, xp), factors(lr, xp=xp)
    v, grid, count = _divided(w, g, m)
    settings = chosen.lr, chosen.held, *_rests((beta1, beta2)), float(weight_decay)
    LION(v=v)(grid, (THREADS,), w, g, m, count, *settings, xp=xp)
    return None


@ema_update_inplace.kernel("cupy")
def ema_cuda(average: Array, w: Array, *, decay: Number, xp: ArrayModule) -> Any:
    """Replace :func:`vitkit.ops.ema_update_inplace` for contiguous float32."""
    if not (in_order(w, average) and known(decay, xp=xp)):
        return NotImplemented
    w, chosen = plain(w, xp), factors(decay, weight_decay=1.0, xp=xp)  # shrink is 1 - decay
    v, grid, count = _divided(average, w)
    EMA(v=v)(grid, (THREADS,), average, w, count, chosen.shrink, chosen.held, xp=xp)
    return None


def _adam(
    arrays: tuple[Array, Array, Array, Array],
    low: Array | None,
    chosen: Factors,
    betas: tuple[float, float],
    eps: float,
    decay: float,
    xp: ArrayModule,
) -> None:
    """Step along Adam's direction, the gradient plus ``decay`` times the weights."""
    v, grid, count = _divided(*arrays, *(() if low is None else (low,)))
    kernel = ADAM(low="bf16" if low is None else type_of(low), v=v)
    common = chosen.rate, chosen.shrink, chosen.root, chosen.held
    last = *_rests(betas), float(eps), float(decay)
    kernel(grid, (THREADS,), *arrays, pointer(low), count, *common, *last, xp=xp)


def _divided(*arrays: Array) -> tuple[int, tuple[int], np.int64]:
    """Return how many numbers a thread takes, how many blocks there are, and all numbers."""
    v, size = vector(WIDTH, *arrays), arrays[0].size
    return v, (blocks(size, THREADS * v),), np.int64(size)


def _rests(betas: tuple[float, float]) -> list[float]:
    """Return each beta and what it lacks to 1."""
    return [float(value) for beta in betas for value in (beta, 1 - beta)]


def _passed(number: Number, xp: ArrayModule) -> tuple[Any, int, np.float64]:
    """Return where a number lies on the device, of which kind it is, and its value elsewhere."""
    if isinstance(number, xp.ndarray):
        return number, KINDS[number.dtype.name], np.float64(0)
    return pointer(None), 0, np.float64(number)
