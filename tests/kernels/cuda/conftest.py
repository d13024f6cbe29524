"""CUDA kernels run on the CPU, threads in several orders, with and without planted faults."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from vitkit.kernels.cuda import _kernel
from vitkit.testing import cuda_on_cpu, strict_device

xp = strict_device.xp
ORDERS = (0, 1, 2)  # of threads: from the first, from the last, drawn


def pytest_runtest_setup(item: pytest.Item) -> None:
    if "emulated" in getattr(item, "fixturenames", ()) and (reason := cuda_on_cpu.why_not()):
        pytest.skip(reason)


@pytest.fixture(params=ORDERS, ids=lambda order: f"order{order}")
def emulated(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run kernels for CuPy on the strict device, in each order of threads."""
    with cuda_on_cpu.emulated(request.param):
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


def worst(got: Any, expected: np.ndarray) -> float:
    """Return the largest difference, relative to the largest number expected."""
    found = got.get() if hasattr(got, "get") else np.asarray(got)
    assert found.shape == expected.shape
    difference = np.abs(found.astype("float64") - expected).max(initial=0)
    return float(difference / max(np.abs(expected).max(initial=0), 1e-30))
