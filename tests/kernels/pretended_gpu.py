"""A plugin for pytest that pretends to have a GPU: CuPy is a second strict device of its own.

Arrays of the strict device that other tests use are foreign to it, as to a GPU; kernels are
emulated. With ``-p pretended_gpu`` and ``VITKIT_TEST_XP=gpu`` tests take the way that they take
where there is one, and what of them only the host can do is an error.
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

from vitkit import kernels
from vitkit.backend import backend_of, cuda_status, modules, register_backend
from vitkit.kernels.state import operations
from vitkit.testing import cuda_on_cpu, recording, strict_device

PROPERTIES = {"name": b"a pretended GPU", "major": 9, "minor": 0}
launches: list[str] = []
"""The kernels that the pretended GPU has run."""


def second_device() -> ModuleType:
    """Return the module of the strict device once more, with an array class of its own."""
    first = backend_of(strict_device.xp)
    spec = importlib.util.spec_from_file_location("second_device", str(strict_device.__file__))
    assert spec is not None
    assert spec.loader is not None
    second = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(second)
    device: Any = second
    device.xp.__name__, device.DeviceArray.__module__ = "cupy", "cupy"
    register_backend(replace(backend_of(device.xp), to_numpy=device.asnumpy))
    mine = replace(modules._BACKENDS["strict_device"], name="cupy", to_numpy=device.asnumpy)
    mine = replace(mine, special=device._special)
    register_backend(first)
    register_backend(mine)
    return second


def stream() -> SimpleNamespace:
    """Return the current stream, which captures where something is recorded."""
    return SimpleNamespace(ptr=0, is_capturing=lambda: bool(recording._tapes))


def pretend() -> Any:
    """Put the second device in CuPy's place."""
    second: Any = second_device()
    cupy = second.xp
    cupy.__spec__ = ModuleSpec("cupy", None)
    cupy.cuda = SimpleNamespace(
        Device=lambda *number: SimpleNamespace(compute_capability="90"),
        get_current_stream=stream,
        runtime=SimpleNamespace(
            getDevice=lambda: 0,
            getDeviceCount=lambda: 1,
            getDeviceProperties=lambda number: PROPERTIES,
            runtimeGetVersion=lambda: 12090,
        ),
    )
    sys.modules["cupy"] = cupy
    assert cuda_status().usable, cuda_status().detail
    assert kernels.import_cuda() == ""
    from vitkit.kernels.cuda import _cublaslt, _kernel, _products

    def launch(kernel: Any, grid: Any, block: Any, arguments: Any, shared: int) -> None:
        given = []
        for each in arguments:
            if isinstance(each, strict_device.DeviceArray):
                raise TypeError("An array of another device came to a kernel.")
            mine = isinstance(each, second.DeviceArray)
            given.append(strict_device.DeviceArray(each._a) if mine else each)
        launches.append(kernel.name)
        cuda_on_cpu.launch(kernel, grid, block, tuple(given), shared)

    _kernel.LAUNCHERS["cupy"] = launch
    for table in vars(_products).values():
        if isinstance(table, dict):
            table.pop("cupy", None)
    _products.PRODUCTS["cupy"] = cuda_on_cpu.multiply
    _cublaslt.why_none = lambda: ""  # by which precisions are served
    assert any("cupy" in op.kernels for op in operations().values())
    return cupy


CUPY = pretend()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say what was run."""
    count = len(launches)
    terminalreporter.write_line(f"pretended GPU: {count} launches of {len(set(launches))} kernels")
