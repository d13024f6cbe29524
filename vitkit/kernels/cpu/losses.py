"""Softmax cross-entropy, a sample at a time; the meaning is in :mod:`vitkit.ops.losses`.

What is wrong with labels is said by the reference, which such calls are left to.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import prange

from vitkit.backend import Array, ArrayModule
from vitkit.kernels.cpu._arrays import plain, served
from vitkit.kernels.cpu._compile import exact, parallel, serial, widest_vectors
from vitkit.kernels.cpu._math import HALF, ONE, ZERO, F, exp, larger
from vitkit.kernels.cpu._memory import empty
from vitkit.kernels.cpu._threads import threads
from vitkit.ops.losses import softmax_cross_entropy

LEAST = F(-np.inf)
LOWEST = F(-0.499 * float(np.finfo(np.float32).max))


@exact
def _below(x: float, half: float) -> Any:
    """Return x less twice ``half``, by halves: their difference cannot overflow."""
    difference = HALF * x - half
    return F(2) * (LOWEST if difference < LOWEST else difference)


@exact
def _weighed(loss: float, share: float, target: float) -> float:
    """Return loss times share, and only then times target: it may be the largest number."""
    return loss * share * target


@exact
def _smoothed(target: float, kept: float, even: float) -> float:
    return target * kept + even


@serial
def _hard_targets(label: int, kept: float, even: float, targets: np.ndarray) -> None:
    for k in range(targets.size):
        targets[k] = even
    targets[label] = _smoothed(F(1), kept, even)


@serial
def _soft_targets(labels: np.ndarray, kept: float, even: float, targets: np.ndarray) -> None:
    widest_vectors()
    for k in range(targets.size):
        targets[k] = _smoothed(labels[k], kept, even)


@serial
def _sample(x: np.ndarray, targets: np.ndarray, share: float, dx: np.ndarray) -> Any:
    """Write the gradient of one sample's share of the mean, and return that share."""
    widest_vectors()
    largest = LEAST
    for k in range(x.size):
        largest = larger(largest, x[k])
    half, total = HALF * largest, ZERO
    for k in range(x.size):
        e = exp(_below(x[k], half))
        dx[k] = e
        total += e
    log_total, loss = math.log(total), ZERO
    for k in range(x.size):
        loss += _weighed(log_total - _below(x[k], half), share, targets[k])
        dx[k] = (dx[k] / total - targets[k]) * share
    return loss


@parallel
def _cross_entropy(
    logits: np.ndarray,
    hard: np.ndarray,
    soft: np.ndarray,
    kept: float,
    even: float,
    targets: np.ndarray,
    losses: np.ndarray,
    dlogits: np.ndarray,
) -> None:
    """Write loss and gradient of each sample; of ``hard`` and ``soft`` labels one has none."""
    parts, batch = len(targets), len(logits)
    for t in prange(parts):
        for b in range(batch * t // parts, batch * (t + 1) // parts):
            if len(hard):
                _hard_targets(hard[b], kept, even, targets[t])
            else:
                _soft_targets(soft[b], kept, even, targets[t])
            losses[b] = _sample(logits[b], targets[t], ONE / F(batch), dlogits[b])


def split(logits: Array, labels: Array) -> tuple[np.ndarray, np.ndarray] | None:
    """Return class indices and a distribution for each sample, one of them empty; None if wrong."""
    kind = labels.dtype.kind if isinstance(labels, np.ndarray) else ""
    hard, soft = np.empty(0, np.int64), np.empty((0, 0), np.float32)
    if kind in ("i", "u") and labels.shape == logits.shape[:1]:
        hard = labels.astype(np.int64)
        return None if hard.min() < 0 or hard.max() >= logits.shape[1] else (hard, soft)
    if kind == "f" and labels.shape == logits.shape:
        return hard, plain(labels.astype(np.float32, copy=False))
    return None


@softmax_cross_entropy.kernel("numpy")
def softmax_cross_entropy_cpu(
    logits: Array, labels: Array, label_smoothing: float = 0.0, *, xp: ArrayModule
) -> Any:
    """Replace :func:`vitkit.ops.softmax_cross_entropy` for float32 and labels that fit."""
    if not served(logits) or logits.ndim != 2 or not 0 <= label_smoothing < 1:
        return NotImplemented
    found = split(logits, labels)
    if found is None:
        return NotImplemented
    batch, classes = logits.shape
    smoothing = F(1 - label_smoothing), F(label_smoothing / classes)
    dlogits, losses = empty(logits.shape), np.empty(batch, np.float32)
    targets = empty((threads(), classes))
    _cross_entropy(plain(logits), *found, *smoothing, targets, losses, dlogits)
    return losses.sum(dtype=np.float64).astype(np.float32), dlogits
