r"""Layer normalization (Ba et al., 2016, arXiv:1607.06450).

For each row :math:`x` of width :math:`D`,

.. math:: y = \hat x \odot w + b, \qquad \hat x = (x - \mu)\, r, \qquad
          r = (\sigma^2 + \epsilon)^{-1/2},

and, writing :math:`g = dy \odot w` and :math:`\langle\cdot\rangle` for the mean over the row,

.. math:: dx = r \, (g - \langle g \rangle - \hat x \langle g \odot \hat x \rangle).

The backward pass needs :math:`x`, :math:`\mu` and :math:`r`; :math:`\hat x` is recomputed because
keeping it would double the memory for one fused multiply.
"""

from __future__ import annotations

from vitkit.backend import Array, ArrayModule
from vitkit.ops._op import Op


@Op
def layer_norm(
    x: Array, weight: Array, bias: Array, eps: float, *, xp: ArrayModule
) -> tuple[Array, Array, Array]:
    """Normalize the last axis to zero mean and unit variance, then scale and shift it.

    Parameters
    ----------
    x : array, shape (..., D)
        The input.
    weight, bias : array, shape (D,)
        Scale and shift.
    eps : float
        Added to the variance.
    xp : module
        The array module.

    Returns
    -------
    y : array, shape (..., D)
        The output.
    mean, rstd : array, shape (..., 1)
        The mean and the reciprocal standard deviation of each row, for backward.
    """
    mean = x.mean(axis=-1, keepdims=True)
    y = x - mean
    variance = (y * y).mean(axis=-1, keepdims=True)
    rstd = 1 / xp.sqrt(variance + eps)
    y *= rstd
    y *= weight
    y += bias
    return y, mean, rstd


@Op
def layer_norm_backward(
    dy: Array, x: Array, weight: Array, mean: Array, rstd: Array, *, xp: ArrayModule
) -> tuple[Array, Array, Array]:
    """Return ``(dx, dweight, dbias)`` of :func:`layer_norm`.

    Parameters
    ----------
    dy : array, shape (..., D)
        The gradient of the output.
    x : array, shape (..., D)
        The input of the forward pass.
    weight : array, shape (D,)
        The scale.
    mean, rstd : array, shape (..., 1)
        What the forward pass returned.
    xp : module
        The array module.
    """
    rows = tuple(range(x.ndim - 1))
    x_hat = (x - mean) * rstd
    dweight, dbias = (dy * x_hat).sum(axis=rows), dy.sum(axis=rows)
    dx = dy * weight
    mean_g = dx.mean(axis=-1, keepdims=True)
    x_hat *= (dx * x_hat).mean(axis=-1, keepdims=True)
    dx -= mean_g
    dx -= x_hat
    dx *= rstd
    return dx, dweight, dbias
