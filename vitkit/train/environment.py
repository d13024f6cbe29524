"""What a result was computed with."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from threadpoolctl import threadpool_info

from vitkit._version import __version__
from vitkit.backend import ArrayModule, backend_of, cuda_status
from vitkit.kernels.state import describe as on_cpu

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


def numerics(xp: ArrayModule) -> dict[str, str]:
    """Return what the last digits of a result depend on, besides the run itself.

    Sums are made in an order that libraries choose for the processor and the threads they find:
    a run that is taken up where one of these differs is right, but no longer the same bit for bit.

    Parameters
    ----------
    xp : module
        Where the run computes.

    Returns
    -------
    dict of str to str
        Such as ``{"numpy": "2.4.6", "BLAS": "openblas 0.3.30 SkylakeX", "threads": "2"}``.
    """
    pools = [pool for pool in threadpool_info() if pool.get("user_api") == "blas"]
    # SciPy brings another, which is there only once somebody has asked for it.
    pools = [pool for pool in pools if "numpy" in str(pool.get("filepath"))] or pools
    words = ("internal_api", "version", "architecture")
    blas = {" ".join(str(pool.get(word) or "") for word in words) for pool in pools}
    kernels = on_cpu()
    found = {
        "vitkit": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": xp.__name__,
        "numpy": _version("numpy"),
        "BLAS": ", ".join(sorted(map(str.strip, blas))),
        "BLAS threads": ", ".join(sorted({str(pool.get("num_threads")) for pool in pools})),
    }
    if not backend_of(xp).on_host:
        cupy = next(
            (v for name in OPTIONAL if name.startswith("cupy") and (v := _version(name))), ""
        )
        return {**found, "GPU": cuda_status().detail, "cupy": cupy}
    if kernels["why_none"]:
        return {**found, "kernels": "none"}
    return {
        **found,
        "kernels": f"{kernels['processor']}, {kernels['vector_bits']} bits",
        "threads": str(kernels["threads"]),
        "numba": _version("numba"),
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a line if a resumed run is computed with something else than before."""
    differ = [
        f"{key} was {old}, is {now.get(key, 'unknown')}"
        for key, old in before.items()
        if now.get(key) != old
    ]
    if not differ:
        return []
    return [f"The last digits may differ from those of an undisturbed run: {'; '.join(differ)}."]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
