"""The Vision Transformer written from scratch: every layer with its own forward and backward."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vitkit import registry as _registry
from vitkit._version import __version__ as __version__

if TYPE_CHECKING:
    from vitkit import data as data
    from vitkit import nn as nn
    from vitkit import ops as ops
    from vitkit import optim as optim
    from vitkit import plugins as plugins
    from vitkit.errors import BackendError as BackendError
    from vitkit.errors import CheckpointError as CheckpointError
    from vitkit.errors import ConfigError as ConfigError
    from vitkit.errors import DataError as DataError
    from vitkit.errors import VitkitError as VitkitError
    from vitkit.models.config import ViTConfig as ViTConfig
    from vitkit.models.vit import ViT as ViT
    from vitkit.plugins.hookspecs import hookimpl as hookimpl
    from vitkit.registry import PluginError as PluginError
    from vitkit.train.trainer import Trainer as Trainer

# Names are imported when first used, so that `vitkit --help` does not wait for NumPy.
_HOMES = {
    "ViT": "vitkit.models.vit",
    "ViTConfig": "vitkit.models.config",
    "Trainer": "vitkit.train.trainer",
    "VitkitError": "vitkit.errors",
    "BackendError": "vitkit.errors",
    "CheckpointError": "vitkit.errors",
    "ConfigError": "vitkit.errors",
    "DataError": "vitkit.errors",
    "PluginError": "vitkit.registry",
    "hookimpl": "vitkit.plugins.hookspecs",
}
_SUBPACKAGES = ("data", "nn", "ops", "optim", "plugins", "testing")

__all__ = [  # noqa: RUF022 (what a newcomer needs comes first)
    "ViT",
    "ViTConfig",
    "Trainer",
    "ops",
    "nn",
    "optim",
    "data",
    "plugins",
    "hookimpl",
    "testing",
    "VitkitError",
    "BackendError",
    "ConfigError",
    "DataError",
    "CheckpointError",
    "PluginError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    elif name in _SUBPACKAGES:
        value = importlib.import_module(f"vitkit.{name}")
    else:
        raise AttributeError(f"module 'vitkit' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


def _load_plugins() -> None:
    from importlib.metadata import entry_points

    if entry_points(group="vitkit"):
        importlib.import_module("vitkit.plugins").active()


# A model may be asked for an activation that an installed plugin has, or run on a kernel of its,
# before anyone has spoken of plugins: ViT(activation="mish").
_registry.on_missing_name(_load_plugins)
