"""A small run, and plugins that a test brings along."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from vitkit.backend import philox
from vitkit.config.load import load as load_config
from vitkit.config.run import RunConfig
from vitkit.plugins import Registries, load, registries, unload

SETTINGS = """
[model]
variant = "Ti/4"
dim = 16
depth = 2
num_heads = 2
mlp_dim = 32
dropout = 0.1
drop_path = 0.2

[data]
name = "npz"
val_fraction = 0.25
augment = ["crop(padding=1)"]

[train]
epochs = 2
batch_size = 4
grad_accum = 2
lr = 0.01
ema_decay = 0.9
log_every = 2
"""  # 36 images to train on, 27 after validation's: 7 batches, the last of 3; 4 steps an epoch


@pytest.fixture
def configure(tmp_path: Path) -> Callable[..., RunConfig]:
    """Return a function that gives the configuration of a small run, with overrides."""
    rng = philox(0, "images of a run")
    labels = {"train": np.arange(36) % 3, "test": np.arange(9) % 3}
    arrays = {}
    for part, y in labels.items():
        noise = rng.integers(0, 60, (len(y), 8, 8, 1))
        arrays[f"x_{part}"] = (y[:, None, None, None] * 80 + noise).astype(np.uint8)
        arrays[f"y_{part}"] = y
    np.savez(tmp_path / "images.npz", **arrays)
    (tmp_path / "run.toml").write_text(SETTINGS)

    def configure(*overrides: str, file: Path | None = None) -> RunConfig:
        place = {"data.path": str(tmp_path / "images.npz")}
        return load_config([file or tmp_path / "run.toml"], overrides, place, environ={})

    return configure


@pytest.fixture
def with_plugin() -> Iterator[Callable[[object], Registries]]:
    """Return a function that loads a plugin, until the test ends, and returns what is known."""
    loaded: list[str] = []

    def with_plugin(plugin: object) -> Registries:
        loaded.append(load(plugin).name)
        return registries()

    yield with_plugin
    for name in loaded:
        unload(name)
