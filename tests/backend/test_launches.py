"""Kernels as CuPy launches them: what C++ is given, into which stream, and what is asked first."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from vitkit.backend.graph import record_on_gpu
from vitkit.kernels.cuda import _kernel
from vitkit.testing import cuda_on_cpu

sys.path.insert(0, str(Path(__file__).parent))
import fake_cuda
import fake_cupy

FILE = "of_a_test.cuh"
SOURCE = """#include "common.cuh"
template<typename T> __global__ void scale(
    const T* x, T* y, float by, int count, i64 first, double plus, int last) {
  DYNAMIC_SHARED(room);
  const int at = blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= count) return;
  ((float*)room)[threadIdx.x] = by;
  y[at] = first + x[at] * ((float*)room)[threadIdx.x] + plus * last;
}
"""
Scenario = Callable[[Any, Any], None]


def interpret(code: str, name: str, grid: Any, block: Any, values: list[Any], shared: int) -> None:
    """Run a kernel on the memory of the fake GPU; types that C++ does not expect are an error."""
    names, run = cuda_on_cpu._library(code, (name,))
    sizes = (ctypes.c_size_t * len(values))(*map(ctypes.sizeof, values))
    places = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
    problem = run(
        names[name], len(values), sizes, (ctypes.c_uint * 6)(*grid, *block), shared, 0, places
    )
    if problem:
        raise RuntimeError(problem.decode())


def scaled(kernels: Any, cupy: Any, x: Any, by: float, **options: Any) -> Any:
    """Return 3 + x by + 0.5."""
    y, count = cupy.empty(x.shape, "float32"), x.shape[0]
    arguments = (x, y, by, count, np.int64(3), np.float64(0.125), 4)
    kernel = kernels.Kernel(FILE, "scale<float>")
    kernel((kernels.blocks(count, 32),), (32,), *arguments, **{"shared": 128, **options}, xp=cupy)
    return y


def numbers_have_the_width_that_cpp_expects(cupy: Any, kernels: Any) -> None:
    x = cupy.zeros((70,))
    x += 2
    assert scaled(kernels, cupy, x, 1.5).get().tolist() == [6.5] * 70


def a_launch_is_in_the_order_of_the_current_stream(cupy: Any, kernels: Any) -> None:
    x = cupy.zeros((40,))
    with cupy.cuda.Stream(non_blocking=True) as stream:
        with pytest.raises(fake_cuda.Race):
            scaled(kernels, cupy, x, 1.0)
        stream.wait_event(cupy.cuda.Stream.null.record())
        assert scaled(kernels, cupy, x, 1.0).get()[39] == 3.5


def a_recorded_launch_is_done_again_on_the_same_memory(cupy: Any, kernels: Any) -> None:
    x, seen = cupy.zeros((40,)), []
    recording, y = record_on_gpu(lambda: scaled(kernels, cupy, x, 2.0))
    for number in (1, 2):
        x[...] = number
        recording.replay()
        seen.append(float(y.get()[39]))
    assert seen == [5.5, 7.5]
    assert fake_cuda.device.named("scale<float>") == []


def nothing_is_launched_for_nothing(cupy: Any, kernels: Any) -> None:
    assert scaled(kernels, cupy, cupy.zeros((0,)), 2.0).shape == (0,)
    assert fake_cuda.device.named("scale<float>") == []


def a_source_is_compiled_once(cupy: Any, kernels: Any) -> None:
    made, module = [], cupy.RawModule

    def counted(**options: Any) -> Any:
        made.append(options)
        return module(**options)

    cupy.RawModule = counted
    x = cupy.zeros((5,))
    for by in (1.0, 2.0):
        scaled(kernels, cupy, x, by)
    assert [options["name_expressions"] for options in made] == [("scale<float>",)]
    assert '#include "common.cuh"' not in made[0]["code"]


def more_shared_memory_is_asked_for_first(cupy: Any, kernels: Any) -> None:
    x = cupy.zeros((5,))
    for shared in (48 << 10, 100 << 10, 60 << 10, 227 << 10):
        assert scaled(kernels, cupy, x, 1.0, shared=shared).get()[0] == 3.5
    with pytest.raises(RuntimeError, match="INVALID_VALUE"):
        scaled(kernels, cupy, x, 1.0, shared=228 << 10)


SCENARIOS: tuple[Scenario, ...] = (
    numbers_have_the_width_that_cpp_expects,
    a_launch_is_in_the_order_of_the_current_stream,
    a_recorded_launch_is_done_again_on_the_same_memory,
    nothing_is_launched_for_nothing,
    a_source_is_compiled_once,
    more_shared_memory_is_asked_for_first,
)


def play(scenario: Scenario, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Play a scenario on a new GPU, with a kernel more."""
    if reason := cuda_on_cpu.why_not():
        pytest.skip(reason)
    common = _kernel.source("common.cuh")
    text = SOURCE.replace('#include "common.cuh"\n', common)
    cupy = fake_cupy.module(64 << 10, interpret)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    with monkeypatch.context() as patch:
        patch.setattr(module, "source", lambda file: text)
        patch.setattr(module, "_compiled", _again(module._compiled))
        scenario(cupy, module)
        fake_cuda.device.finish()


def _again(compiled: Any) -> Any:
    """Return the function with nothing kept of another GPU."""
    getattr(compiled, "cache_clear", lambda: None)()
    return compiled


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_launches(scenario: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    play(scenario, _kernel, monkeypatch)
    _kernel._compiled.cache_clear()


FAULTS = {
    "whole numbers of 64 bits": ("return np.int32(value)", "return value"),
    "floats of 64 bits": ("return np.float32(value) if", "return value if"),
    "NumPy's numbers as Python's": ("if isinstance(value, np.generic):", "if False:"),
    "one block for nothing": ("if 0 not in grid:", "if True:"),
    "compiled each time": ("@functools.cache\ndef _compiled", "def _compiled"),
    "shared memory that was not asked for": (
        "        function.max_dynamic_shared_size_bytes = shared\n",
        "        pass\n",
    ),
    "shared memory that is not passed on": ("shared_mem=shared", "shared_mem=0"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_noticed(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = Path(str(_kernel.__file__)).read_text("utf-8")
    old, new = FAULTS[fault]
    assert text.count(old) == 1
    changed = ModuleType(_kernel.__name__)
    changed.__package__ = _kernel.__package__
    exec(text.replace(old, new), vars(changed))  # noqa: S102
    noticed = []
    for scenario in SCENARIOS:
        try:
            play(scenario, changed, monkeypatch)
        except (AssertionError, fake_cuda.Race, RuntimeError, pytest.fail.Exception):
            noticed.append(scenario.__name__)
    assert noticed
