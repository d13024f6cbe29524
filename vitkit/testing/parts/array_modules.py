"""The array modules that a plugin must work on, and arrays that notice what is done to them."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from vitkit.backend import Array, ArrayModule, array_module, cuda_status, philox
from vitkit.testing import strict_device
from vitkit.testing.check import Skip

DEVICES = ("strict_device", "cupy")
"""What must agree with NumPy: the stand-in for a GPU, which is always here, and CuPy."""


def device(name: str) -> ArrayModule:
    """Return an array module of :data:`DEVICES`.

    Raises
    ------
    Skip
        If it cannot work here.
    """
    if name == "strict_device":
        return strict_device.xp
    status = cuda_status()
    if not status.usable:
        raise Skip(f"needs a GPU: {status.detail}")
    return array_module("cupy")


def draw(shape: tuple[int, ...], dtype: str = "float64", *, seed: int = 0) -> np.ndarray:
    """Return standard normal numbers on the host, the same for the same seed."""
    return philox(seed, "conformance").standard_normal(shape).astype(dtype)


def frozen(array: np.ndarray) -> np.ndarray:
    """Return a copy that cannot be written to, so that whoever tries is found."""
    copy = np.array(array)
    copy.flags.writeable = False
    return copy


def torch_or_skip() -> Any:
    """Return PyTorch, for twins.

    Raises
    ------
    Skip
        If it is not installed.
    """
    try:
        return importlib.import_module("torch")
    except ImportError:
        raise Skip("PyTorch is not installed, so its twin was not compared") from None


def to(xp: ArrayModule, array: np.ndarray) -> Array:
    """Return a host array as an array of ``xp``."""
    return xp.asarray(array)
