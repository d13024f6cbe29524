"""Pixels to numbers in one pass on a GPU; the meaning is in :mod:`vitkit.ops.images`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vitkit.backend import Array, ArrayModule
from vitkit.kernels.cuda._arrays import WIDTH, plain, vector
from vitkit.kernels.cuda._kernel import STORED, Family, blocks, type_of
from vitkit.kernels.cuda.patches import MOST, cut, divides
from vitkit.ops.images import normalize_images
from vitkit.ops.patches import Size

THREADS = 256  # of a block
GROUP = 4  # channels whose factors and shifts are passed at once
NORMALIZE = Family("images.cuh", "normalize_images<{v}>", v=(1, WIDTH))
PATCHIFY = Family("images.cuh", "patchify_pixels<{y}, {v}>", y=STORED, v=(1, WIDTH))


def groups(
    scale: float, mean: Sequence[float], std: Sequence[float]
) -> Iterator[tuple[int, int, list[float]]]:
    """Yield the first of some channels, how many there are, and their factors and shifts."""
    factors = [float(1 / (scale * s)) for s in std]
    shifts = [float(-m / s) for m, s in zip(mean, std, strict=True)]
    for first in range(0, len(factors), GROUP):
        some = [each[first : first + GROUP] for each in (factors, shifts)]
        taken = len(some[0])
        yield first, taken, [value for each in some for value in (*each, *[0.0] * (GROUP - taken))]


@normalize_images.kernel("cupy")
def normalize_images_cuda(
    images: Array,
    scale: float,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: Any,
    *,
    xp: ArrayModule,
) -> Any:
    """Replace :func:`vitkit.ops.normalize_images` for bytes that become float32."""
    if images.ndim != 4 or not images.size or images.dtype != "uint8":
        return NotImplemented
    batch, channels, height, width = images.shape
    pixels = height * width
    if not len(mean) == len(std) == channels or np.dtype(dtype) != np.float32 or pixels > MOST:
        return NotImplemented
    images, y = plain(images, xp), xp.empty(images.shape, "float32")
    v = vector(pixels, images, y)
    across = blocks(pixels, THREADS * v)
    for first, taken, numbers in groups(scale, mean, std):
        sizes = (batch * across, taken), (THREADS,)
        NORMALIZE(v=v)(*sizes, images, y, channels, pixels, across, first, *numbers, xp=xp)
    return y


def patchify_pixels(
    images: Array,
    patch_size: Size,
    scale: float,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: str,
    xp: ArrayModule,
) -> Array:
    """Return the patches of images whose pixels are normalized on the way.

    Parameters
    ----------
    images : array of uint8, shape (B, C, H, W)
        The pixels.
    patch_size : tuple of 2 int
        Height and width of a patch, in pixels; they divide those of the images.
    scale : float
        The largest pixel value.
    mean, std : sequence of float, length C
        Mean and spread of each channel, of pixels divided by ``scale``.
    dtype : str
        What is stored: ``"float32"``, ``"float16"`` or ``"uint16"``, bits of bfloat16.
    xp : module
        The array module.

    Returns
    -------
    array, shape (B, N, C * P * P)
        The patches, in reading order.

    Raises
    ------
    ValueError
        If the images are not of uint8, the patch does not divide them, or there are not as many
        means and spreads as channels.
    """
    if images.dtype != "uint8":
        raise ValueError(f"Pixels are of uint8; got {images.dtype}.")
    batch, channels, height, width = images.shape
    down, across = patch_size
    if not divides(channels, (height, width), patch_size):
        raise ValueError(f"Patches of {patch_size} pixels do not divide images of {images.shape}.")
    if not len(mean) == len(std) == channels:
        raise ValueError(f"{channels} channels have {len(mean)} means and {len(std)} spreads.")
    images = plain(images, xp)
    count, numbers = height // down * (width // across), channels * down * across
    y = xp.empty((batch, count, numbers), dtype)
    v = vector(across, images, y)
    each = blocks(channels * height * width, THREADS * v)
    how = *cut(channels, (height, width), patch_size, v), each
    for first, _, constants in groups(scale, mean, std):
        sizes = (batch * each,), (THREADS,)
        PATCHIFY(y=type_of(y), v=v)(*sizes, images, y, *how, first, *constants, xp=xp)
    return y
