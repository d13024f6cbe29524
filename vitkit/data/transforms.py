"""Augmentations: pure functions of an image and a generator, uint8 in and out.

The generator comes from (seed, epoch, sample), so what happens to an image does not depend on
the order of loading or on how many workers load. Cropping and flipping are the augmentation of
Krizhevsky (2009) as He et al. (2015, arXiv 1512.03385, section 4.2) use it for CIFAR.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vitkit.errors import ConfigError
from vitkit.validate import integer, noted, number

Transform = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""``(image uint8 (C, H, W), rng) -> image`` of the same shape and dtype."""


@dataclass(frozen=True)
class RandomCrop:
    """Shift the image by up to ``padding`` pixels each way, with zeros where nothing was.

    This equals padding all sides with zeros and cropping the original size at a random place.

    Parameters
    ----------
    padding : int
        The largest shift, at least 1.
    """

    padding: int

    def __post_init__(self) -> None:
        integer("RandomCrop: padding", self.padding, at_least=1)

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the shifted image, uint8 (C, H, W)."""
        places = 2 * self.padding + 1
        dy, dx = (int(u * places) - self.padding for u in rng.random(2).tolist())
        _, height, width = image.shape
        shifted = np.zeros_like(image)
        to_y, to_x = slice(max(-dy, 0), height - dy), slice(max(-dx, 0), width - dx)
        from_y, from_x = slice(max(dy, 0), height + dy), slice(max(dx, 0), width + dx)
        if abs(dy) < height and abs(dx) < width:
            shifted[:, to_y, to_x] = image[:, from_y, from_x]
        return shifted


@dataclass(frozen=True)
class HorizontalFlip:
    """Mirror the image left to right with probability ``p``.

    Parameters
    ----------
    p : float, default 0.5
        From 0 to 1.
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        number("HorizontalFlip: p", self.p, at_least=0, at_most=1)

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the image or its mirror image, uint8 (C, H, W)."""
        return image[:, :, ::-1] if rng.random() < self.p else image


@dataclass(frozen=True)
class RandomAffine:
    """Turn, shift and scale about the centre, with bilinear interpolation and zeros outside.

    Parameters
    ----------
    degrees : float, default 0.0
        The angle is uniform in ``-degrees`` to ``degrees``.
    translate : float, default 0.0
        The shift is uniform in ``-translate`` to ``translate``, in parts of each side.
    scale : tuple of float, default (1.0, 1.0)
        The factor is uniform between the two; above 1 enlarges.
    """

    degrees: float = 0.0
    translate: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        problems: list[str] = []
        with noted(problems):
            number("RandomAffine: degrees", self.degrees, at_least=0, at_most=180)
        with noted(problems):
            number("RandomAffine: translate", self.translate, at_least=0, at_most=1)
        with noted(problems):
            self._check_scale()
        if problems:
            raise ConfigError(problems)

    def _check_scale(self) -> None:
        if not isinstance(self.scale, (tuple, list)) or len(self.scale) != 2:
            raise ConfigError(
                "RandomAffine: scale must be two factors, the smaller first, such as (0.9, 1.1); "
                f"got {self.scale!r}."
            )
        low = number("RandomAffine: scale[0]", self.scale[0], above=0)
        number("RandomAffine: scale[1], the larger factor,", self.scale[1], at_least=low)

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the moved image, uint8 (C, H, W)."""
        turn, down, right, size = rng.random(4).tolist()
        _, height, width = image.shape
        angle = math.radians(self.degrees) * (2 * turn - 1)
        low, high = self.scale
        return affine(
            image,
            angle=angle,
            shift=(
                self.translate * height * (2 * down - 1),
                self.translate * width * (2 * right - 1),
            ),
            scale=low + (high - low) * size,
        )


def affine(
    image: np.ndarray, *, angle: float, shift: tuple[float, float], scale: float
) -> np.ndarray:
    """Turn by ``angle``, scale, then shift, about the image's centre.

    Each pixel of the result is looked up where it came from, and interpolated bilinearly between
    four neighbours.

    Parameters
    ----------
    image : numpy.ndarray, uint8 (C, H, W)
        What to move.
    angle : float
        In radians, counter-clockwise as seen.
    shift : tuple of float
        Pixels down and to the right.
    scale : float
        Above 1 enlarges.

    Returns
    -------
    numpy.ndarray, uint8 (C, H, W)
        The moved image, zero where nothing came from inside.
    """
    channels, height, width = image.shape
    ys, xs = _centred(height), _centred(width)
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    ys_moved, xs_moved = ys - np.float32(shift[0]), xs - np.float32(shift[1])
    # Where each pixel came from, in pixels of the original; its border is two zeros wide at the
    # end because the neighbour below a coordinate of H is at H + 1.
    y = np.add.outer(ys_moved * cos + (height - 1) / 2, xs_moved * sin, dtype=np.float32)
    x = np.subtract.outer(-ys_moved * sin + (width - 1) / 2, -xs_moved * cos, dtype=np.float32)
    y, x = y.clip(-1, height).ravel(), x.clip(-1, width).ravel()
    top, left = np.floor(y), np.floor(x)
    y -= top
    x -= left
    stride = width + 3
    padded = np.zeros((channels, height + 3, stride), np.float32)
    padded[:, 1 : height + 1, 1 : width + 1] = image
    corner = (top * stride + left + (stride + 1)).astype(np.intp)
    pixels = padded.reshape(channels, -1)
    upper = _between(pixels[:, corner], pixels[:, corner + 1], x)
    lower = _between(pixels[:, corner + stride], pixels[:, corner + (stride + 1)], x)
    moved = _between(upper, lower, y)
    moved += 0.5  # so that the conversion rounds
    return moved.astype(np.uint8).reshape(image.shape)


def _between(a: np.ndarray, b: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Return a + part * (b - a), reusing the memory of ``b``."""
    b -= a
    b *= part
    b += a
    return b


@functools.lru_cache(maxsize=16)
def _centred(length: int) -> np.ndarray:
    """Return the coordinates of a side's pixels, zero in the middle."""
    coordinates = np.arange(length, dtype=np.float32) - np.float32((length - 1) / 2)
    coordinates.flags.writeable = False
    return coordinates
