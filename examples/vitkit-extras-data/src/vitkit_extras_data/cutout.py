"""Cutout (DeVries and Taylor, 2017, arXiv:1708.04552)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vitkit.validate import integer


@dataclass(frozen=True)
class Cutout:
    """Cover a square of the image with black, so that a model must not rely on one detail.

    The square's centre is anywhere on the image, so at an edge only a part of it covers.

    Parameters
    ----------
    size : int, default 8
        The square's side in pixels, at least 1.
    """

    size: int = 8

    def __post_init__(self) -> None:
        integer("Cutout: size", self.size, at_least=1)

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return a copy with a square covered, uint8 (C, H, W)."""
        _, height, width = image.shape
        down, right = rng.random(2).tolist()
        top, left = int(down * height) - self.size // 2, int(right * width) - self.size // 2
        rows = slice(max(top, 0), top + self.size)
        columns = slice(max(left, 0), left + self.size)
        covered = image.copy()
        covered[:, rows, columns] = 0
        return covered
