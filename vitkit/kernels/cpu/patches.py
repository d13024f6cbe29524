"""Patches moved line by line, by all threads; the meaning is in :mod:`vitkit.ops.patches`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from vitkit.backend import Array, ArrayModule
from vitkit.kernels.cpu._arrays import plain, served
from vitkit.kernels.cpu._compile import parallel, serial
from vitkit.kernels.cpu._memory import empty
from vitkit.kernels.cpu._rows import copy
from vitkit.kernels.cpu._threads import threads
from vitkit.ops.patches import Size, patchify, unpatchify


@serial
def _move(images: np.ndarray, patches: np.ndarray, b: int, r: int, back: bool) -> None:
    """Copy row ``r`` of the patches of image ``b`` from its lines, or back."""
    columns, channels, down, across = patches.shape[2:]
    for c in range(channels):
        for d in range(down):
            line = images[b, c, r, d]
            for j in range(columns):
                patch, part = patches[b, r, j, c, d], line[j * across : (j + 1) * across]
                if back:
                    copy(patch, part)
                else:
                    copy(part, patch)


@parallel
def _move_all(images: np.ndarray, patches: np.ndarray, back: bool, parts: int) -> None:
    """Move images (B, C, rows, down, W) to patches (B, rows, columns, C, down, across), or back."""
    rows = images.shape[2]
    count = len(images) * rows
    for t in prange(parts):
        for r in range(count * t // parts, count * (t + 1) // parts):
            _move(images, patches, r // rows, r % rows, back)


@patchify.kernel("numpy")
def patchify_cpu(images: Array, patch_size: Size, *, xp: ArrayModule) -> Any:
    """Replace :func:`vitkit.ops.patchify` for float32 images that the patch divides."""
    if not served(images) or images.ndim != 4 or not _divides(images.shape[2:], patch_size):
        return NotImplemented
    batch, channels, height, width = images.shape
    down, across = patch_size
    rows, columns = height // down, width // across
    patches = empty((batch, rows * columns, channels * down * across))
    _move_all(
        plain(images).reshape(batch, channels, rows, down, width),
        patches.reshape(batch, rows, columns, channels, down, across),
        False,
        threads(),
    )
    return patches


@unpatchify.kernel("numpy")
def unpatchify_cpu(patches: Array, image_size: Size, patch_size: Size, *, xp: ArrayModule) -> Any:
    """Replace :func:`vitkit.ops.unpatchify` for float32 images that the patch divides."""
    if not served(patches) or patches.ndim != 3 or not _divides(image_size, patch_size):
        return NotImplemented
    (height, width), (down, across) = image_size, patch_size
    (batch, count, numbers), rows, columns = patches.shape, height // down, width // across
    channels = numbers // (down * across)
    if count != rows * columns or numbers != channels * down * across:
        return NotImplemented
    images = empty((batch, channels, height, width))
    _move_all(
        images.reshape(batch, channels, rows, down, width),
        plain(patches).reshape(batch, rows, columns, channels, down, across),
        True,
        threads(),
    )
    return images


def _divides(image_size: tuple[int, ...], patch_size: Size) -> bool:
    """Whether an image is made of whole patches."""
    return all(
        patch > 0 and size % patch == 0 for size, patch in zip(image_size, patch_size, strict=True)
    )
