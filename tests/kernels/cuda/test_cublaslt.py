"""The binding of cuBLASLt against what is documented of it, on a stand-in."""

from __future__ import annotations

import ctypes
import gc
import logging
from typing import Any

import numpy as np
import pytest
from fake_cublaslt import FakeCublasLt, narrow, wide

from vitkit.kernels.cuda import _cublaslt, _lt, _products
from vitkit.kernels.cuda._cublaslt import Binding, CublasError, Plan, Problem, Unsupported
from vitkit.testing import strict_device

xp = strict_device.xp
ROUNDING = {"float32": 2.0**-23, "float16": 2.0**-10, "uint16": 2.0**-7}


def stored(shape: tuple[int, ...], dtype: str, rng: np.random.Generator) -> np.ndarray:
    return narrow(rng.standard_normal(shape), np.dtype(dtype))


def error(
    rng: np.random.Generator,
    sizes: tuple[int, ...] = (5, 7, 3),
    *,
    turned: tuple[bool, bool] = (False, False),
    dtypes: tuple[str, str] = ("float32", "float32"),
    biased: bool = False,
    plus: str = "",
    batch: int = 0,
    precision: str = "float32",
) -> float:
    """Return the worst error of a product, in units of what rounding may lose."""
    m, n, k = sizes
    dtype, result = dtypes
    many = (batch,) if batch else ()
    a = stored((*many, *((k, m) if turned[0] else (m, k))), dtype, rng)
    b = stored((*many, *((n, k) if turned[1] else (k, n))), dtype, rng)
    bias = rng.standard_normal(n).astype("float32") if biased else None
    out, other = xp.asarray(stored((*many, m, n), result, rng)), stored((*many, m, n), result, rng)
    added = {"": None, "in place": out, "another": xp.asarray(other)}[plus]
    left, right = (
        wide(each).swapaxes(-1, -2) if t else wide(each)
        for each, t in zip((a, b), turned, strict=True)
    )
    expected = left @ right
    if bias is not None:
        expected += wide(narrow(bias, np.dtype(result)))
    if added is not None:
        expected += wide(added.get())
    arrays = xp.asarray(a), xp.asarray(b), out
    _lt.multiply(*arrays, *turned, None if bias is None else xp.asarray(bias), added, precision, xp)
    difference = np.abs(wide(out.get()) - expected).max()
    return float(difference / (ROUNDING[result] * np.abs(expected).max()))


TURNS = [(False, False), (False, True), (True, False)]


@pytest.mark.parametrize("turned", [*TURNS, (True, True)])
@pytest.mark.parametrize("plus", ["", "in place", "another"])
@pytest.mark.parametrize("biased", [False, True])
def test_products(
    turned: tuple[bool, bool], plus: str, biased: bool, lib: Any, rng: np.random.Generator
) -> None:
    assert error(rng, turned=turned, plus=plus, biased=biased) < 1
    assert error(rng, (33, 31, 65), turned=turned, plus=plus, biased=biased) < 1


@pytest.mark.parametrize("turned", TURNS)
@pytest.mark.parametrize(
    "dtypes",
    [("uint16", "uint16"), ("uint16", "float32"), ("float16", "float16"), ("float16", "float32")],
)
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_stored_numbers_and_batches(
    turned: tuple[bool, bool],
    dtypes: tuple[str, str],
    batch: int,
    lib: Any,
    rng: np.random.Generator,
) -> None:
    biased = not batch  # no product of a batch has a bias
    assert error(rng, (9, 4, 17), turned=turned, dtypes=dtypes, batch=batch, biased=biased) < 1


@pytest.mark.parametrize("turned", TURNS)
@pytest.mark.parametrize("dtypes", [("float32", "float32"), ("uint16", "uint16")])
def test_as_the_module_multiplies(
    turned: tuple[bool, bool], dtypes: tuple[str, str], lib: Any, rng: np.random.Generator
) -> None:
    dtype, result = dtypes
    a = xp.asarray(stored((9, 12) if turned[0] else (12, 9), dtype, rng))
    b = xp.asarray(stored((10, 9) if turned[1] else (9, 10), dtype, rng))
    bias = xp.asarray(wide(stored((10,), dtype, rng)).astype("float32"))
    plus, outs = xp.asarray(stored((12, 10), result, rng)), []
    for product in (_lt.multiply, _products.by_the_module):
        outs.append(xp.empty((12, 10), result))
        product(a, b, outs[-1], *turned, bias, plus, "float32", xp)
    found, expected = (wide(out.get()) for out in outs)
    assert np.abs(found - expected).max() <= 2 * ROUNDING[result] * np.abs(expected).max()


