"""A small data set that can be learned, and a small model with everything random switched on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vitkit.backend import ArrayModule, philox
from vitkit.data import ArrayDataset
from vitkit.models import ViT


@pytest.fixture
def make_data() -> Callable[..., ArrayDataset]:
    """Return a function that makes labelled images, brighter the higher their class."""

    def make(count: int = 26, classes: int = 4) -> ArrayDataset:
        rng = philox(0, "images of a test")
        labels = np.arange(count) % classes
        noise = rng.integers(0, 5, (count, 1, 8, 8))
        images = (labels[:, None, None, None] * 3 + noise).astype(np.uint8)
        names = [f"class {k}" for k in range(classes)]
        return ArrayDataset(images, labels, classes=names, scale=16.0)

    return make


@pytest.fixture
def make_model(xp: ArrayModule) -> Callable[..., ViT]:
    """Return a function that makes a ViT of two blocks of width 16 for these images."""

    def make(**options: Any) -> ViT:
        sizes = {"image_size": 8, "in_channels": 1, "num_classes": 4, "dim": 16, "depth": 2}
        sizes |= {"num_heads": 2, "mlp_dim": 32, "seed": 1, "xp": xp}
        return ViT("Ti/4", **{**sizes, **options})

    return make
