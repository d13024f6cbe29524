"""Products that sum an operand, by what is documented of the library, and who uses them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from fake_cublaslt import FakeCublasLt, narrow, wide
from recorded import trained

from vitkit import ops
from vitkit.kernels.cuda import _cublaslt, _lt, _lt_sums, _products
from vitkit.ops.attention_branch import AttentionArrays
from vitkit.testing import strict_device

xp = strict_device.xp
BGRADB = 512  # as NVIDIA's header has it
EPS = float(np.finfo("float32").eps)
PRECISIONS = {"uint16": "bfloat16", "float16": "float16"}
LOW = pytest.mark.parametrize("dtype", list(PRECISIONS))
Take = Callable[[float], None]


def wrong(dtype: str, adds: bool, rng: np.random.Generator, scale: float = 1.0) -> str:
    """Return which gradient of an affine map is wrong, or nothing."""
    dy = narrow(scale * (1 + rng.standard_normal((29, 24))), np.dtype(dtype))
    x = narrow(rng.standard_normal((29, 16)), np.dtype(dtype))
    before = [rng.standard_normal(shape).astype("float32") for shape in ((24, 16), (24,))]
    dweight, dbias = (xp.asarray(each.copy()) for each in before)
    _products.gradients(xp.asarray(dy), xp.asarray(x), dweight, dbias, adds=adds, xp=xp)
    exact = [wide(dy).T @ wide(x), wide(dy).sum(0)]
    if adds:
        exact = [one + other for one, other in zip(exact, before, strict=True)]
    for name, found, expected in zip(("weight", "bias"), (dweight, dbias), exact, strict=True):
        if not np.abs(found.get() - expected).max() <= 64 * EPS * np.abs(expected).max():
            return name
    return ""


@LOW
@pytest.mark.parametrize("adds", [False, True])
def test_values(
    dtype: str,
    adds: bool,
    through: FakeCublasLt,
    rng: np.random.Generator,
    together_takes: Take,
) -> None:
    together_takes(0.5)
    for _ in range(2):  # the second time nothing is chosen
        assert not wrong(dtype, adds, rng)
    assert list(_lt_sums.PAYS.values()) == [True]
    (ended,) = (problem for _, problem in _lt.PLANS if problem.ends)
    assert (ended.bias, ended.adds, ended.out) == (True, adds, "float32")


def test_sums_beyond_float16(
    through: FakeCublasLt, rng: np.random.Generator, together_takes: Take
) -> None:
    together_takes(0.5)
    assert not wrong("float16", True, rng, scale=1e4)
    assert BGRADB in through.described()


@pytest.mark.parametrize("seconds", [0.5, 2.0])
def test_what_is_faster_is_used_and_remembered(
    seconds: float, through: FakeCublasLt, rng: np.random.Generator, together_takes: Take
) -> None:
    together_takes(seconds)
    assert not wrong("uint16", True, rng)
    assert list(_lt_sums.PAYS.values()) == [seconds < 1]
    _lt_sums.PAYS.clear()  # as in another process
    together_takes(2.5 - seconds)
    assert not wrong("uint16", True, rng)
    assert list(_lt_sums.PAYS.values()) == [seconds < 1]
    assert not wrong("uint16", False, rng)  # which was not timed before
    assert list(_lt_sums.PAYS.values()) == [seconds < 1, seconds > 1]


@pytest.mark.parametrize(("name", "value"), [("AUTOTUNE", "off"), ("DETERMINISTIC", "1")])
def test_without_timing_it_is_not_used(
    name: str,
    value: str,
    through: FakeCublasLt,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(f"VITKIT_{name}", value)
    assert not wrong("uint16", True, rng)
    assert BGRADB not in through.described()


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_not_in_float32(
    precision: str, through: FakeCublasLt, rng: np.random.Generator, together_takes: Take
) -> None:
    together_takes(0.5)
    dy, x, weight = (
        xp.asarray(rng.standard_normal(shape).astype("float32"))
        for shape in ((9, 24), (9, 16), (24, 16))
    )
    *_, dbias = ops.linear_backward(dy, x, weight, precision=precision, xp=xp)
    expected = dy.get().sum(0, dtype="float64")
    assert np.abs(dbias.get() - expected).max() < 8 * EPS * np.abs(expected).max()
    assert BGRADB not in through.described()


def test_while_a_stream_captures(
    through: FakeCublasLt, rng: np.random.Generator, together_takes: Take
) -> None:
    together_takes(0.5)
    _lt.GPU.is_capturing = True
    assert not wrong("uint16", True, rng)
    assert not _lt_sums.PAYS  # nothing can be tried
    _lt.GPU.is_capturing = False
    assert not wrong("uint16", True, rng)
    _lt.GPU.is_capturing, through.calls = True, []
    assert not wrong("uint16", True, rng)
    assert len(through.calls) == 1
    assert BGRADB in through.described()


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Return what keeps the lines of the log."""
    with caplog.at_level(logging.INFO, "vitkit"):
        yield caplog


