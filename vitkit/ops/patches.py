r"""Images to patches and back (arXiv 2010.11929, section 3.1).

An image of height :math:`H` and width :math:`W` becomes :math:`N = HW / P^2` rows of
:math:`C P^2` numbers, patches in reading order, each flattened channel first, then down, then
across: the order in which a convolution's weight ``(D, C, P, P)`` is stored, so that weight,
flattened, is the patch projection :math:`E` of Eq. 1. :func:`patchify` only moves numbers, so its
gradient is its inverse :func:`unpatchify`.
"""

from __future__ import annotations

from vitkit.backend import Array, ArrayModule
from vitkit.ops._op import Op

Size = tuple[int, int]
"""Height and width."""


def as_size(size: int | Size) -> Size:
    """Return height and width, a single number being both."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


@Op
def patchify(images: Array, patch_size: Size, *, xp: ArrayModule) -> Array:
    """Cut images into flattened patches.

    Parameters
    ----------
    images : array, shape (B, C, H, W)
        The images; the patch must divide them.
    patch_size : tuple of 2 int
        Height and width of a patch, in pixels.
    xp : module
        The array module.

    Returns
    -------
    array, shape (B, N, C * P * P)
        The patches, in reading order.
    """
    batch, channels, height, width = images.shape
    down, across = patch_size
    rows, columns = height // down, width // across
    patches = images.reshape(batch, channels, rows, down, columns, across)
    patches = patches.transpose(0, 2, 4, 1, 3, 5)
    return patches.reshape(batch, rows * columns, channels * down * across)


@Op
def unpatchify(patches: Array, image_size: Size, patch_size: Size, *, xp: ArrayModule) -> Array:
    """Put patches back where :func:`patchify` took them from; also its gradient.

    Parameters
    ----------
    patches : array, shape (B, N, C * P * P)
        The patches, in reading order.
    image_size, patch_size : tuple of 2 int
        Height and width, in pixels.
    xp : module
        The array module.

    Returns
    -------
    array, shape (B, C, H, W)
        The images.
    """
    (height, width), (down, across) = image_size, patch_size
    batch, rows, columns = patches.shape[0], height // down, width // across
    channels = patches.shape[2] // (down * across)
    images = patches.reshape(batch, rows, columns, channels, down, across)
    return images.transpose(0, 3, 1, 4, 2, 5).reshape(batch, channels, height, width)
