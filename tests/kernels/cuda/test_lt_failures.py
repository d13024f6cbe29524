"""What becomes of products where cuBLASLt does not start, refuses, or has too little memory."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
from fake_cublaslt import FakeCublasLt

from vitkit.kernels.cuda import _cublaslt, _device, _lt
from vitkit.kernels.cuda._cublaslt import CublasError
from vitkit.kernels.cuda._lt_gelu import GeluProducts
from vitkit.testing import strict_device

xp = strict_device.xp


def error(
    rng: np.random.Generator,
    sizes: tuple[int, int, int] = (5, 7, 3),
    *,
    biased: bool = False,
    plus: bool = False,
) -> float:
    """Return the worst error of a float32 product, in units of what rounding may lose."""
    m, n, k = sizes
    a, b, before = (
        rng.standard_normal(shape).astype("float32") for shape in ((m, k), (k, n), (m, n))
    )
    bias = rng.standard_normal(n).astype("float32") if biased else None
    out = xp.asarray(before.copy())
    expected = a.astype("float64") @ b
    if bias is not None:
        expected += bias
    if plus:
        expected += before
    shift = None if bias is None else xp.asarray(bias)
    added = out if plus else None
    _lt.multiply(xp.asarray(a), xp.asarray(b), out, False, False, shift, added, "float32", xp)
    return float(np.abs(out.get() - expected).max() / (2.0**-23 * np.abs(expected).max()))


REFUSALS = {
    "cublasLtMatmulDescCreate": (3, "allocation failed"),
    "cublasLtMatrixLayoutCreate": (7, "invalid value"),
    "cublasLtMatmulAlgoGetHeuristic": (14, "internal error"),
    "cublasLtMatmul": (13, "execution failed"),
}


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("autotune", ["on", "off"])
@pytest.mark.parametrize("name", REFUSALS)
def test_what_fails_is_computed_in_another_way(
    name: str,
    autotune: str,
    biased: bool,
    lib: FakeCublasLt,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    rng: np.random.Generator,
) -> None:
    monkeypatch.setenv("VITKIT_AUTOTUNE", autotune)
    status, text = REFUSALS[name]
    monkeypatch.setattr(lib, name, lambda *arguments: status, raising=False)
    with caplog.at_level(logging.INFO, "vitkit"):
        for _ in range(2):
            assert error(rng, biased=biased) < 2
    (line,) = caplog.records
    assert line.levelno == logging.WARNING
    assert f"is computed in another way: {name} failed: {text} ({status})" in line.message
    assert not lib.calls


def test_a_product_of_a_gelu_that_fails_raises(
    lib: FakeCublasLt, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lib, "cublasLtMatmul", lambda *arguments: 13)
    a, b, out = xp.zeros((8, 8), "uint16"), xp.zeros((8, 8), "uint16"), xp.zeros((8, 8), "uint16")
    given = _lt.Operands(a, b, out, xp.zeros((8,), "uint16"))
    problem = _lt.problem_of(given, False, True, "float32", "gelu")
    with pytest.raises(CublasError, match="execution failed"):
        _lt.planned(problem, given, xp)
    assert not caplog.records  # whoever asks for it has another way, and says why it is taken


@pytest.mark.parametrize("status", [1, 3])
def test_a_library_that_does_not_start_is_said_once(
    status: int,
    lib: FakeCublasLt,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    rng: np.random.Generator,
) -> None:
    asked: list[int] = []

    def refuse(place: Any) -> int:
        asked.append(1)
        return status

    lib.cublasLtCreate = refuse  # type: ignore[method-assign]
    monkeypatch.setattr(_cublaslt, "compute_capability", lambda: 90)
    monkeypatch.setattr(_cublaslt, "why_not_loaded", lambda: "")
    with caplog.at_level(logging.INFO, "vitkit"):
        for sizes in ((5, 7, 3), (2, 2, 2), (4, 5, 6)):
            for biased in (False, True):
                assert error(rng, sizes, biased=biased) < 2
            low = xp.zeros((8, 8), "uint16")
            given = low, low, xp.zeros((8,), "float32"), xp.zeros((8, 8), "float32")
            assert not GeluProducts().pay(*given, True, xp)
        reason = _cublaslt.why_none()
    (line,) = caplog.records
    assert f"({status})" in reason
    assert line.levelno == logging.WARNING
    assert f"Products are CuPy's, in float32: {reason}." in line.message
    assert len(asked) == 1
    assert not lib.calls
    assert reason in _device.paths(xp)["matrix products"]


def test_a_device_on_which_it_started_goes_on(
    lib: FakeCublasLt, caplog: pytest.LogCaptureFixture, rng: np.random.Generator
) -> None:
    _cublaslt.library().device = _lt.GPU.device
    assert error(rng) < 1
    lib.cublasLtCreate = lambda place: 3  # type: ignore[method-assign]
    for device in (1, 2):
        _lt.GPU.device_in_use, lib.calls = device, []
        assert error(rng) < 1
        assert not lib.calls
    assert len(caplog.records) == 1
    _lt.GPU.device_in_use = 0
    assert error(rng) < 1
    assert lib.calls == [1]


def test_a_library_that_starts_is_named(lib: FakeCublasLt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cublaslt, "compute_capability", lambda: 90)
    monkeypatch.setattr(_cublaslt, "why_not_loaded", lambda: "")
    assert not _cublaslt.why_none()
    assert _device.paths(xp)["matrix products"].startswith("cuBLASLt 12.9.2")


@pytest.mark.parametrize("name", ["VITKIT_AUTOTUNE", "VITKIT_DETERMINISTIC"])
def test_what_is_not_timed_is_tried(
    name: str, lib: FakeCublasLt, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    monkeypatch.setenv(name, "off" if name == "VITKIT_AUTOTUNE" else "1")
    assert error(rng, plus=True) < 1  # which was not spoilt
    assert lib.calls == [0, 0]
    lib.refused, lib.calls = {0, 1}, []
    assert error(rng, (4, 4, 4)) < 1
    assert lib.calls == [0, 1, 2, 2]


def test_what_is_remembered_and_no_longer_runs(
    lib: FakeCublasLt, rng: np.random.Generator, caplog: pytest.LogCaptureFixture
) -> None:
    assert error(rng) < 1
    assert lib.calls[-1] == 1
    _lt.PLANS.clear()  # as in another process, with another driver
    lib.refused = {1}
    assert error(rng) < 1
    assert lib.calls[-1] == 0
    _lt.PLANS.clear()
    lib.refused = {0, 1, 2}
    assert error(rng) < 1
    assert "cublasLtMatmul failed: not supported" in caplog.text
    assert len(caplog.records) == 1


@pytest.mark.parametrize("where", ["seconds", "device"])
def test_too_little_memory_to_time_anything(
    where: str, lib: FakeCublasLt, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    def refuse(*arguments: Any) -> float:
        raise MemoryError("out of memory allocating 9 bytes")

    if where == "seconds":
        monkeypatch.setattr(_lt.GPU, "seconds", refuse)
        assert error(rng) < 1
        assert lib.calls == [0]
        return
    a, b, out = (xp.zeros((4, 4), "float32") for _ in range(3))
    with monkeypatch.context() as patch:
        patch.setitem(vars(xp), "empty", refuse)
        problem = _lt.problem_of(_lt.Operands(a, b, out), False, False, "float32")
        plan = _lt.planned(problem, _lt.Operands(a, b, out), xp)
    assert plan is not None
    assert plan.algorithm is not None
    assert plan.algorithm.data[0] == 1000
    assert not lib.calls