def falls_back(reason: str, said: pytest.LogCaptureFixture, rng: np.random.Generator) -> None:
    for _ in range(2):
        assert not wrong("uint16", True, rng)
    (line,) = said.messages
    assert line.startswith("The gradient of a bias has a kernel of its own, not a product: ")
    assert reason in line
    assert list(_lt_sums.PAYS.values()) == [False]


def test_what_the_library_lacks(
    through: FakeCublasLt, rng: np.random.Generator, said: pytest.LogCaptureFixture
) -> None:
    through.epilogues.remove(BGRADB)
    falls_back("no algorithm for 1x24x16x29 yn uint16 float32", said, rng)


@pytest.mark.parametrize("since", ["it is timed", "it was chosen"])
@pytest.mark.parametrize("status", [7, 13, 14, 15])
def test_what_the_library_proposes_and_then_refuses(
    status: int,
    since: str,
    through: FakeCublasLt,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    together_takes: Take,
    said: pytest.LogCaptureFixture,
) -> None:
    together_takes(0.5)
    if since == "it was chosen":
        assert not wrong("uint16", True, rng)
        assert list(_lt_sums.PAYS.values()) == [True]
    multiply = through.cublasLtMatmul

    def refuse(handle: Any, description: Any, *arguments: Any) -> int:
        ends = through.live[description.value]["epilogue"]
        return status if ends == BGRADB else multiply(handle, description, *arguments)

    monkeypatch.setattr(through, "cublasLtMatmul", refuse)
    lacks = status == 15 and since == "it is timed"
    falls_back("not supported" if lacks else f"({status})", said, rng)


def test_too_little_memory_to_try_it(
    through: FakeCublasLt,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    said: pytest.LogCaptureFixture,
) -> None:
    def full(*arguments: Any) -> None:
        raise MemoryError("Out of memory allocating 7,077,888 bytes")

    monkeypatch.setattr(_lt_sums, "_pays", full)
    falls_back("allocating 7,077,888 bytes", said, rng)


def test_too_little_memory_for_one_that_was_chosen(
    through: FakeCublasLt,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    together_takes: Take,
    said: pytest.LogCaptureFixture,
) -> None:
    """It is for whoever asked, who may make room; the choice stays."""
    together_takes(0.5)
    assert not wrong("uint16", True, rng)

    def full(*arguments: Any) -> None:
        raise MemoryError("Out of memory allocating 7,077,888 bytes")

    with monkeypatch.context() as short:
        short.setattr(_lt_sums, "_multiply_and_sum", full)
        with pytest.raises(MemoryError):
            wrong("uint16", True, rng)
    assert list(_lt_sums.PAYS.values()) == [True]
    assert not said.messages


def test_a_library_that_does_not_start(
    through: FakeCublasLt, rng: np.random.Generator, said: pytest.LogCaptureFixture
) -> None:
    _cublaslt.library().refusal = "it does not start"
    assert not wrong("uint16", True, rng)
    assert not said.messages  # it was said where it was found
    assert not _lt_sums.PAYS


