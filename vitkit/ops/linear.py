r"""The affine map, the layer that holds nearly all of a ViT's weights.

.. math:: y = x W^\top + b, \qquad W \in \mathbb{R}^{D_{out} \times D_{in}},

.. math:: dx = dy\, W, \qquad dW = dy^\top x, \qquad db = \sum_{rows} dy.

Leading axes are rows: they are folded into one before the product, so that it is one large
matrix product and not one for each image. The backward pass needs :math:`x` and :math:`W`.

In a ``precision`` other than float32 both operands of every product are rounded to it and their
products are summed in float32. A kernel may round less.
"""

from __future__ import annotations

from vitkit.backend import Array, ArrayModule
from vitkit.backend.precision import operand
from vitkit.ops._op import Op


@Op
def linear(
    x: Array, weight: Array, bias: Array | None, *, precision: str = "float32", xp: ArrayModule
) -> Array:
    """Apply an affine map to the last axis.

    Parameters
    ----------
    x : array, shape (..., D_in)
        The input.
    weight : array, shape (D_out, D_in)
        The matrix, laid out as in PyTorch.
    bias : array, shape (D_out,), or None
        The shift.
    precision : str, default "float32"
        What the product is made of, one of ``vitkit.backend.precision.PRECISIONS``.
    xp : module
        The array module.

    Returns
    -------
    array, shape (..., D_out)
        The output, of the dtype of ``x``.
    """
    y = operand(_rows(x), precision, xp=xp) @ operand(weight, precision, xp=xp).T
    if bias is not None:
        y += bias
    return y.reshape(*x.shape[:-1], weight.shape[0])


@Op
def linear_backward(
    dy: Array,
    x: Array,
    weight: Array,
    *,
    precision: str = "float32",
    input_gradient: bool = True,
    xp: ArrayModule,
) -> tuple[Array | None, Array, Array]:
    """Return ``(dx, dweight, dbias)`` of :func:`linear`.

    Parameters
    ----------
    dy : array, shape (..., D_out)
        The gradient of the output.
    x : array, shape (..., D_in)
        The input of the forward pass.
    weight : array, shape (D_out, D_in)
        The matrix of the forward pass.
    precision : str, default "float32"
        That of the forward pass.
    input_gradient : bool, default True
        Whether ``dx`` is wanted; otherwise it is None, and a product is saved.
    xp : module
        The array module.
    """
    rows = operand(_rows(dy), precision, xp=xp)
    dx = None
    if input_gradient:
        dx = (rows @ operand(weight, precision, xp=xp)).reshape(x.shape)
    return dx, rows.T @ operand(_rows(x), precision, xp=xp), rows.sum(axis=0)


def _rows(x: Array) -> Array:
    """Fold every axis but the last into one."""
    return x.reshape(-1, x.shape[-1])
