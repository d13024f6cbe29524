"""CUDA kernels run on the CPU, threads in several orders, with and without planted faults."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from fake_cublaslt import FakeCublasLt
from fake_cudnn import FakeCudnn
from where import ON_GPU, kernels_of

from vitkit.kernels.cuda import (
    _cublaslt,
    _cudnn,
    _kernel,
    _lt,
    _lt_gelu,
    _lt_sums,
    _products,
)
from vitkit.kernels.cuda._algorithms import Memory
from vitkit.kernels.cuda._cublaslt import Binding
from vitkit.testing import cuda_on_cpu, recording, strict_device

xp = strict_device.xp
ORDERS = (0, 1, 2)  # of threads: from the first, from the last, drawn
PLACES = {0: "gpu"} if ON_GPU else {order: f"order{order}" for order in ORDERS}


@pytest.fixture(params=PLACES, ids=PLACES.get)
def emulated(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run kernels for CuPy: where a GPU is asked for, on it, else emulated in several orders."""
    with kernels_of(request.module, request.param):
        yield


@pytest.fixture
def emulated_once(request: pytest.FixtureRequest) -> Iterator[None]:
    """Do the same in a drawn order of threads alone."""
    with kernels_of(request.module, 2):
        yield


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, str], None]:
    """Return what changes the text of a kernel: ``plant(file, old, new)``."""

    def change(file: str, old: str, new: str) -> None:
        source = _kernel.source
        assert source(file).count(old) >= 1, f"{file} does not hold {old!r}"
        monkeypatch.setattr(
            _kernel,
            "source",
            lambda name: source(name).replace(old, new, 1) if name == file else source(name),
        )

    return change


class Clock:
    """A device whose algorithms take the times that are given, by their numbers."""

    def __init__(self, lib: FakeCublasLt, times: list[float]) -> None:
        self.lib, self.times, self.is_capturing = lib, times, False
        self.device_in_use, self.stream_in_use = 0, 5

    def device(self) -> int:
        return self.device_in_use

    def stream(self) -> int:
        return self.stream_in_use

    def capturing(self) -> bool:
        return self.is_capturing

    def title(self) -> str:
        return "A GPU/of tests"

    def lasting(self) -> Any:
        return nullcontext()

    def seconds(self, run: Callable[[], None]) -> float:
        run()
        return self.times[self.lib.calls[-1]]


@pytest.fixture
def lib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeCublasLt]:
    """Return the library that products use."""
    if reason := cuda_on_cpu.why_not():
        pytest.skip(reason)
    fake = FakeCublasLt()
    binding = Binding(fake)
    monkeypatch.setattr(_cublaslt, "library", lambda: binding)
    monkeypatch.setattr(_lt, "GPU", Clock(fake, [3.0, 1.0, 2.0]))
    # CuPy's memory lies on boundaries of 512 bytes, so that what is timed lies as well as what it
    # is timed for; NumPy's on boundaries of 16.
    monkeypatch.setattr(_lt, "ALIGNMENTS", (16, 8, 4, 2))
    for table in ("PLANS", "WORKSPACES"):
        monkeypatch.setattr(_lt, table, {})
    for module in (_lt_gelu, _lt_sums):
        monkeypatch.setattr(module, "PAYS", {})
    monkeypatch.setattr(_lt, "memory", lambda name: Memory(name, tmp_path))
    with cuda_on_cpu.emulated():
        yield fake


@pytest.fixture
def through(lib: FakeCublasLt) -> Iterator[FakeCublasLt]:
    """Have products of the strict device by the library, also in what is recorded there."""
    run, clock = _lt.run, type(_lt.GPU)

    def noted(*arguments: Any) -> None:
        run(*arguments)
        recording.note(lambda: run(*arguments))

    def capturing(self: Any) -> bool:
        return self.is_capturing or bool(recording._tapes)

    with pytest.MonkeyPatch.context() as patch:  # undone before what ``lib`` has put there
        patch.setitem(_products.PRODUCTS, xp.__name__, _lt.multiply)
        patch.setitem(_products.GELU, xp.__name__, _lt_gelu.GeluProducts())
        patch.setitem(_products.SUMMED, xp.__name__, _lt_sums.gradients)
        patch.setattr(_lt, "run", noted)
        patch.setattr(clock, "capturing", capturing)
        yield lib


@pytest.fixture
def together_takes(lib: FakeCublasLt, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return what has a product that does more take so long, one and a kernel after it 1 s."""

    def take(seconds: float) -> None:
        clock, timed = _lt.GPU.seconds, {"together": seconds, "apart": 1.0}

        def of(run: Callable[[], None]) -> float:
            run()
            name = run.__name__
            return timed[name] if name in timed else clock(run)

        monkeypatch.setattr(_lt.GPU, "seconds", of)

    return take


@pytest.fixture
def cudnn(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCudnn]:
    """Install the stand-in of cuDNN for the device of a file's tests, nothing being planned."""
    made = FakeCudnn()
    monkeypatch.setitem(sys.modules, "cudnn", made)
    monkeypatch.setattr(_cudnn, "PAIRS", {})
    monkeypatch.setattr(_cudnn, "REFUSALS", {})
    monkeypatch.setattr(_cudnn, "HANDLES", {})
    monkeypatch.delenv("VITKIT_DETERMINISTIC", raising=False)
    _cudnn._why_no_library.cache_clear()
    yield made
    _cudnn._why_no_library.cache_clear()


def worst(got: Any, expected: np.ndarray) -> float:
    """Return the largest difference, relative to the largest number expected."""
    found = got.get() if hasattr(got, "get") else np.asarray(got)
    assert found.shape == expected.shape
    difference = np.abs(found.astype("float64") - expected).max(initial=0)
    return float(difference / max(np.abs(expected).max(initial=0), 1e-30))
