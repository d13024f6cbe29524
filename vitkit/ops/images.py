r"""From stored pixels to network input.

.. math:: y = (x / s - \mu_c) / \sigma_c

with :math:`s` the largest pixel value, and :math:`\mu_c, \sigma_c` the mean and spread of channel
:math:`c` over the training images, of pixels already divided by :math:`s`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vitkit.backend import Array, ArrayModule
from vitkit.ops._op import Op


@Op
def normalize_images(
    images: Array,
    scale: float,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: Any,
    *,
    xp: ArrayModule,
) -> Array:
    """Turn integer pixels into numbers of zero mean and unit spread in each channel.

    Parameters
    ----------
    images : array of uint8, shape (B, C, H, W)
        The pixels.
    scale : float
        The largest pixel value, such as 255.
    mean, std : sequence of float, length C
        Mean and spread of each channel, of pixels divided by ``scale``.
    dtype : str or numpy.dtype
        The dtype of the result.
    xp : module
        The array module.

    Returns
    -------
    array, shape (B, C, H, W)
        The input of the network.
    """
    # One multiply and one add for each pixel: x * (1 / (s sigma)) - mu / sigma.
    factor = xp.asarray([1 / (scale * s) for s in std], dtype=dtype)
    shift = xp.asarray([-m / s for m, s in zip(mean, std, strict=True)], dtype=dtype)
    y = images.astype(dtype)
    y *= factor[:, None, None]
    y += shift[:, None, None]
    return y
