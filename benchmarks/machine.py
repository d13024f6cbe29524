"""What a result was measured on: the processor, its memory, the versions."""

from __future__ import annotations

import math
import os
import platform
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = "vitkit numpy scipy numba llvmlite torch jax jaxlib".split()
FOR_GPUS = (
    "cupy-cuda12x cupy-cuda13x ml_dtypes triton nvidia-cudnn-frontend nvidia-cudnn-cu12 "
    "nvidia-cudnn-cu13 nvidia-cublas-cu12 nvidia-cublas"
).split()
FLAGS = "avx2 fma avx512f avx512_vnni avx512_bf16 avx512_fp16 amx_tile amx_bf16 asimd bf16".split()
"""What the processor can do that matters here."""
PREFIXES = (
    "OMP_",
    "OPENBLAS_",
    "MKL_",
    "KMP_",
    "NUMBA_NUM",
    "NUMBA_THREAD",
    "NUMBA_CPU",
    "MALLOC_",
    "ATEN_",
    "ONEDNN_",
    "CUPY_TF32",
    "CUDA_VISIBLE",
    "PYTORCH_",
    "VITKIT_AUTOTUNE",
    "VITKIT_DETERMINISTIC",
)


def usable_cpus() -> int:
    """Return how many processors this process may keep busy: its affinity, and its quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return min(allowed or 1, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # no control group, or one without a quota
        return allowed or 1


def use_only(threads: int) -> None:
    """Keep this process and those it starts on as many processors as it has threads."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def describe(threads: int) -> dict[str, Any]:
    """Return machine, versions, date and the variables that libraries would read."""
    cpu = _cpu()
    flags = set(cpu.get("flags", cpu.get("Features", "")).split())
    return {
        "date": date.today().isoformat(),
        "machine": {
            "processor": cpu.get("model name", platform.processor() or platform.machine()),
            "flags": [flag for flag in FLAGS if flag in flags],
            "processors": os.cpu_count(),
            "threads": threads,
            "memory_gb": _memory_gb(),
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "libc": " ".join(platform.libc_ver()),
        },
        "versions": {"python": platform.python_version(), **_versions()},
        "environment": {
            name: value for name, value in sorted(os.environ.items()) if name.startswith(PREFIXES)
        },
    }


def _cpu() -> dict[str, str]:
    """Return what the system says about the first processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}


def _memory_gb() -> float:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (AttributeError, ValueError):
        return 0.0


def _versions() -> dict[str, str]:
    found = {}
    for name in (*PACKAGES, *FOR_GPUS):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
