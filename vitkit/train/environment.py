"""What a result was computed with."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from threadpoolctl import threadpool_info

from vitkit._version import __version__
from vitkit.backend import cuda_status

CORE = ("numpy", "scipy", "numba", "safetensors", "pillow")
OPTIONAL = ("cupy-cuda12x", "cupy-cuda13x", "matplotlib")


def describe(*, cuda: bool = True) -> dict[str, Any]:
    """Return versions, machine, BLAS and GPU as plain values.

    Parameters
    ----------
    cuda : bool, default True
        Whether to try the GPU, which imports CuPy and takes memory there; without, ``"cupy"`` is
        None.
    """
    status = cuda_status() if cuda else None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "packages": {
            "vitkit": __version__,
            **{name: found for name in CORE + OPTIONAL if (found := _version(name))},
        },
        "blas": [
            {
                key: pool.get(key)
                for key in ("internal_api", "version", "architecture", "num_threads")
            }
            for pool in threadpool_info()
            if pool.get("user_api") == "blas"
        ],
        "cupy": status and {"usable": status.usable, "found": status.detail, "cure": status.cure},
        "argv": sys.argv[1:],
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
