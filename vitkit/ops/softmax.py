r"""Softmax along one axis.

.. math:: y_i = \frac{e^{x_i - m}}{\sum_j e^{x_j - m}}, \qquad m = \max_j x_j, \qquad
          dx = y \odot \Bigl(dy - \sum_j dy_j\, y_j\Bigr).

Subtracting the maximum *of the same row* changes nothing and keeps the exponentials finite. The
backward pass needs :math:`y` alone; the Jacobian is never formed.
"""

from __future__ import annotations

from vitkit.backend import Array, ArrayModule
from vitkit.ops._op import Op


@Op
def softmax(x: Array, axis: int = -1, *, xp: ArrayModule) -> Array:
    """Return probabilities along ``axis``, finite for any finite ``x``.

    Parameters
    ----------
    x : array
        Logits, of any shape.
    axis : int, default -1
        The axis along which the result sums to one.
    xp : module
        The array module.

    Returns
    -------
    array
        The probabilities, of the shape and dtype of ``x``.
    """
    y = xp.exp(x - x.max(axis=axis, keepdims=True))
    y /= y.sum(axis=axis, keepdims=True)
    return y


@Op
def softmax_backward(dy: Array, y: Array, axis: int = -1, *, xp: ArrayModule) -> Array:
    """Return ``dx`` of :func:`softmax`.

    Parameters
    ----------
    dy, y : array
        The gradient of the output, and the output itself.
    axis : int, default -1
        The axis of the forward pass.
    xp : module
        The array module.
    """
    return y * (dy - (dy * y).sum(axis=axis, keepdims=True))
