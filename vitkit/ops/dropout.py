r"""Dropout and stochastic depth.

Dropout (Srivastava et al., 2014) zeroes each number with probability :math:`\rho` and divides the
others by :math:`1 - \rho`; drop path (Huang et al., 2016, arXiv:1603.09382) does so to whole
samples of a residual branch:

.. math:: y = x \odot m / (1 - \rho), \qquad dx = dy \odot m / (1 - \rho), \qquad
          m \sim \mathrm{Bernoulli}(1 - \rho).

The mask is a function of a key (see :mod:`vitkit.backend.random`), so the backward pass needs
nothing but that key, a replayed pass draws the same mask, and so does every backend.
"""

from __future__ import annotations

import numpy as np

from vitkit.backend import Array, ArrayModule, philox
from vitkit.ops._op import Op

Key = tuple[int, int, int]
"""Seed, step, and how many draws of the step came before."""


@Op
def dropout(x: Array, rate: float, key: Key, *, xp: ArrayModule) -> Array:
    """Zero each number with probability ``rate`` and rescale the others.

    Parameters
    ----------
    x : array
        The input, of any shape.
    rate : float
        The probability of zero, in [0, 1).
    key : tuple of 3 int
        Which random numbers to draw: seed, step, count.
    xp : module
        The array module.

    Returns
    -------
    array
        The output, of the shape and dtype of ``x``.
    """
    return x * _mask(x.shape, rate, key, xp) * (1 / (1 - rate))


@Op
def dropout_backward(dy: Array, rate: float, key: Key, *, xp: ArrayModule) -> Array:
    """Return ``dx`` of :func:`dropout`.

    Parameters
    ----------
    dy : array
        The gradient of the output.
    rate : float
        The probability of the forward pass.
    key : tuple of 3 int
        The key of the forward pass.
    xp : module
        The array module.
    """
    return dy * _mask(dy.shape, rate, key, xp) * (1 / (1 - rate))


@Op
def drop_path(x: Array, rate: float, key: Key, *, xp: ArrayModule) -> Array:
    """Zero each sample with probability ``rate`` and rescale the others.

    Parameters
    ----------
    x : array, shape (B, ...)
        The output of a residual branch.
    rate : float
        The probability of zero, in [0, 1).
    key : tuple of 3 int
        Which random numbers to draw: seed, step, count.
    xp : module
        The array module.

    Returns
    -------
    array
        The output, of the shape and dtype of ``x``.
    """
    return x * _sample_mask(x, rate, key, xp)


@Op
def drop_path_backward(dy: Array, rate: float, key: Key, *, xp: ArrayModule) -> Array:
    """Return ``dx`` of :func:`drop_path`.

    Parameters
    ----------
    dy : array, shape (B, ...)
        The gradient of the output.
    rate : float
        The probability of the forward pass.
    key : tuple of 3 int
        The key of the forward pass.
    xp : module
        The array module.
    """
    return dy * _sample_mask(dy, rate, key, xp)


def path_gain(batch: int, rate: float, key: Key, dtype: np.dtype, *, xp: ArrayModule) -> Array:
    """Return what :func:`drop_path` multiplies each of ``batch`` samples by, as an array (B,)."""
    return drop_path(xp.ones((batch,), dtype), rate, key, xp=xp)


def drawn_gains(batch: int, rate: float, key: Key, dtype: np.dtype, *, xp: ArrayModule) -> Array:
    """Return the same, drawn on the host: 0 or ``1 / (1 - rate)`` for each sample."""
    return _mask((batch,), rate, key, xp).astype(dtype) * (1 / (1 - rate))


def _sample_mask(x: Array, rate: float, key: Key, xp: ArrayModule) -> Array:
    """Return 0 or 1 / (1 - rate) for each sample, in the dtype of ``x``."""
    return drawn_gains(x.shape[0], rate, key, x.dtype, xp=xp).reshape(-1, *(1,) * (x.ndim - 1))


def _mask(shape: tuple[int, ...], rate: float, key: Key, xp: ArrayModule) -> Array:
    """Draw on the host, where Philox is defined, and bring the booleans to the device."""
    seed, *indices = key
    return xp.asarray(philox(seed, "dropout", *indices).random(shape, np.float32) >= rate)