def test_arrays_that_lie_anywhere(lib: FakeCublasLt, rng: np.random.Generator) -> None:
    memory, numbers = xp.empty((400,), "float32"), rng.standard_normal(400).astype("float32")
    memory[...] = xp.asarray(numbers)
    for first in (0, 1, 2, 3, 5):  # each asks for algorithms that take such addresses
        a = memory[first : first + 6].reshape(2, 3)
        b = memory[100 + first : 112 + first].reshape(3, 4)
        bias = memory[200 + first : 204 + first]
        out = memory[300 + first : 308 + first].reshape(2, 4)
        _lt.multiply(a, b, out, False, False, bias, None, "float32", xp)
        expected = a.get().astype("float64") @ b.get() + bias.get()
        assert np.abs(out.get() - expected).max() < 1e-6 * np.abs(expected).max()
    assert {problem.alignment for _, problem in _lt.PLANS} >= {4, 8}


@pytest.mark.parametrize("result", ["float32", "uint16"])
@pytest.mark.parametrize("plus", ["", "in place"])
def test_biases_that_the_library_does_not_add(
    result: str,
    plus: str,
    lib: FakeCublasLt,
    rng: np.random.Generator,
    caplog: pytest.LogCaptureFixture,
) -> None:
    lib.epilogues.remove(4)
    with caplog.at_level(logging.INFO, "vitkit"):
        for _ in range(2):
            assert error(rng, dtypes=("uint16", result), biased=True, plus=plus) < 2
    assert len(caplog.records) == 1
    assert "is computed in another way: cublasLtMatmulAlgoGetHeuristic failed" in caplog.text
    assert bool(lib.calls) == (result == "float32")  # the other is the module's own product


