"""From a backend's name to its array module, and the few things that differ between them.

Everything else in vitkit computes with an array module ``xp`` and does not know which it is.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from vitkit.backend.cuda import cuda_status
from vitkit.backend.graph import empty_pools, record_on_gpu
from vitkit.backend.types import Array, ArrayModule
from vitkit.backend.upload import PinnedUpload
from vitkit.errors import BackendError, suggestion

NAMES = ("auto", "cupy", "numpy")
"""What ``backend=`` may be; ``"auto"`` is CuPy where it works."""
ALIASES = {"cpu": "numpy", "cuda": "cupy", "gpu": "cupy"}
"""What people write instead, for the hint in the error."""


def _nothing() -> None:
    """NumPy computes before it returns."""


class Recording(Protocol):
    """Work that was recorded as one graph."""

    def replay(self) -> None:
        """Ask the device to do all of it again, after what it has been asked before."""


Recorder = Callable[[Callable[[], Any]], tuple[Recording, Any]]


@dataclass(frozen=True)
class Backend:
    """What vitkit must know about an array module beyond its NumPy-like functions.

    Attributes
    ----------
    name : str
        ``xp.__name__`` of the array module; also the key kernels are registered under.
    on_host : bool
        Whether reading an array's values costs nothing.
    to_numpy : callable
        The explicit copy to a ``numpy.ndarray``.
    synchronize : callable
        Wait until everything asked of the device has happened.
    special : str or module
        Where ``erf`` is: a module, or the name of one to import at first use.
    record : callable, optional
        What records work as one graph, as :func:`record` describes it.
    uploader : callable, optional
        Given an array, returns what writes host arrays to it while the device computes.
    release : callable
        Gives memory that is kept for later back to the device.
    free : callable, optional
        Returns how many bytes of the device's memory are free, and how many there are.
    """

    name: str
    on_host: bool
    to_numpy: Callable[[Array], np.ndarray]
    synchronize: Callable[[], None]
    special: str | ModuleType
    record: Recorder | None = None
    uploader: Callable[[Array], Callable[[np.ndarray], None]] | None = None
    release: Callable[[], None] = _nothing
    free: Callable[[], tuple[int, int]] | None = None


def _cupy_to_numpy(array: Array) -> np.ndarray:
    return np.asarray(array.get())


def _cupy_release() -> None:
    cupy = sys.modules["cupy"]
    empty_pools()
    cupy.get_default_memory_pool().free_all_blocks()
    cupy.get_default_pinned_memory_pool().free_all_blocks()


def _cupy_free() -> tuple[int, int]:
    free, total = sys.modules["cupy"].cuda.runtime.memGetInfo()
    return int(free), int(total)


def _cupy_synchronize() -> None:
    sys.modules["cupy"].cuda.get_current_stream().synchronize()


_BACKENDS = {
    "numpy": Backend("numpy", True, np.asarray, _nothing, "scipy.special"),
    "cupy": Backend(
        "cupy",
        False,
        _cupy_to_numpy,
        _cupy_synchronize,
        "cupyx.scipy.special",
        record_on_gpu,
        PinnedUpload,
        _cupy_release,
        _cupy_free,
    ),
}


def register_backend(backend: Backend) -> None:
    """Make an array module known under its ``__name__``, as a test double does."""
    _BACKENDS[backend.name] = backend


def known_backends() -> list[str]:
    """Return the names of the array modules that there can be here, sorted."""
    return sorted({*_BACKENDS, *NAMES} - {"auto"})


def backend_of(xp: ArrayModule) -> Backend:
    """Return what is known about the array module ``xp``.

    Raises
    ------
    BackendError
        If ``xp`` is not an array module that vitkit knows.
    """
    found = _BACKENDS.get(getattr(xp, "__name__", ""))
    if found is None:
        raise BackendError(
            f"xp must be an array module ({' or '.join(sorted(_BACKENDS))}), such as what "
            f"cupy.get_array_module returns; got {xp!r}."
        )
    return found


def array_module(backend: str | ArrayModule = "auto") -> ArrayModule:
    """Return the array module for ``"numpy"``, ``"cupy"`` or ``"auto"``, or the module given.

    ``"auto"`` is CuPy where a smoke test shows that it works, and NumPy elsewhere.

    Raises
    ------
    BackendError
        If the name is unknown, or if CuPy is asked for and cannot compute here.
    """
    if not isinstance(backend, str):
        backend_of(backend)
        return backend if backend.__name__ != "cupy" else array_module("cupy")
    if backend == "numpy":
        return np
    if backend not in NAMES:
        meant = ALIASES.get(backend.lower())
        hint = f"; did you mean {meant!r}?" if meant else suggestion(backend, NAMES) or "."
        raise BackendError(f"backend must be 'numpy', 'cupy' or 'auto'; got {backend!r}{hint}")
    status = cuda_status()
    if status.usable:
        return importlib.import_module("cupy")
    if backend == "cupy":
        raise BackendError(
            f"backend='cupy' was asked for, but {status.detail}. Cure: {status.cure}. "
            "Or use backend='numpy' to run on the CPU."
        )
    return np


def to_numpy(array: Array) -> np.ndarray:
    """Copy an array of any known backend to the host; a ``numpy.ndarray`` is returned as it is."""
    if isinstance(array, (np.ndarray, np.generic)):
        return np.asarray(array)
    module = type(array).__module__.partition(".")[0]
    for backend in _BACKENDS.values():
        if not backend.on_host and module == backend.name.partition(".")[0]:
            return backend.to_numpy(array)
    return np.asarray(array)


def synchronize(xp: ArrayModule) -> None:
    """Wait for the device, as a timer must before it reads the clock."""
    backend_of(xp).synchronize()


def can_record(xp: ArrayModule) -> bool:
    """Return whether work on the arrays of ``xp`` can be recorded as one graph."""
    return backend_of(xp).record is not None


def record(function: Callable[[], Any], *, xp: ArrayModule) -> tuple[Recording, Any]:
    """Call a function and record what it asks of the device, to be asked again as one.

    A replay does the same to the same memory: arrays that the function reads must be written
    where they are, and what it returned is written anew. Nothing in the function may wait for the
    device or bring arrays to it.

    Parameters
    ----------
    function : callable
        Takes nothing. It should have been called before, so that all is compiled.
    xp : module
        The array module.

    Returns
    -------
    recording : Recording
        ``recording.replay()`` does it again.
    result
        What the function returned.

    Raises
    ------
    BackendError
        If there is nothing that records for ``xp``.
    """
    recorder = backend_of(xp).record
    if recorder is None:
        raise BackendError(f"Work on arrays of {xp.__name__} cannot be recorded as a graph.")
    return recorder(function)


def release_memory(xp: ArrayModule) -> None:
    """Give memory that the array module keeps for later back to the device."""
    backend_of(xp).release()


def memory_left(xp: ArrayModule) -> tuple[int, int] | None:
    """Return how many bytes of the device are free and how many there are, where it is known."""
    free = backend_of(xp).free
    return None if free is None else free()


def uploader(target: Array, *, xp: ArrayModule) -> Callable[[np.ndarray], None]:
    """Return what writes a host array of its shape to ``target``, again and again."""
    make = backend_of(xp).uploader
    return make(target) if make is not None else lambda host: _write(target, host, xp)


def _write(target: Array, host: np.ndarray, xp: ArrayModule) -> None:
    target[...] = xp.asarray(host)


def erf(x: Array, *, xp: ArrayModule) -> Array:
    """Return the error function of ``x``, from SciPy on the host and CuPy's SciPy on a GPU."""
    special: Any = backend_of(xp).special
    if isinstance(special, str):  # SciPy takes longer to import than the rest of vitkit
        special = importlib.import_module(special)
    return special.erf(x)
