r"""Losses: the end of the chain, so each returns its value and its gradient at once.

All take logits, never probabilities, and are the mean over the batch; the gradient is that of the
mean. With :math:`z = x - \max_j x_j` and targets :math:`t` that sum to one in each row,

.. math:: \text{softmax cross-entropy:}\quad
          L = \tfrac1B \sum_i \sum_k t_{ik} \bigl(\log {\textstyle\sum_j} e^{z_{ij}} - z_{ik}\bigr),
          \qquad dx = (\operatorname{softmax}(x) - t) / B .

Label smoothing :math:`\epsilon` (Szegedy et al., 2016, arXiv:1512.00567) replaces :math:`t` by
:math:`(1 - \epsilon)\,t + \epsilon / K`.

.. math:: \text{sigmoid cross-entropy:}\quad
          L = \tfrac1{BK} \sum \max(x, 0) - x t + \log(1 + e^{-|x|}),
          \qquad dx = (\sigma(x) - t) / (BK),

.. math:: \text{mean squared error:}\quad
          L = \tfrac1{BK} \sum (x - t)^2, \qquad dx = 2 (x - t) / (BK) .

The means are those of PyTorch's ``cross_entropy``, ``binary_cross_entropy_with_logits`` and
``mse_loss``.
"""

from __future__ import annotations

import numpy as np

from vitkit.backend import Array, ArrayModule, backend_of
from vitkit.ops._op import Op


@Op
def softmax_cross_entropy(
    logits: Array, labels: Array, label_smoothing: float = 0.0, *, xp: ArrayModule
) -> tuple[Array, Array]:
    """Return the mean cross-entropy of the softmax of ``logits``, and its gradient.

    Parameters
    ----------
    logits : array, shape (B, K)
        Any finite numbers.
    labels : array, shape (B,) of int, or (B, K) of float
        Class indices, or a distribution over the classes for each sample.
    label_smoothing : float, default 0
        How much of each target is spread evenly over all classes, in [0, 1).
    xp : module
        The array module.

    Returns
    -------
    loss : array, shape ()
        The mean over the batch, on the device.
    dlogits : array, shape (B, K)
        The gradient of ``loss``.

    Raises
    ------
    ValueError
        If the shapes do not fit, or, where looking costs nothing, a label is out of range; on a
        device an out-of-range label makes the loss NaN instead, so that it is never silent.
    """
    batch = logits.shape[0]
    targets = _targets(logits, labels, label_smoothing, xp)
    # Halves cannot overflow where the difference of two finite numbers can; halving is exact.
    half = 0.5 * logits
    half -= half.max(axis=1, keepdims=True)
    # A little below the largest number, or rounding could push a mean of such rows over it.
    lowest = -0.499 * float(np.finfo(logits.dtype).max)
    z = 2 * xp.maximum(half, lowest)
    e = xp.exp(z)
    total = e.sum(axis=1, keepdims=True)
    loss = ((xp.log(total) - z) / batch * targets).sum()
    dlogits = e / total
    dlogits -= targets
    dlogits /= batch
    return loss, dlogits


@Op
def sigmoid_bce(
    logits: Array, labels: Array, label_smoothing: float = 0.0, *, xp: ArrayModule
) -> tuple[Array, Array]:
    """Return the mean binary cross-entropy of the sigmoid of ``logits``, and its gradient.

    Parameters
    ----------
    logits : array, shape (B, K)
        Any finite numbers.
    labels : array, shape (B,) of int, or (B, K) of float
        Class indices, or a probability for each class of each sample.
    label_smoothing : float, default 0
        How far each target is moved towards an even distribution, in [0, 1).
    xp : module
        The array module.

    Returns
    -------
    loss : array, shape ()
        The mean over batch and classes, on the device.
    dlogits : array, shape (B, K)
        The gradient of ``loss``.

    Raises
    ------
    ValueError
        As :func:`softmax_cross_entropy`.
    """
    targets = _targets(logits, labels, label_smoothing, xp)
    losses = xp.maximum(logits, 0) - logits * targets + xp.log1p(xp.exp(-xp.abs(logits)))
    dlogits = 0.5 * (1 + xp.tanh(0.5 * logits))  # the sigmoid, in a form that cannot overflow
    dlogits -= targets
    dlogits /= logits.size
    return (losses / logits.size).sum(), dlogits


@Op
def mean_squared_error(
    logits: Array, labels: Array, label_smoothing: float = 0.0, *, xp: ArrayModule
) -> tuple[Array, Array]:
    """Return the mean squared difference of ``logits`` and targets, and its gradient.

    Parameters
    ----------
    logits : array, shape (B, K)
        The predictions.
    labels : array, shape (B,) of int, or (B, K) of float
        Class indices, taken as one-hot rows, or the targets themselves.
    label_smoothing : float, default 0
        How far each target is moved towards an even distribution, in [0, 1).
    xp : module
        The array module.

    Returns
    -------
    loss : array, shape ()
        The mean over batch and classes, on the device.
    dlogits : array, shape (B, K)
        The gradient of ``loss``.

    Raises
    ------
    ValueError
        As :func:`softmax_cross_entropy`.
    """
    targets = _targets(logits, labels, label_smoothing, xp)
    error = logits - targets
    return (error * error).mean(), error * (2 / logits.size)


def _targets(logits: Array, labels: Array, label_smoothing: float, xp: ArrayModule) -> Array:
    """Return the (B, K) targets that integer or soft labels stand for, in the logits' dtype."""
    batch, classes = logits.shape
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be in [0, 1); got {label_smoothing}.")
    kind, shape = getattr(getattr(labels, "dtype", None), "kind", ""), getattr(labels, "shape", ())
    if kind in ("i", "u") and shape == (batch,):
        targets = _one_hot(labels, classes, logits.dtype, xp)
    elif kind == "f" and shape == logits.shape:
        targets = labels.astype(logits.dtype)
    else:
        got = f"{labels.dtype} of shape {shape}" if kind else type(labels).__name__
        raise ValueError(
            f"labels must be an array: integers of shape ({batch},) or floats of shape "
            f"{logits.shape} to go with logits of shape {logits.shape}; got {got}."
        )
    if label_smoothing:
        targets = targets * (1 - label_smoothing) + label_smoothing / classes
    return targets


def _one_hot(labels: Array, classes: int, dtype: np.dtype, xp: ArrayModule) -> Array:
    labels = labels.astype("int64")  # a uint8 cannot be compared with class 256
    outside = (labels < 0) | (labels >= classes)
    if backend_of(xp).on_host and outside.any():
        worst = labels[outside][0]
        raise ValueError(f"labels must be between 0 and {classes - 1}; got {worst}.")
    hot = (labels[:, None] == xp.arange(classes)).astype(dtype)
    return xp.where(outside[:, None], xp.asarray(xp.nan, dtype=dtype), hot)