FAULTS: dict[str, tuple[str, Any]] = {
    "flags that do not change places": ("TRANSPOSE_A", 4),
    "no bias": ("EPILOGUES", {("", False): 1, ("", True): 1}),
    "the bias of another attribute": ("BIAS", 7),
    "a batch of one": ("BATCH_COUNT", 6),
    "numbers of another type": ("TYPES", {"float32": 0, "float16": 14, "uint16": 2}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_noticed(
    fault: str, lib: Any, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    monkeypatch.setattr(_cublaslt, *FAULTS[fault])
    assert is_noticed(rng)


def is_noticed(rng: np.random.Generator) -> bool:
    with np.errstate(all="ignore"):
        errors = [
            error(rng, turned=(True, False), biased=True, plus="in place"),
            error(rng, turned=(False, True), dtypes=("uint16", "float32"), batch=2),
        ]
    return None in _lt.PLANS.values() or not max(errors) < 1


class WithoutBeta(Plan):
    """Forgets what is to be added."""

    def __init__(self, binding: Binding, problem: Problem) -> None:
        super().__init__(binding, problem)
        self._scales = ctypes.c_float(1.0), ctypes.c_float(0.0)


class RowsForColumns(Plan):
    """Says how many rows a matrix has where the length of a row is asked for."""

    def _layout(self, dtype: str, rows: int, columns: int) -> Any:
        sizes = ctypes.c_uint64(columns), ctypes.c_uint64(rows), ctypes.c_int64(rows)
        return self._new("cublasLtMatrixLayout", _cublaslt.TYPES[dtype], *sizes)


class TurnedRound(Plan):
    """Describes every matrix the other way round, and so along which axis a bias lies."""

    def _layout(self, dtype: str, rows: int, columns: int) -> Any:
        return super()._layout(dtype, columns, rows)


@pytest.mark.parametrize("plan", [WithoutBeta, RowsForColumns, TurnedRound])
def test_a_planted_wrong_plan_is_noticed(
    plan: type[Plan], lib: Any, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    assert not is_noticed(rng)
    _lt.PLANS.clear()
    monkeypatch.setattr(_lt, "Plan", plan)
    assert is_noticed(rng)


def test_the_fastest_is_taken_and_what_is_added_to_is_not_spoilt(
    lib: FakeCublasLt, rng: np.random.Generator
) -> None:
    assert error(rng, plus="in place") < 1
    assert lib.calls[-1] == 1
    assert len(lib.calls) > 3
    before = len(lib.calls)
    assert error(rng, plus="in place") < 1  # the plan is kept
    assert lib.calls[before:] == [1]


def test_nothing_is_timed_while_a_stream_captures(
    lib: FakeCublasLt, rng: np.random.Generator
) -> None:
    _lt.GPU.is_capturing = True
    assert error(rng) < 1
    assert lib.calls == [0]
    _lt.GPU.is_capturing = False
    assert error(rng) < 1
    assert lib.calls[-1] == 1  # and what was planned then is not kept


def test_what_the_library_cannot_run_is_not_taken(
    lib: FakeCublasLt, rng: np.random.Generator
) -> None:
    lib.refused = {1}
    assert error(rng) < 1
    assert lib.calls[-1] == 2
    lib.states, lib.calls = {1: 15, 2: 15}, []
    assert error(rng, (4, 4, 4)) < 1
    assert lib.calls == [0, 0]  # tried, then taken


def test_only_tf32_rounds_float32(lib: FakeCublasLt, rng: np.random.Generator) -> None:
    assert error(rng, (33, 31, 65)) < 1
    assert 1 < error(rng, (33, 31, 65), precision="tf32") < 2.0**-10 / ROUNDING["float32"]


@pytest.mark.parametrize("dtype", ["float32", "uint16", "float16"])
def test_parts_of_a_sum_are_not_rounded_to_16_bits(
    dtype: str, lib: FakeCublasLt, rng: np.random.Generator
) -> None:
    assert error(rng, dtypes=("uint16", dtype)) < 1
    # CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE; in float32 the output's type is as good.
    assert lib.asked[-1]["reductions"] == (7 if dtype == "float32" else 2)


def test_biases_change_from_call_to_call(lib: FakeCublasLt) -> None:
    problem = Problem(1, 1, 1, False, False, "float32", "float32", bias=True)
    plan = Plan(_cublaslt.library(), problem)
    one, out = np.ones(1, "float32"), np.zeros(1, "float32")
    for shift in (3.0, 4.0, 3.0):
        bias = np.array([shift], "float32")
        plan(one.ctypes.data, one.ctypes.data, 0, out.ctypes.data, bias=bias.ctypes.data)
        assert out[0] == 1 + shift


def test_each_device_has_its_own(lib: FakeCublasLt, rng: np.random.Generator) -> None:
    _cublaslt.library().device = _lt.GPU.device
    for device, stream in ((0, 5), (0, 6), (1, 5)):
        _lt.GPU.device_in_use, _lt.GPU.stream_in_use = device, stream
        assert error(rng) < 1
        room = _lt.WORKSPACES[device]
        assert lib.places[-1] == (room.data.ptr, _cublaslt.WORKSPACE, stream)
        assert room.nbytes == _cublaslt.WORKSPACE
    assert {device for device, _ in _lt.PLANS} == {0, 1}
    assert sum(made["kind"] == "handle" for made in lib.live.values()) == 2


def test_no_algorithm_and_failures_are_said(lib: FakeCublasLt, rng: np.random.Generator) -> None:
    lib.algorithms = 0
    problem = Problem(2, 2, 2, False, False, "float32", "float32", precision="tf32")
    with pytest.raises(Unsupported, match=r"cublasLtMatmulAlgoGetHeuristic failed: not supported"):
        Plan(_cublaslt.library(), problem).candidates()
    assert error(rng) < 1  # the module's own
    assert not lib.calls
    lib.cublasLtMatmulAlgoGetHeuristic = lambda *arguments: 14
    with pytest.raises(CublasError, match="internal error") as failure:
        Plan(_cublaslt.library(), problem).candidates()
    assert not isinstance(failure.value, Unsupported)
    _cublaslt.library().lib.cublasLtMatmulPreferenceCreate = lambda place: 3
    with pytest.raises(CublasError, match="allocation failed"):
        Plan(_cublaslt.library(), problem).candidates()


def test_descriptors_are_destroyed_with_their_plan() -> None:
    fake = FakeCublasLt()
    plan = Plan(Binding(fake), Problem(2, 3, 4, False, True, "float32", "float32", bias=True))
    plan.candidates()
    assert len(fake.live) == 6
    del plan
    gc.collect()
    with pytest.raises(KeyError):  # made half-way
        Plan(Binding(fake), Problem(2, 3, 4, False, True, "float32", "complex64"))
    gc.collect()
    assert [made["kind"] for made in fake.live.values()] == ["handle"]
