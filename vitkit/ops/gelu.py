r"""Gaussian error linear units (Hendrycks & Gimpel, 2016, arXiv:1606.08415).

With :math:`\Phi` and :math:`\varphi` the distribution and density of the standard normal,

.. math:: y = x\,\Phi(x) = \tfrac{x}{2}\bigl(1 + \operatorname{erf}(x/\sqrt2)\bigr), \qquad
          dx = dy\,\bigl(\Phi(x) + x\,\varphi(x)\bigr),

and the tanh form of the same paper, which Google's code and cuBLAS use,

.. math:: y = \tfrac{x}{2}(1 + \tanh u), \qquad u = \sqrt{2/\pi}\,(x + 0.044715\,x^3),

.. math:: dx = dy\,\bigl(\tfrac12(1 + \tanh u)
               + \tfrac{x}{2}(1 - \tanh^2 u)\,\sqrt{2/\pi}\,(1 + 0.134145\,x^2)\bigr).

They differ by up to 4.7e-4, which decides whether released weights give their own logits. The
backward pass needs :math:`x` alone.
"""

from __future__ import annotations

import math

from vitkit.backend import Array, ArrayModule, erf
from vitkit.ops._op import Op

CUBIC = 0.044715
SQRT_2_OVER_PI = math.sqrt(2 / math.pi)
# Beyond this the derivative is exactly 0 or 1 in float64; clipping there keeps the squares finite.
CERTAIN = 40.0


@Op
def gelu(x: Array, *, xp: ArrayModule) -> Array:
    """Return ``x`` times the normal distribution function of ``x``, by the error function.

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
    y = erf(x * math.sqrt(0.5), xp=xp)
    y += 1
    y *= x
    y *= 0.5
    return y


@Op
def gelu_backward(dy: Array, x: Array, *, xp: ArrayModule) -> Array:
    """Return ``dx`` of :func:`gelu`.

    Parameters
    ----------
    dy, x : array
        The gradient of the output, and the input of the forward pass.
    xp : module
        The array module.
    """
    x = xp.clip(x, -CERTAIN, CERTAIN)
    cdf = 0.5 * (1 + erf(x * math.sqrt(0.5), xp=xp))
    pdf = xp.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))
    return dy * (cdf + x * pdf)


@Op
def gelu_tanh(x: Array, *, xp: ArrayModule) -> Array:
    """Return the tanh approximation of :func:`gelu`.

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
    return 0.5 * x * (1 + xp.tanh(_inner(xp.clip(x, -CERTAIN, CERTAIN))))


@Op
def gelu_tanh_backward(dy: Array, x: Array, *, xp: ArrayModule) -> Array:
    """Return ``dx`` of :func:`gelu_tanh`.

    Parameters
    ----------
    dy, x : array
        The gradient of the output, and the input of the forward pass.
    xp : module
        The array module.
    """
    x = xp.clip(x, -CERTAIN, CERTAIN)
    tanh = xp.tanh(_inner(x))
    slope = SQRT_2_OVER_PI * (1 + 3 * CUBIC * x * x)
    return dy * (0.5 * (1 + tanh) + 0.5 * x * (1 - tanh * tanh) * slope)


def _inner(x: Array) -> Array:
    """Return the argument of the tanh; products, since ``x**3`` is a slow call to ``pow``."""
    return SQRT_2_OVER_PI * (x + CUBIC * x * x * x)
