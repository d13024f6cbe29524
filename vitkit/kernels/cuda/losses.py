"""Softmax cross-entropy on a GPU; the meaning is in :mod:`vitkit.ops.losses`.

What is wrong with shapes and types is said by the reference, which such calls are left to.
"""

from __future__ import annotations

from typing import Any

from vitkit.backend import Array, ArrayModule
from vitkit.kernels.cuda._arrays import WIDTH, plain, served, vector
from vitkit.kernels.cuda._kernel import Family
from vitkit.kernels.cuda._rows import SHARING, sharing
from vitkit.ops.losses import softmax_cross_entropy

LAST = 1024  # threads of the one block that adds up what the others found
ENTROPY = Family("losses.cuh", "cross_entropy<{threads}, {v}>", threads=SHARING, v=(1, WIDTH))
SUM = Family("losses.cuh", "sum_of_losses")


def given(logits: Array, labels: Array, xp: ArrayModule) -> tuple[Array, int] | None:
    """Return labels that kernels read, and of how many bytes classes are; None if they are wrong.

    The number of bytes is negative for classes whose type has a sign, and 0 for a distribution.
    """
    if not isinstance(labels, xp.ndarray):
        return None
    kind, bytes_each = labels.dtype.kind, int(labels.dtype.itemsize)
    if kind in ("i", "u") and labels.shape == logits.shape[:1]:
        return plain(labels, xp), -bytes_each if kind == "i" else bytes_each
    if kind == "f" and labels.shape == logits.shape:
        return plain(labels.astype("float32", copy=False), xp), 0
    return None


@softmax_cross_entropy.kernel("cupy")
def softmax_cross_entropy_cuda(
    logits: Array, labels: Array, label_smoothing: float = 0.0, *, xp: ArrayModule
) -> Any:
    """Replace :func:`vitkit.ops.softmax_cross_entropy` for float32 and labels that fit."""
    if not served(logits) or logits.ndim != 2 or not 0 <= label_smoothing < 1:
        return NotImplemented
    found = given(logits, labels, xp)
    if found is None:
        return NotImplemented
    (batch, classes), logits, (labels, bytes_each) = logits.shape, plain(logits, xp), found
    losses, loss = xp.empty(batch, "float32"), xp.empty((), "float32")
    dlogits = xp.empty(logits.shape, "float32")
    read = (logits, dlogits) if bytes_each else (logits, dlogits, labels)
    threads, sizes = sharing(batch, classes)
    factors = 1 - float(label_smoothing), float(label_smoothing) / classes, 1 / batch
    targets = labels, bytes_each, *factors
    kernel = ENTROPY(threads=threads, v=vector(classes, *read))
    kernel(*sizes, logits, *targets, losses, dlogits, batch, classes, xp=xp)
    SUM()((1,), (LAST,), losses, batch, loss, xp=xp)
    return loss, dlogits
