"""How a model wants its pixels: what training images were divided by and centred on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vitkit.backend import Array
from vitkit.data import Dataset
from vitkit.errors import ConfigError
from vitkit.nn.module import Module
from vitkit.ops import normalize_images
from vitkit.validate import number


@dataclass(frozen=True)
class Preprocess:
    """From uint8 pixels to a model's input.

    Attributes
    ----------
    scale : float
        The largest pixel value.
    mean, std : tuple of float
        One number a channel, of pixels divided by ``scale``.
    """

    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, dataset: Dataset) -> Preprocess:
        """Return the preprocessing that a dataset's own statistics imply."""
        return cls(float(dataset.scale), tuple(dataset.mean), tuple(dataset.std))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocess:
        """Return what ``to_dict`` wrote.

        Raises
        ------
        ConfigError
            If the scale or a standard deviation is no number above 0, or a mean none at all, or
            there is not a mean and a standard deviation for each channel.
        """
        scale = number("preprocess.scale", values["scale"], above=0)
        means, stds = _list(values["mean"]), _list(values["std"])
        mean = tuple(number("preprocess.mean", each) for each in means)
        std = tuple(number("preprocess.std", each, above=0) for each in stds)
        if not mean or len(mean) != len(std):
            raise ConfigError(
                f"preprocess.mean and preprocess.std must have a number for each channel; got "
                f"{len(mean)} and {len(std)}."
            )
        return cls(scale, mean, std)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)

    def __call__(self, images: np.ndarray, model: Module) -> Array:
        """Bring uint8 images (B, C, H, W) to the model's device, normalised, in its dtype."""
        xp, dtype = model.xp, model.groups[0].values.dtype
        return normalize_images(xp.asarray(images), self.scale, self.mean, self.std, dtype, xp=xp)


def _list(value: object) -> list[Any]:
    """Return a list or tuple as a list, and anything else as an empty one."""
    return list(value) if isinstance(value, (list, tuple)) else []
