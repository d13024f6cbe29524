"""A small data set that can be learned, and a small model with everything random switched on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitkit import ops
from vitkit.backend import ArrayModule, philox
from vitkit.data import ArrayDataset
from vitkit.models import ViT
from vitkit.train.callbacks import Callback

sys.path.insert(0, str(Path(__file__).parent))
from breaking import Parts


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


@pytest.fixture
def half(make_model: Callable[..., ViT]) -> Callable[..., ViT]:
    """Return a function that makes a model that computes in float16, by references."""

    def make(**options: Any) -> ViT:
        with ops.reference_only():
            model = make_model(precision="float16", **options)
        assert model.precision == "float16"
        return model

    return make


@pytest.fixture
def make_parts(
    tmp_path: Path, make_data: Callable[..., ArrayDataset], make_model: Callable[..., ViT]
) -> Callable[..., Any]:
    """Return a function that makes the parts of a run, with further callbacks."""

    def make(*extra: Callback, folder: str = "run", **options: Any) -> Parts:
        model = make_model(dropout=0.2, drop_path=0.2)
        return Parts(tmp_path / folder, make_data(), model, *extra, **options)

    return make


@pytest.fixture
def whole(make_parts: Callable[..., Any]) -> Path:
    """Return the folder of a run that nothing has disturbed."""
    parts = make_parts(folder="whole")
    parts.fit()
    return Path(parts.folder)