class Branch:
    """An attention branch with 16-bit products, through the operations."""

    def __init__(self, dtype: str, rng: np.random.Generator) -> None:
        self.precision = PRECISIONS[dtype]

        def new(*shape: int) -> np.ndarray:
            scale = shape[-1] ** -0.5 if len(shape) == 2 else 1.0
            return (scale * rng.standard_normal(shape)).astype("float32")

        self.x, self.dy = new(2, 9, 32), new(2, 9, 32)
        self.weights = [new(32), new(32), new(96, 32), new(96), new(32, 32), new(32)]

    def results(self, module: Any, of: Callable[[Any], Any]) -> list[Any]:
        """Return what comes out of it forward and backward, on an array module."""
        x, dy = module.asarray(self.x), module.asarray(self.dy)
        weights = AttentionArrays(*map(module.asarray, self.weights))
        settings = 1, 1e-6, None, self.precision, True
        y, kept = of(ops.attention_branch)(x, weights, *settings, xp=module)
        grads = AttentionArrays(*(module.asarray(np.ones_like(each)) for each in self.weights))
        backward = of(ops.attention_branch_backward_inplace)
        dx = backward(dy, x, kept, weights, grads, None, self.precision, xp=module)
        return [y, dx, *grads]


@LOW
@pytest.mark.parametrize("seconds", [0.5, 2.0])
def test_the_branch(
    dtype: str,
    seconds: float,
    through: FakeCublasLt,
    rng: np.random.Generator,
    together_takes: Take,
) -> None:
    together_takes(seconds)
    branch = Branch(dtype, rng)
    expected = branch.results(np, lambda op: op.reference)
    found = branch.results(xp, lambda op: op)
    rounding = {"float16": 2.0**-10, "uint16": 2.0**-7}[dtype]
    for got, wanted in zip(found, expected, strict=True):
        assert np.abs(got.get() - wanted).max() < 4 * rounding * np.abs(wanted).max()
    assert (BGRADB in through.described()) or seconds > 1
    assert [(case[2], pays) for case, pays in _lt_sums.PAYS.items()] == [((18, 96), seconds < 1)]


@LOW
def test_an_affine_map(
    dtype: str, through: FakeCublasLt, rng: np.random.Generator, together_takes: Take
) -> None:
    """As the patch embedding is: its gradients are written, not added."""
    together_takes(0.5)
    given = [
        xp.asarray(rng.standard_normal(shape).astype("float32"))
        for shape in ((2, 9, 24), (2, 9, 16), (24, 16))
    ]
    precision = PRECISIONS[dtype]
    found = ops.linear_backward(*given, precision=precision, xp=xp)
    host = [each.get() for each in given]
    expected = ops.linear_backward.reference(*host, precision=precision, xp=np)
    rounding = {"float16": 2.0**-10, "uint16": 2.0**-7}[dtype]
    for got, wanted in zip(found, expected, strict=True):
        assert np.abs(got.get() - wanted).max() < rounding * np.abs(wanted).max()
    assert [(case[-1], pays) for case, pays in _lt_sums.PAYS.items()] == [(False, True)]


def test_a_recorded_step(through: FakeCublasLt, together_takes: Take) -> None:
    together_takes(0.5)
    syncs: list[Any] = []
    found, expected = trained(True, syncs), trained(False, syncs)
    assert True in _lt_sums.PAYS.values()
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not syncs


def written(dy: Any, x: Any, dweight: Any, dbias: Any, adds: bool, module: Any) -> None:
    given = _lt.Operands(dy, x, dweight, dbias, dweight if adds else None)
    _lt.run_ended(given, True, False, "sums", module)


FAULTS: dict[str, tuple[Any, str, Any]] = {
    "the sums of the other operand": (
        _cublaslt,
        "EPILOGUES",
        {**_cublaslt.EPILOGUES, ("sums", True): 256},
    ),
    "a bias is added": (_cublaslt, "EPILOGUES", {**_cublaslt.EPILOGUES, ("sums", True): 4}),
    "no sums": (_cublaslt, "EPILOGUES", {**_cublaslt.EPILOGUES, ("sums", True): 1}),
    "sums at another attribute": (_cublaslt, "BIAS", 11),
    "the sums are not added": (_lt_sums, "add_column_sums", lambda *a, **k: None),
    "the sums are written where they are to be added": (
        _lt_sums,
        "_multiply_and_sum",
        written,
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_noticed(
    fault: str,
    through: FakeCublasLt,
    monkeypatch: pytest.MonkeyPatch,
    rng: np.random.Generator,
    together_takes: Take,
) -> None:
    together_takes(0.5)

    def is_noticed() -> bool:
        found = [wrong("uint16", adds, rng) for adds in (False, True)]
        return any(found) or False in _lt_sums.PAYS.values()

    assert not is_noticed()
    _lt.PLANS.clear()
    monkeypatch.setattr(*FAULTS[fault])
    assert is_noticed()
