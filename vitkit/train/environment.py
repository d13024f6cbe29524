"""What a result was computed with."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from threadpoolctl import threadpool_info

from vitkit.backend import cuda_status

CORE = ("vitkit", "numpy", "scipy", "safetensors", "pillow")
OPTIONAL = ("cupy-cuda12x", "cupy-cuda13x", "matplotlib")


def describe() -> dict[str, Any]:
    """Return versions, machine, BLAS and GPU as plain values."""
    cuda = cuda_status()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "packages": {name: found for name in CORE + OPTIONAL if (found := _version(name))},
        "blas": [
            {
                key: pool.get(key)
                for key in ("internal_api", "version", "architecture", "num_threads")
            }
            for pool in threadpool_info()
            if pool.get("user_api") == "blas"
        ],
        "cupy": {"usable": cuda.usable, "found": cuda.detail, "cure": cuda.cure},
        "argv": sys.argv[1:],
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
