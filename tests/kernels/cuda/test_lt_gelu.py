"""Products that go through a GELU, by what is documented of the library, and who uses them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fake_cublaslt import FakeCublasLt, gelu, narrow, wide
from recorded import trained

from vitkit import ops
from vitkit.kernels.cuda import _cublaslt, _lt, _lt_gelu
from vitkit.kernels.cuda._lt_gelu import GeluProducts
from vitkit.ops.mlp import MLPArrays
from vitkit.testing import strict_device

xp = strict_device.xp
ROUNDING = {"float16": 2.0**-10, "uint16": 2.0**-7}  # from one stored number to the next
LOW = pytest.mark.parametrize("dtype", list(ROUNDING))
PRECISIONS = {"float16": "float16", "uint16": "bfloat16"}


def stored(shape: tuple[int, ...], dtype: str, rng: np.random.Generator, scale: float = 1) -> Any:
    return xp.asarray(narrow(scale * rng.standard_normal(shape), np.dtype(dtype)))


def error(got: Any, expected: np.ndarray, dtype: str = "uint16") -> float:
    """Return the worst difference, in units of what rounding the largest number may lose."""
    difference = np.abs(wide(got.get()) - expected).max()
    return float(difference / (ROUNDING[dtype] * np.abs(expected).max()))


@LOW
@pytest.mark.parametrize("keep", [False, True])
def test_forward(dtype: str, keep: bool, lib: Any, rng: np.random.Generator) -> None:
    x, fc1 = stored((2, 5, 12), dtype, rng), stored((16, 12), dtype, rng, 0.3)
    bias = xp.asarray(rng.standard_normal(16).astype("float32"))
    hidden, before = GeluProducts().forward(x, fc1, bias, keep, xp)
    h = wide(x.get()) @ wide(fc1.get()).T + wide(narrow(bias.get(), np.dtype(dtype)))
    assert hidden.shape == (2, 5, 16)
    assert error(hidden, gelu(h)[0], dtype) < 1
    assert (before is not None) == keep
    if before is not None:
        assert before.shape == (2, 5, 16)
        assert error(before, h, dtype) < 1


@LOW
def test_backward(dtype: str, lib: Any, rng: np.random.Generator) -> None:
    dy, before = stored((2, 5, 12), dtype, rng), stored((2, 5, 16), dtype, rng)
    fc2 = stored((12, 16), dtype, rng, 0.3)
    already = rng.standard_normal(16).astype("float32")
    dbias = xp.asarray(already.copy())
    dh = GeluProducts().backward(dy, fc2, before, dbias, xp)
    expected = wide(dy.get()) @ wide(fc2.get()) * gelu(wide(before.get()))[1]
    assert dh.shape == (2, 5, 16)
    assert error(dh, expected, dtype) < 1
    sums = expected.sum((0, 1))
    allowed = ROUNDING[dtype] * np.abs(sums).max() + 1e-6
    assert np.abs(dbias.get() - already - sums).max() < allowed


class Branch:
    """An MLP branch with 16-bit products, through the operations."""

    def __init__(self, dtype: str, rng: np.random.Generator, activation: str = "gelu_tanh") -> None:
        self.precision, self.activation = PRECISIONS[dtype], activation

        def new(*shape: int) -> np.ndarray:
            scale = shape[-1] ** -0.5 if len(shape) == 2 else 1.0
            return (scale * rng.standard_normal(shape)).astype("float32")

        self.x, self.dy, self.gain = new(2, 9, 32), new(2, 9, 32), new(2)
        self.weights = [new(32), new(32), new(64, 32), new(64), new(32, 64), new(32)]

    def results(self, module: Any, of: Callable[[Any], Any], keep: bool = True) -> list[Any]:
        """Return what comes out of it forward and backward, on an array module."""
        given = [module.asarray(each) for each in (self.x, self.dy, self.gain)]
        x, dy, gain = given
        weights = MLPArrays(*map(module.asarray, self.weights))
        settings = 1e-6, self.activation, gain, self.precision, keep
        y, kept = of(ops.mlp_branch)(x, weights, *settings, xp=module)
        if not keep:
            assert not kept
            return [y]
        self.kept = len(kept)
        grads = MLPArrays(*(module.asarray(np.ones_like(each)) for each in self.weights))
        backward = of(ops.mlp_branch_backward_inplace)
        dx = backward(dy, x, kept, weights, grads, gain, self.precision, xp=module)
        return [y, dx, *grads]


@LOW
@pytest.mark.parametrize("seconds", [0.5, 2.0])
def test_the_branch(
    dtype: str,
    seconds: float,
    through: FakeCublasLt,
    rng: np.random.Generator,
    together_takes: Callable[[float], None],
) -> None:
    together_takes(seconds)
    branch = Branch(dtype, rng)
    expected = branch.results(np, lambda op: op.reference)
    pays = seconds < 1 and dtype == "uint16"  # in float16 the sums could overflow
    for _ in range(2):  # the second time nothing is chosen
        found = branch.results(xp, lambda op: op)
        assert branch.kept == (5 if pays else 4)
        for got, wanted in zip(found, expected, strict=True):
            assert error(got, wanted.astype("float64"), dtype) < 4
    (y,) = branch.results(xp, lambda op: op, keep=False)
    assert error(y, expected[0].astype("float64"), dtype) < 4
    assert set(_lt_gelu.PAYS.values()) == {seconds < 1}
    assert through.described() >= ({36, 164, 208} if dtype == "uint16" else {36})


def a_plugin(*arguments: Any, **settings: Any) -> Any:
    return NotImplemented


@pytest.mark.parametrize("odd", ["float64", "gaps"])
def test_a_gradient_that_no_kernel_takes(
    odd: str, through: FakeCublasLt, rng: np.random.Generator
) -> None:
    branch = Branch("uint16", rng)
    expected = branch.results(np, lambda op: op.reference)

    def of(op: Any) -> Any:
        def call(dy: Any, *arguments: Any, **settings: Any) -> Any:
            wide = (
                dy.astype("float64")
                if odd == "float64"
                else dy.swapaxes(0, 1).copy().swapaxes(0, 1)
            )
            return op(wide, *arguments, **settings)

        return call if op is ops.mlp_branch_backward_inplace else op

    found = branch.results(xp, of)
    assert branch.kept == 5
    for got, wanted in zip(found, expected, strict=True):
        assert error(got, wanted.astype("float64")) < 4


def test_what_cannot_be_is_not_chosen(
    through: FakeCublasLt, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    branch = Branch("uint16", rng)
    with pytest.MonkeyPatch.context() as patch:  # a backward that would not know what is kept
        patch.setitem(ops.mlp_branch_backward_inplace.overrides, xp.__name__, a_plugin)
        branch.results(xp, lambda op: op)
    assert branch.kept == 4
    monkeypatch.setenv("VITKIT_DETERMINISTIC", "1")
    branch.results(xp, lambda op: op)
    assert branch.kept == 4
    assert not _lt_gelu.PAYS


@pytest.mark.parametrize("status", [7, 14, 15])
def test_what_the_library_proposes_and_then_refuses(
    status: int,
    through: FakeCublasLt,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    multiply = through.cublasLtMatmul

    def refuse(handle: Any, description: Any, *arguments: Any) -> int:
        ends = through.live[description.value]["epilogue"]
        return status if ends == 208 else multiply(handle, description, *arguments)

    monkeypatch.setattr(through, "cublasLtMatmul", refuse)
    for autotune in ("on", "off"):
        monkeypatch.setenv("VITKIT_AUTOTUNE", autotune)
        branch = Branch("uint16", rng)
        branch.results(xp, lambda op: op)
        assert branch.kept == 4
        assert list(_lt_gelu.PAYS.values()) == [False]
        _lt_gelu.PAYS.clear()


def test_too_little_memory_to_try_them(
    through: FakeCublasLt, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise MemoryError("Out of memory allocating 12,582,912 bytes")

    monkeypatch.setattr(GeluProducts, "_pays", full)
    branch = Branch("uint16", rng)
    branch.results(xp, lambda op: op)
    assert branch.kept == 4


def test_without_timing_they_are_taken(
    through: FakeCublasLt,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    together_takes: Callable[[float], None],
) -> None:
    monkeypatch.setenv("VITKIT_AUTOTUNE", "off")
    together_takes(2.0)
    branch = Branch("uint16", rng)
    branch.results(xp, lambda op: op)
    assert branch.kept == 5


def test_what_was_chosen_is_remembered(
    through: FakeCublasLt, rng: np.random.Generator, together_takes: Callable[[float], None]
) -> None:
    together_takes(2.0)
    branch = Branch("uint16", rng)
    branch.results(xp, lambda op: op)
    _lt_gelu.PAYS.clear()  # as in another process
    together_takes(0.5)
    branch.results(xp, lambda op: op)
    assert branch.kept == 4


@pytest.mark.parametrize("missing", [164, 208])
def test_what_the_library_lacks(
    missing: int, through: FakeCublasLt, rng: np.random.Generator
) -> None:
    through.epilogues.remove(missing)
    branch = Branch("uint16", rng)
    branch.results(xp, lambda op: op)
    assert branch.kept == 4
    assert branch.results(xp, lambda op: op, keep=False)
    assert list(_lt_gelu.PAYS.values()).count(False) == 1


def test_while_a_stream_captures(through: FakeCublasLt, rng: np.random.Generator) -> None:
    _lt.GPU.is_capturing = True
    branch = Branch("uint16", rng)
    branch.results(xp, lambda op: op)
    assert branch.kept == 4  # nothing can be tried
    assert not _lt_gelu.PAYS
    _lt.GPU.is_capturing = False
    branch.results(xp, lambda op: op)
    _lt.GPU.is_capturing = True
    branch.results(xp, lambda op: op)
    assert branch.kept == 5


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_no_other_gelu_and_no_float32(
    activation: str, through: FakeCublasLt, rng: np.random.Generator
) -> None:
    branch = Branch("uint16", rng, activation)
    branch.precision = "float32" if activation == "gelu_tanh" else branch.precision
    branch.results(xp, lambda op: op)
    assert branch.kept == 4
    assert not through.described() & {36, 164, 208}


def test_a_recorded_step(through: FakeCublasLt) -> None:
    syncs: list[Any] = []
    found, expected = trained(True, syncs), trained(False, syncs)
    assert {164, 208} <= through.described()
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not syncs


FAULTS: dict[str, tuple[Any, str, Any]] = {
    "a GELU that keeps nothing": (
        _cublaslt,
        "EPILOGUES",
        {**_cublaslt.EPILOGUES, ("gelu_kept", True): 36},
    ),
    "a GELU after which there is no bias": (
        _cublaslt,
        "EPILOGUES",
        {**_cublaslt.EPILOGUES, ("gelu", True): 4},
    ),
    "no sums": (_cublaslt, "EPILOGUES", {**_cublaslt.EPILOGUES, ("gelu_backward", True): 4}),
    "the wrong attribute for what a GELU is of": (_cublaslt, "BEFORE", 8),
    "no length of rows": (_cublaslt, "BEFORE_STEP", 11),
    "the sums are not added": (_lt_gelu, "add_column_sums", lambda *a, **k: None),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_noticed(
    fault: str, lib: Any, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    def both() -> None:
        for keep in (False, True):
            test_forward("uint16", keep, lib, rng)
        test_backward("uint16", lib, rng)

    both()
    _lt.PLANS.clear()
    monkeypatch.setattr(*FAULTS[fault])
    with pytest.raises((AssertionError, _cublaslt.CublasError)):
        both()
