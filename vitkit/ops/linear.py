r"""The affine map, the layer that holds nearly all of a ViT's weights.

.. math:: y = x W^\top + b, \qquad W \in \mathbb{R}^{D_{out} \times D_{in}},

.. math:: dx = dy\, W, \qquad dW = dy^\top x, \qquad db = \sum_{rows} dy.

Leading axes are rows: they are folded into one before the product, so that it is one large
matrix product and not one for each image. The backward pass needs :math:`x` and :math:`W`.
"""

from __future__ import annotations

from vitkit.backend import Array, ArrayModule
from vitkit.ops._op import Op


@Op
def linear(x: Array, weight: Array, bias: Array | None, *, xp: ArrayModule) -> Array:
    """Apply an affine map to the last axis.

    Parameters
    ----------
    x : array, shape (..., D_in)
        The input.
    weight : array, shape (D_out, D_in)
        The matrix, laid out as in PyTorch.
    bias : array, shape (D_out,), or None
        The shift.
    xp : module
        The array module.

    Returns
    -------
    array, shape (..., D_out)
        The output, of the dtype of ``x``.
    """
    y = _rows(x) @ weight.T
    if bias is not None:
        y += bias
    return y.reshape(*x.shape[:-1], weight.shape[0])


@Op
def linear_backward(
    dy: Array, x: Array, weight: Array, *, xp: ArrayModule
) -> tuple[Array, Array, Array]:
    """Return ``(dx, dweight, dbias)`` of :func:`linear`.

    Parameters
    ----------
    dy : array, shape (..., D_out)
        The gradient of the output.
    x : array, shape (..., D_in)
        The input of the forward pass.
    weight : array, shape (D_out, D_in)
        The matrix of the forward pass.
    xp : module
        The array module.
    """
    rows = _rows(dy)
    dx = (rows @ weight).reshape(x.shape)
    return dx, rows.T @ _rows(x), rows.sum(axis=0)


def _rows(x: Array) -> Array:
    """Fold every axis but the last into one."""
    return x.reshape(-1, x.shape[-1])
