"""How operations are fast: replacements for the references of ``vitkit.ops``, one folder a device.

File names mirror ``vitkit.ops``. A kernel has the signature of its reference and may return
``NotImplemented`` for what it cannot serve.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil

from vitkit.backend import ArrayModule
from vitkit.registry import discover

FOLDERS = {"numpy": "cpu", "cupy": "cuda"}


def load(xp: ArrayModule) -> None:
    """Register the kernels that serve the array module ``xp``; a model does this when placed.

    Those of installed plugins too, which the operations ask first.
    """
    folder = FOLDERS.get(xp.__name__)
    if folder is not None:
        _load_folder(f"{__name__}.{folder}")
    discover()


@functools.cache
def _load_folder(name: str) -> None:
    package = importlib.import_module(name)
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{name}.{module.name}")
