"""Where the tests of kernels compute: on a GPU that works and is asked for, or on the CPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import pytest

from vitkit import kernels
from vitkit.backend import array_module, cuda_status
from vitkit.testing import cuda_on_cpu

ON_GPU = os.environ.get("VITKIT_TEST_XP") in ("cupy", "gpu") and cuda_status().usable


@contextmanager
def kernels_of(tests: ModuleType, order: int) -> Iterator[None]:
    """Run kernels for CuPy: on the GPU, or emulated on the strict device.

    Parameters
    ----------
    tests : module
        A file of tests, whose ``xp`` is CuPy in the block where there is a GPU.
    order : int
        In which order threads run that are emulated.
    """
    if not ON_GPU:
        if reason := cuda_on_cpu.why_not():
            pytest.skip(reason)
        with cuda_on_cpu.emulated(order):
            yield
        return
    cupy = array_module("cupy")
    assert kernels.why_none(cupy) == ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tests, "xp", cupy)
        yield
