"""Patches moved on a GPU; the meaning is in :mod:`vitkit.ops.patches`."""

from __future__ import annotations

from typing import Any

from vitkit.backend import Array, ArrayModule
from vitkit.kernels.cuda._arrays import WIDTH, plain, served, vector
from vitkit.kernels.cuda._kernel import Family, blocks
from vitkit.ops.patches import Size, patchify, unpatchify

THREADS = 256  # of a block
MOST = 2**31 - 1  # numbers of one image, which kernels count in 32 bits
MOVE = Family("patches.cuh", "move_patches<{v}, {back}>", v=(1, WIDTH), back=(0, 1))


def divides(channels: int, image_size: Size, patch_size: Size) -> bool:
    """Return whether kernels cut an image into patches: whole ones, and not too many numbers."""
    (height, width), (down, across) = image_size, patch_size
    whole = down > 0 and across > 0 and height % down == 0 and width % across == 0
    return whole and 0 < channels * height * width <= MOST


def cut(channels: int, image_size: Size, patch_size: Size, v: int) -> tuple[int, ...]:
    """Return how an image is cut, as kernels that take ``v`` numbers at once are told."""
    (height, width), (down, across) = image_size, patch_size
    return channels, height // down, width // across, down, across // v


@patchify.kernel("cupy")
def patchify_cuda(images: Array, patch_size: Size, *, xp: ArrayModule) -> Any:
    """Replace :func:`vitkit.ops.patchify` for float32 images that the patch divides."""
    if not served(images) or images.ndim != 4:
        return NotImplemented
    batch, channels, *size = images.shape
    if not divides(channels, (size[0], size[1]), patch_size):
        return NotImplemented
    count = size[0] * size[1] // (patch_size[0] * patch_size[1])
    patches = xp.empty((batch, count, channels * patch_size[0] * patch_size[1]), "float32")
    _move(plain(images, xp), patches, channels, (size[0], size[1]), patch_size, False, xp)
    return patches


@unpatchify.kernel("cupy")
def unpatchify_cuda(patches: Array, image_size: Size, patch_size: Size, *, xp: ArrayModule) -> Any:
    """Replace :func:`vitkit.ops.unpatchify` for float32 images that the patch divides."""
    if not served(patches) or patches.ndim != 3:
        return NotImplemented
    (batch, count, numbers), area = patches.shape, patch_size[0] * patch_size[1]
    channels = numbers // area if area > 0 else 0
    if not divides(channels, image_size, patch_size) or numbers != channels * area:
        return NotImplemented
    if count * area != image_size[0] * image_size[1]:
        return NotImplemented
    images = xp.empty((batch, channels, *image_size), "float32")
    _move(plain(patches, xp), images, channels, image_size, patch_size, True, xp)
    return images


def _move(
    given: Array,
    to: Array,
    channels: int,
    image_size: Size,
    patch_size: Size,
    back: bool,
    xp: ArrayModule,
) -> None:
    v = vector(patch_size[1], given, to)
    across = blocks(channels * image_size[0] * image_size[1], THREADS * v)
    sizes = (len(given) * across,), (THREADS,)
    how = cut(channels, image_size, patch_size, v)
    MOVE(v=v, back=int(back))(*sizes, given, to, *how, across, xp=xp)
