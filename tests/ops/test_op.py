"""The seam between an operation and the kernels that replace it."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import numpy as np
import pytest

import vitkit.kernels
from vitkit import ops
from vitkit.backend import ArrayModule
from vitkit.ops import Op, _op, reference_only
from vitkit.testing import strict_device


@pytest.fixture(autouse=True)
def kernels_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Test the seam also where ``VITKIT_KERNELS=off`` runs the rest by the references."""
    monkeypatch.setattr(_op, "_use_kernels", ContextVar("use_kernels", default=True))


def double(x: Any, times: int = 2, *, xp: ArrayModule) -> Any:
    """Return ``x`` times ``times``."""
    return x * times


@pytest.fixture(scope="module", autouse=True)
def spelling() -> None:
    """Leave kernels on: they are what is tested here."""


@pytest.fixture
def op() -> Op[..., Any]:
    return Op(double)


def answer(op: Op[..., Any], backend: str, result: Any) -> Callable[..., Any]:
    """Register a kernel that returns what it is told; return it."""

    @op.kernel(backend)
    def kernel(x: Any, times: int = 2, *, xp: ArrayModule) -> Any:
        return result

    return kernel


def test_an_op_without_kernels_is_its_reference(op: Op[..., Any], xp: ArrayModule) -> None:
    assert op(3, xp=xp) == 6
    assert op(3, times=5, xp=xp) == 15
    assert op.reference is double
    assert op.kernels == {}


def test_an_op_looks_like_its_function(op: Op[..., Any]) -> None:
    assert op.__name__ == "double"
    assert op.__doc__ == double.__doc__
    assert op.__module__ == double.__module__
    assert repr(op) == "<op double(x, times=2, *, xp), kernels: none>"
    answer(op, "numpy", 0)
    answer(op, "cupy", 0)
    assert repr(op) == "<op double(x, times=2, *, xp), kernels: cupy, numpy>"


def test_a_kernel_serves_the_array_module_of_its_name(op: Op[..., Any]) -> None:
    kernel = answer(op, "numpy", "numpy's")
    assert op.kernels == {"numpy": kernel}
    assert op(3, xp=np) == "numpy's"
    assert op(3, xp=strict_device.xp) == 6
    answer(op, "strict_device", "the device's")
    assert op(3, xp=np) == "numpy's"
    assert op(3, xp=strict_device.xp) == "the device's"
    assert op.reference(3, xp=np) == 6


def test_a_kernel_gets_what_the_op_got(op: Op[..., Any], xp: ArrayModule) -> None:
    seen: list[Any] = []

    @op.kernel(xp.__name__)
    def kernel(x: Any, times: int = 2, *, xp: ArrayModule) -> Any:
        seen.append((x, times, xp))
        return None

    assert op(3, 7, xp=xp) is None  # None is an answer
    assert seen == [(3, 7, xp)]


def test_what_a_kernel_does_not_serve_the_reference_does(op: Op[..., Any], xp: ArrayModule) -> None:
    @op.kernel(xp.__name__)
    def kernel(x: Any, times: int = 2, *, xp: ArrayModule) -> Any:
        return NotImplemented if x > 10 else "fast"

    assert op(3, xp=xp) == "fast"
    assert op(30, xp=xp) == 60


def test_reference_only_passes_over_the_kernels(op: Op[..., Any], xp: ArrayModule) -> None:
    answer(op, xp.__name__, "fast")
    with reference_only():
        assert op(3, xp=xp) == 6
        with reference_only():
            assert op(3, xp=xp) == 6
        assert op(3, xp=xp) == 6
    assert op(3, xp=xp) == "fast"
    with pytest.raises(ZeroDivisionError), reference_only():
        raise ZeroDivisionError
    assert op(3, xp=xp) == "fast"


def test_reference_only_leaves_other_threads_alone(op: Op[..., Any], xp: ArrayModule) -> None:
    answer(op, xp.__name__, "fast")
    results: list[Any] = []
    with reference_only():
        thread = threading.Thread(target=lambda: results.append(op(3, xp=xp)))
        thread.start()
        thread.join()
    assert results == ["fast"]


def other_name(y: Any, times: int = 2, *, xp: ArrayModule) -> Any: ...
def other_default(x: Any, times: int = 3, *, xp: ArrayModule) -> Any: ...
def no_default(x: Any, times: int, *, xp: ArrayModule) -> Any: ...
def one_less(x: Any, *, xp: ArrayModule) -> Any: ...
def one_more(x: Any, times: int = 2, *, xp: ArrayModule, fast: bool = True) -> Any: ...
def positional(x: Any, times: int = 2, xp: ArrayModule = None) -> Any: ...
def anything(*args: Any, **kwargs: Any) -> Any: ...


@pytest.mark.parametrize(
    ("kernel", "theirs"),
    [
        (other_name, "y, times=2, *, xp"),
        (other_default, "x, times=3, *, xp"),
        (no_default, "x, times, *, xp"),
        (one_less, "x, *, xp"),
        (one_more, "x, times=2, *, xp, fast=True"),
        (positional, "x, times=2, xp=None"),
        (anything, "*args, **kwargs"),
    ],
)
def test_a_kernel_of_another_signature_is_refused(
    kernel: Callable[..., Any], theirs: str, op: Op[..., Any]
) -> None:
    message = f"The cupy kernel of double takes ({theirs}); it must take (x, times=2, *, xp)."
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        op.kernel("cupy")(kernel)
    assert op.kernels == {}


def test_annotations_of_a_kernel_are_its_own_business(op: Op[..., Any]) -> None:
    @op.kernel("numpy")
    def kernel(x: float, times: Any = 2, *, xp: object) -> str:
        return "fast"

    assert op(3, xp=np) == "fast"


SCRIPT = """
import numpy as np
from vitkit.ops import Op

@Op
def f(x, *, xp):
    return "reference"

@f.kernel("numpy")
def fast(x, *, xp):
    return "kernel"

print(f(1, xp=np))
"""


@pytest.mark.parametrize(
    ("setting", "expected"), [("off", "reference"), ("on", "kernel"), ("", "kernel")]
)
def test_the_environment_turns_kernels_off(
    setting: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITKIT_KERNELS", setting)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == expected


def test_what_ships_with_a_kernel_is_an_op_of_the_package(xp: ArrayModule) -> None:
    vitkit.kernels.load(xp)
    for op in vars(ops).values():
        if isinstance(op, Op):
            assert set(op.kernels) <= {"numpy", "cupy"}
