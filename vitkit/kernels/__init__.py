"""How operations are fast: replacements for the references of ``vitkit.ops``, one folder a device.

File names mirror ``vitkit.ops``. A kernel has the signature of its reference and may return
``NotImplemented`` for what it cannot serve.
"""

from __future__ import annotations

import functools
import importlib
import logging
import pkgutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from vitkit.backend import Array, ArrayModule, compute_capability
from vitkit.backend.precision import PRECISIONS
from vitkit.ops._op import SWITCHED_OFF, kernels_off
from vitkit.registry import discover

OLDEST_GPU = 70  # its compute capability, times ten
FOLDERS = {"numpy": "cpu", "cupy": "cuda"}
FOR_GPUS = ("tf32", "float16")
"""The precisions that no CPU kernel serves."""
LOGGER = logging.getLogger("vitkit")
Rounding = Callable[[Sequence[Array], str, ArrayModule], AbstractContextManager[None]]
ROUNDED: dict[str, Rounding] = {}
"""What does :func:`rounded_once` for the arrays of an array module, by its name."""


def load(xp: ArrayModule) -> None:
    """Register the kernels that serve the array module ``xp``; a model does this when placed.

    Those of installed plugins too, which the operations ask first. Where the kernels cannot be
    had, one line says why, and the references run.
    """
    if not SWITCHED_OFF:
        _load_folder(xp.__name__)
    discover()


def why_none(xp: ArrayModule) -> str:
    """Return why no kernel of vitkit's serves the array module ``xp``, or nothing."""
    return "VITKIT_KERNELS=off" if SWITCHED_OFF else _load_folder(xp.__name__)


def served_precision(wanted: str, xp: ArrayModule, dtype: Any) -> str:
    """Return the precision that a model will have, of the one that is wanted.

    Raises
    ------
    ValueError
        If there is no such precision, or not for that dtype.
    """
    if wanted not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}; got {wanted!r}.")
    if wanted == "float32":
        return wanted
    if np.dtype(dtype) != np.float32:
        raise ValueError(f"precision={wanted!r} needs dtype='float32'; got {np.dtype(dtype)}.")
    if kernels_off():
        return wanted
    reason = _why_not(wanted, xp)
    if reason:
        LOGGER.warning("precision=%r is computed in float32 here: %s.", wanted, reason)
        return "float32"
    return wanted


def serves_narrow_residual(xp: ArrayModule) -> bool:
    """Return whether blocks in bfloat16 pass each other bfloat16, or say once why not."""
    if kernels_off() or FOLDERS.get(xp.__name__) == "cuda":
        return True
    _say_it_stays_wide()
    return False


@functools.cache
def _say_it_stays_wide() -> None:
    """Log the line, once: a run places its model again to evaluate it."""
    LOGGER.warning(
        "residual_in_fp32=False is for GPUs: what flows from block to block stays float32 here."
    )


def rounded_once(
    arrays: Sequence[Array], precision: str, *, xp: ArrayModule
) -> AbstractContextManager[None]:
    """Have products round arrays, or what is a part of one, once for all that is done in a block.

    They must not change meanwhile. Without it a weight is rounded for each product that reads it,
    by a kernel of its own, which a small model on a GPU spends much of its time with.

    Parameters
    ----------
    arrays : sequence of array, each of shape (size,)
        The buffers that weights are views of.
    precision : str
        What products round them to.
    xp : module
        The array module.
    """
    if kernels_off() or xp.__name__ not in ROUNDED:
        return nullcontext()
    return ROUNDED[xp.__name__](arrays, precision, xp)


def _why_not(precision: str, xp: ArrayModule) -> str:
    """Return why a precision would be no faster than float32, or nothing."""
    if xp.__name__ == "numpy" and precision in FOR_GPUS:
        return "it is for GPUs"
    reason = why_none(xp)
    if reason or xp.__name__ != "numpy":
        return reason or _why_not_on_gpus(precision, xp)
    return str(importlib.import_module(f"{__name__}.cpu._processor").why_no_bfloat16())


def _why_not_on_gpus(precision: str, xp: ArrayModule) -> str:
    """Return why the kernels for GPUs do not serve a precision, or nothing."""
    return str(importlib.import_module(f"{__name__}.cuda._device").why_not(precision, xp))


def import_cuda() -> str:
    """Register the kernels for CuPy, which needs no GPU; return why that failed, or nothing."""
    return _load_folder("cupy")


@functools.cache
def _load_folder(backend: str) -> str:
    """Import every module of the folder for an array module; return why that failed, or nothing."""
    if backend not in FOLDERS:
        return f"there are none for {backend}"
    name = f"{__name__}.{FOLDERS[backend]}"
    try:
        if backend == "cupy" and 0 < compute_capability() < OLDEST_GPU:
            raise RuntimeError(f"they need a GPU of compute capability {OLDEST_GPU / 10} or newer")
        package = importlib.import_module(name)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{name}.{module.name}")
    except (ImportError, OSError, RuntimeError) as error:  # the last where nothing can be kept
        reason = str(error).partition("\n")[0]
        LOGGER.warning(
            "The %s kernels cannot be used (%s): operations run by their references, slower.",
            backend,
            reason,
        )
        return reason
    return ""
