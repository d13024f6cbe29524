"""Whether this process can use a GPU through CuPy, and if not, why not.

``cupy.is_available()`` answers "is there a device"; it does not notice that cuBLAS or NVRTC are
missing, which then fail at first use. So the answer here comes from a smoke test that exercises
both and copies the result back.
"""

from __future__ import annotations

import errno
import functools
import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

from vitkit.errors import first_line

INSTALL = "pip install 'vitkit[cuda12]' (CUDA 12.x) or 'vitkit[cuda13]' (CUDA 13.x)"
CACHE = "set CUPY_CACHE_DIR to a folder that can be written: CuPy makes one as it is imported"
LIBRARIES = "pip install 'cupy-cuda12x[ctk]' (or 'cupy-cuda13x[ctk]') brings them"
NO_DRIVER, NO_DEVICE = 35, 100  # cudaErrorInsufficientDriver, cudaErrorNoDevice
NO_KERNEL_IMAGE = 209  # cudaErrorNoKernelImageForDevice; the driver's error has the same number
NO_ARCHITECTURE = "invalid value for --gpu-architecture"  # NVRTC's words, in CuPy's exception
OLDEST = {12: 50, 13: 75}
"""The least compute capability, times ten, that each CUDA compiles for."""


@dataclass(frozen=True)
class CudaStatus:
    """What was found out about CuPy on this machine.

    Attributes
    ----------
    usable : bool
        Whether arrays can be computed on a GPU.
    cause : str
        ``"ok"``, ``"cupy missing"``, ``"cupy broken"``, ``"no driver"``, ``"no device"``,
        ``"unsupported GPU"`` or ``"libraries missing"``.
    detail : str
        The cause in one sentence, with versions.
    cure : str
        What to do about it.
    """

    usable: bool
    cause: str
    detail: str
    cure: str


@functools.cache
def cuda_status() -> CudaStatus:
    """Find out by a smoke test whether CuPy can compute; never raises, costs about 0.3 s once."""
    if importlib.util.find_spec("cupy") is None:
        return CudaStatus(False, "cupy missing", "CuPy is not installed", INSTALL)
    try:
        import cupy
    except Exception as error:
        cure = CACHE if _is_of_the_cache(error) else INSTALL
        return CudaStatus(False, "cupy broken", f"CuPy does not import ({first_line(error)})", cure)
    return _device_status(cupy) or _smoke_test(cupy)


@functools.cache
def compute_capability() -> int:
    """Return that of the current GPU, times ten: 90 for an H200; 0 where none works."""
    if not cuda_status().usable:
        return 0
    return int(importlib.import_module("cupy").cuda.Device().compute_capability)


def _device_status(cupy: Any) -> CudaStatus | None:
    """Return why there is no device, or None when there is one."""
    runtime = cupy.cuda.runtime
    try:
        count = runtime.getDeviceCount()
    except Exception as error:
        status = getattr(error, "status", None)
        if status == NO_DRIVER:
            major, minor = divmod(runtime.runtimeGetVersion() // 10, 100)
            return CudaStatus(
                False,
                "no driver",
                f"there is no NVIDIA driver, or one too old for CUDA {major}.{minor} "
                f"(the driver reports {runtime.driverGetVersion() or 'nothing'})",
                "install or update the NVIDIA driver",
            )
        if status != NO_DEVICE:
            return CudaStatus(
                False, "no device", f"CUDA does not start ({first_line(error)})", "see nvidia-smi"
            )
        count = 0
    if count == 0:
        return CudaStatus(
            False,
            "no device",
            "no CUDA device is visible",
            "check nvidia-smi and the variable CUDA_VISIBLE_DEVICES",
        )
    return None


def _smoke_test(cupy: Any) -> CudaStatus:
    """Multiply two small matrices: NVRTC, cuBLAS and a copy to the host."""
    try:
        ones = cupy.ones((2, 2), cupy.float32)
        total = float((ones @ ones).sum())
        if total != 8.0:
            raise ArithmeticError(f"2x2 ones @ 2x2 ones sums to {total}, not 8")
    except Exception as error:
        if _is_of_the_cache(error):
            detail = f"CuPy cannot keep what it compiles ({first_line(error)})"
            return CudaStatus(False, "cupy broken", detail, CACHE)
        if _is_of_the_gpu(error):
            return _unsupported(cupy.cuda.runtime, error)
        return CudaStatus(
            False,
            "libraries missing",
            f"a GPU was found but the CUDA libraries do not work ({first_line(error)})",
            LIBRARIES,
        )
    runtime = cupy.cuda.runtime
    name = runtime.getDeviceProperties(0)["name"].decode()
    count, version = runtime.getDeviceCount(), runtime.runtimeGetVersion()
    return CudaStatus(True, "ok", f"{count} device(s), {name}, CUDA runtime {version}", "")


def _is_of_the_cache(error: Exception) -> bool:
    """Return whether CuPy's folder refuses what is written; of a missing library none is to blame.

    A library that cannot be loaded is an OSError without a number.
    """
    return isinstance(error, OSError) and error.errno not in (None, errno.ENOENT)


def _is_of_the_gpu(error: Exception) -> bool:
    """Return whether an error says that nothing was compiled, or can be, for this GPU."""
    return getattr(error, "status", None) == NO_KERNEL_IMAGE or NO_ARCHITECTURE in str(error)


def _unsupported(runtime: Any, error: Exception) -> CudaStatus:
    """Return that CUDA is too new for an old GPU, or too old for a new one, and what would do."""
    found = runtime.getDeviceProperties(runtime.getDevice())
    have = 10 * found["major"] + found["minor"]
    major, minor = divmod(runtime.runtimeGetVersion() // 10, 100)
    if have < OLDEST[12]:
        cure = (
            f"CUDA 12 and 13 run on compute capability {OLDEST[12] / 10} and newer; "
            "use backend='numpy', or another GPU"
        )
    elif have < OLDEST.get(major, OLDEST[max(OLDEST)]):
        cure = (
            f"this GPU is too old for CUDA {major}: pip uninstall cupy-cuda{major}x, then "
            "pip install 'cupy-cuda12x[ctk]'"
        )
    else:
        cure = (
            f"this GPU is too new for CUDA {major}.{minor}: update the driver, then "
            "pip install --upgrade 'cupy-cuda13x[ctk]' (without another CuPy beside it)"
        )
    return CudaStatus(
        False,
        "unsupported GPU",
        f"the GPU ({found['name'].decode()}, compute capability {have / 10}) is none that "
        f"CUDA {major}.{minor} runs on ({first_line(error)})",
        cure,
    )
