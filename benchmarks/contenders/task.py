"""What everyone computes: the models, the images, the optimizer's settings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

LEARNING_RATE, BETAS, EPSILON, WEIGHT_DECAY = 1e-3, (0.9, 0.999), 1e-8, 0.05
MAX_GRAD_NORM = 1.0
LAYER_NORM_EPSILON = 1e-6


@dataclass(frozen=True)
class Configuration:
    """A model and how many images it sees at once.

    Attributes
    ----------
    repeats : int
        How often a contender computes in its turn, so that a turn takes about a second.
    heat : int
        How many contenders, beside those in every heat, are in memory at a time.
    activation : str
        ``"gelu"``, or ``"gelu_tanh"`` for its approximation by a hyperbolic tangent.
    """

    image_size: int
    patch_size: int
    dim: int
    depth: int
    num_heads: int
    mlp_dim: int
    num_classes: int
    batch_size: int
    repeats: int
    heat: int
    activation: str = "gelu"

    @property
    def tokens(self) -> int:
        """The length of the sequence, the class token included."""
        return (self.image_size // self.patch_size) ** 2 + 1


CONFIGURATIONS = {
    "tiny": Configuration(16, 4, 32, 2, 2, 64, 10, 4, repeats=1, heat=20),
    "S": Configuration(32, 4, 192, 6, 3, 768, 10, 128, repeats=3, heat=20),
    "T": Configuration(32, 4, 192, 12, 3, 768, 10, 128, repeats=2, heat=20),
    "B": Configuration(224, 16, 768, 12, 12, 3072, 1000, 8, repeats=2, heat=3),
}
"""For tests, two small models for small images, and ViT-B/16."""


@dataclass(frozen=True)
class Order:
    """What a contender is to compute.

    Attributes
    ----------
    task : str
        ``"train"``, ``"infer"``, or the name of a case of :mod:`contenders.op_cases`.
    configuration : str
        One of :data:`CONFIGURATIONS`.
    weights : str
        The safetensors file to start from; empty where there is no model.
    decayed : tuple of str
        The parameters that weight decay applies to.
    device : str
        ``"cpu"``, ``"cuda"``, or ``"dry"`` for whatever stands in for a GPU where there is none.
    batch_size : int
        How many images, if not as many as the configuration says.
    activation : str
        Which, if not that of the configuration.
    data : str
        The folder that :func:`write_data` wrote images and labels to; empty where they are drawn.
    """

    task: str
    configuration: str
    weights: str = ""
    decayed: tuple[str, ...] = ()
    device: str = "cpu"
    batch_size: int = 0
    activation: str = ""
    data: str = ""

    @property
    def sizes(self) -> Configuration:
        """The configuration itself, with what this order changes of it."""
        c = CONFIGURATIONS[self.configuration]
        return replace(
            c,
            batch_size=self.batch_size or c.batch_size,
            activation=self.activation or c.activation,
        )


def images_and_labels(c: Configuration) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 images, as if normalised already, and int64 labels: the same for everyone."""
    rng = np.random.default_rng(1)
    shape = (c.batch_size, 3, c.image_size, c.image_size)
    return rng.standard_normal(shape, np.float32), rng.integers(0, c.num_classes, c.batch_size)


def write_data(c: Configuration, folder: Path) -> None:
    """Write images and labels for all batches up to that of a configuration."""
    for name, array in zip(("images", "labels"), images_and_labels(c), strict=True):
        np.save(folder / f"{name}.npy", array)


def read_data(order: Order) -> tuple[np.ndarray, np.ndarray]:
    """Return the first images and labels of those written, as many as an order wants."""
    count = order.sizes.batch_size
    images, labels = (
        np.load(Path(order.data) / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        for name in ("images", "labels")
    )
    return np.array(images[:count]), np.array(labels[:count])
