r"""Mish (Misra, 2019, arXiv:1908.08681).

.. math:: y = x \tanh(\ln(1 + e^x)), \qquad
          dx = dy \left(\tanh(\ln(1 + e^x)) + x \, \frac{d}{dx} \tanh(\ln(1 + e^x))\right)

Neither a logarithm nor a hyperbolic tangent is needed. With :math:`n = e^x (e^x + 2)`,

.. math:: \tanh(\ln(1 + e^x)) = \frac{(1 + e^x)^2 - 1}{(1 + e^x)^2 + 1} = \frac{n}{n + 2},
          \qquad \frac{d}{dx} \frac{n}{n + 2} = \frac{4 \, e^x (e^x + 1)}{(n + 2)^2},

where nothing is subtracted, so small values keep all their digits. From :math:`x = 20` on both
are 1 and 0 to the last digit of float64, and :math:`x` is cut there, before anything overflows.
"""

from __future__ import annotations

from vitkit.backend import Array, ArrayModule
from vitkit.ops import Op

CERTAIN = 20.0


@Op
def mish(x: Array, *, xp: ArrayModule) -> Array:
    """Return ``x`` times the hyperbolic tangent of its softplus.

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
    e = xp.exp(xp.minimum(x, CERTAIN))
    n = e * (e + 2)
    return x * (n / (n + 2))


@Op
def mish_backward(dy: Array, x: Array, *, xp: ArrayModule) -> Array:
    """Return ``dx`` of :func:`mish`.

    Parameters
    ----------
    dy, x : array
        The gradient of the output, and the input of the forward pass.
    xp : module
        The array module.

    Returns
    -------
    array
        The gradient of the input, of the shape and dtype of ``x``.
    """
    x = xp.minimum(x, CERTAIN)
    e = xp.exp(x)
    n = e * (e + 2)
    r = 1 / (n + 2)  # twice a factor, since its square would overflow in float32 as a divisor
    return dy * (n * r + (4 * x) * ((e * (e + 1)) * r * r))
