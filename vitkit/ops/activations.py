r"""Element-wise activations other than GELU.

.. math:: \mathrm{relu}(x) = \max(x, 0), \qquad
          \mathrm{silu}(x) = x\,\sigma(x), \qquad
          \mathrm{quick\_gelu}(x) = x\,\sigma(1.702\,x), \qquad \tanh(x),

with :math:`\sigma(x) = 1 / (1 + e^{-x})`, for negative :math:`x` as :math:`e^x / (1 + e^x)`, so
that nothing overflows and small values keep all their digits. For :math:`y = x\,\sigma(a x)` and
:math:`s = \sigma(a x)`,

.. math:: dx = dy \, s\,\bigl(1 + a x (1 - s)\bigr).

Sources: ReLU, Nair & Hinton, 2010; SiLU and the sigmoid form of GELU, Hendrycks & Gimpel, 2016,
arXiv:1606.08415. The derivative of ReLU at 0 is taken as 0, as PyTorch does.
"""

from __future__ import annotations

from vitkit.backend import Array, ArrayModule
from vitkit.ops._op import Op

QUICK = 1.702


@Op
def relu(x: Array, *, xp: ArrayModule) -> Array:
    """Return the larger of ``x`` and 0.

    Parameters
    ----------
    x : array
        The input, of any shape.
    xp : module
        The array module.

    Returns
    -------
    array
        The output, of the shape and dtype of ``x``.
    """
    return xp.maximum(x, 0)


@Op
def relu_backward(dy: Array, x: Array, *, xp: ArrayModule) -> Array:
    """Return ``dx`` of :func:`relu`.

    Parameters
    ----------
    dy, x : array
        The gradient of the output, and the input of the forward pass.
    xp : module
        The array module.
    """
    return dy * (x > 0)


@Op
def silu(x: Array, *, xp: ArrayModule) -> Array:
    """Return ``x`` times its logistic sigmoid.

    Parameters
    ----------
    x : array
        The input, of any shape.
    xp : module
        The array module.

    Returns
    -------
    array
        The output, of the shape and dtype of ``x``.
    """
    return x * _sigmoid(x, xp)


@Op
def silu_backward(dy: Array, x: Array, *, xp: ArrayModule) -> Array:
    """Return ``dx`` of :func:`silu`.

    Parameters
    ----------
    dy, x : array
        The gradient of the output, and the input of the forward pass.
    xp : module
        The array module.
    """
    s = _sigmoid(x, xp)
    return dy * (s * (1 + x * (1 - s)))


@Op
def quick_gelu(x: Array, *, xp: ArrayModule) -> Array:
    """Return ``x`` times the logistic sigmoid of ``1.702 x``, CLIP's approximation of GELU.

    Parameters
    ----------
    x : array
        The input, of any shape.
    xp : module
        The array module.

    Returns
    -------
    array
        The output, of the shape and dtype of ``x``.
    """
    return x * _sigmoid(QUICK * x, xp)


@Op
def quick_gelu_backward(dy: Array, x: Array, *, xp: ArrayModule) -> Array:
    """Return ``dx`` of :func:`quick_gelu`.

    Parameters
    ----------
    dy, x : array
        The gradient of the output, and the input of the forward pass.
    xp : module
        The array module.
    """
    s = _sigmoid(QUICK * x, xp)
    return dy * (s * (1 + QUICK * x * (1 - s)))


@Op
def tanh(x: Array, *, xp: ArrayModule) -> Array:
    """Return the hyperbolic tangent, the paper's activation between head layers.

    Parameters
    ----------
    x : array
        The input, of any shape.
    xp : module
        The array module.

    Returns
    -------
    array
        The output, of the shape and dtype of ``x``.
    """
    return xp.tanh(x)


@Op
def tanh_backward(dy: Array, x: Array, *, xp: ArrayModule) -> Array:
    """Return ``dx`` of :func:`tanh`.

    Parameters
    ----------
    dy, x : array
        The gradient of the output, and the input of the forward pass.
    xp : module
        The array module.
    """
    y = xp.tanh(x)
    return dy * (1 - y * y)


def _sigmoid(x: Array, xp: ArrayModule) -> Array:
    e = xp.exp(-xp.abs(x))
    return xp.where(x < 0, e, xp.ones_like(e)) / (1 + e)
