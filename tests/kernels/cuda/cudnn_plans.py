"""Let cuDNN plan attention for GPUs that are only described to it, for ``test_cudnn_plans.py``.

Prints JSON: ``why_not``, empty where cuDNN could be asked; then ``plans``, by a name the bytes that
a plan works in, or why there is none.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from typing import Any

from vitkit.kernels.cuda import _cudnn, _cudnn_plans

GPUS = {75: (40, 65536), 80: (108, 166912), 90: (132, 232448)}
"""By compute capability times ten: how many multiprocessors, and a block's shared memory."""


def described(cudnn: Any, capability: int) -> dict[str, Any]:
    """Return what a graph is told of a GPU that is not there."""
    processors, shared = GPUS[capability]
    properties = {
        **{"cudaDeviceId": 0, "deviceVer": 10 * capability, "driverVer": 13000},
        **{"maxGridSize": [2147483647, 65535, 65535], "maxBlockSize": [1024, 1024, 64]},
        **{"regsPerBlock": 65536, "multiProcessorCount": processors, "smCountOrigin": 0},
        **{"smClockRateKHz": 1980000, "memClockRateKHz": 3201000, "memoryBusWidth": 6144},
        **{"l2CacheSize": 62914560, "warpSize": 32, "maxSharedMemoryPerBlock": 49152},
        **{"maxSharedMemoryPerBlockOptin": shared, "reservedSharedMemoryPerBlock": 1024},
        **{"oversizedSharedMemoryPerBlock": 0, "maxRegistersPerSM": 65536, "maxCtasPerSM": 32},
        **{"maxThreadsPerBlock": 1024, "maxThreadsPerSM": 2048, "pciDeviceId": 0},
        **{"isTccDriver": 0, "supportCoopLaunch": 1, "totalGlobalMem": 80_000_000_000},
        "deviceName": "described",
    }
    device = cudnn.create_device_properties(json.dumps(properties))
    return {"device_property": device, "sm_version": capability}


def planned(cudnn: Any, capability: int, dtype: str, *sizes: int) -> dict[str, Any]:
    """Return what both directions, and the deterministic backward pass, work in."""
    shape, where = _cudnn_plans.Shape(0, dtype, *sizes), described(cudnn, capability)
    makers = {
        "forward": lambda: _cudnn_plans.forward_graph(cudnn, shape, **where),
        "backward": lambda: _cudnn_plans.backward_graph(cudnn, shape, False, **where),
        "deterministic": lambda: _cudnn_plans.backward_graph(cudnn, shape, True, **where),
    }
    found: dict[str, Any] = {}
    for name, make in makers.items():
        try:
            found[name] = _cudnn_plans.build(cudnn, make())[1]
        except Exception as error:
            found[name] = _cudnn_plans.first_line(error)
    return found


def load_compiler() -> None:
    """Load NVRTC as importing CuPy does: that of CUDA 13.0 finds its other half only so."""
    if importlib.util.find_spec("cuda") and importlib.util.find_spec("cuda.pathfinder"):
        importlib.import_module("cuda.pathfinder").load_nvidia_dynamic_lib("nvrtc")


def main() -> None:
    """Plan what the arguments say, each ``capability,dtype,B,h,N,d``."""
    if reason := _cudnn._why_no_library():
        print(json.dumps({"why_not": reason}))
        return
    load_compiler()
    cudnn = importlib.import_module("cudnn")
    plans = {}
    for argument in sys.argv[1:]:
        capability, dtype, *sizes = argument.split(",")
        plans[argument] = planned(cudnn, int(capability), dtype, *map(int, sizes))
    versions = {"cuDNN": cudnn.backend_version(), "frontend": cudnn.__version__}
    print(json.dumps({"why_not": "", "versions": versions, "plans": plans}))


if __name__ == "__main__":
    main()
