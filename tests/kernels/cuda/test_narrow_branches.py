"""Both branches of a block where what flows through them is bits of bfloat16, on a GPU's kernels.

Of the same numbers in float32 the same kernels compute the same products, so bits may differ from
that by one rounding alone; and both are held to float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fake_cublaslt import FakeCublasLt
from recorded import trained
from where import ON_GPU

from vitkit import ViT, ops
from vitkit.backend.precision import from_bfloat16, to_bfloat16
from vitkit.kernels.cuda import (
    _branch,
    _lt,
    _lt_gelu,
    _lt_sums,
    attention_branch,
    casts,
    layer_norm,
    mlp,
)
from vitkit.ops.attention_branch import AttentionArrays
from vitkit.ops.mlp import MLPArrays
from vitkit.testing import strict_device
from vitkit.train.graph import GraphedForward

xp = strict_device.xp
HALF = 2.0**-8  # half a last digit of bfloat16, as a part of the number
NAMES = ["mlp_branch", "attention_branch"]
SIZES = {"even": (2, 9, 64, 1), "odd": (3, 5, 33, 3), "one token": (1, 1, 8, 2)}  # B, N, D, heads
# Roundings on the way to a result, each of half a last digit at most and independent, so that they
# add up by their squares: both operands of each product, what is stored between them, and the
# result.
ROUNDINGS = {"mlp_branch": 14, "attention_branch": 20}
names = pytest.mark.parametrize("name", NAMES)
gains = pytest.mark.parametrize("gained", [False, True])
sizes = pytest.mark.parametrize("size", SIZES)
emulated = pytest.mark.usefixtures("emulated")


def bits(x: np.ndarray) -> np.ndarray:
    return np.asarray(to_bfloat16(x, xp=np))


def wide(x: Any) -> np.ndarray:
    """Return what a device holds, as float32 or bits, in float64."""
    host = x.get() if hasattr(x, "get") else x
    return (from_bfloat16(host, xp=np) if host.dtype == "uint16" else host).astype("float64")


def apart(found: Any, expected: np.ndarray) -> float:
    """Return how far apart two arrays are, as a part of their norm."""
    return float(np.linalg.norm(wide(found) - expected) / np.linalg.norm(expected))


class Branch:
    """A branch on numbers that bfloat16 holds, given as its bits or as float32."""

    def __init__(
        self,
        name: str,
        rng: np.random.Generator,
        gained: bool = False,
        size: str = "even",
        activation: str = "gelu_tanh",
    ) -> None:
        batch, tokens, dim, heads = SIZES[size]
        self.name, self.precision = name, "bfloat16"

        def new(*shape: int) -> np.ndarray:
            scale = shape[-1] ** -0.5 if len(shape) == 2 else 1.0
            return (scale * rng.standard_normal(shape)).astype("float32")

        first, second = (3 * dim, dim) if name == "attention_branch" else (dim + 32, dim + 32)
        self.kind: Any = AttentionArrays if name == "attention_branch" else MLPArrays
        self.settings = (heads, 1e-6) if name == "attention_branch" else (1e-6, activation)
        shapes = [(dim,), (dim,), (first, dim), (first,), (dim, second), (dim,)]
        self.weights = [new(*shape) for shape in shapes]
        self.x, self.dy = (bits(new(batch, tokens, dim)) for _ in range(2))
        self.gain = rng.choice([1 / 0.9, 1.5], batch).astype("float32") if gained else None
        self.forward, self.backward = getattr(ops, name), getattr(ops, f"{name}_backward_inplace")
        self.syncs: list[Any] = []
        self.gaps = False
        self.rounds_bias = ON_GPU  # as the library does for a result in 16 bits

    def put(self, host: np.ndarray) -> Any:
        """Return an array on the device, which lies there in another order of axes for gaps."""
        if not self.gaps:
            return xp.asarray(host)
        return xp.asarray(host.swapaxes(0, 1).copy()).swapaxes(0, 1)

    def results(self, narrow: bool = True, narrow_dy: bool = True, keep: bool = True) -> list[Any]:
        """Return y, dx and the gradients, which are added to ones, on the device."""
        x, dy = (
            self.put(each if low else from_bfloat16(each, xp=np))
            for each, low in ((self.x, narrow), (self.dy, narrow_dy and narrow))
        )
        weights = self.kind(*map(xp.asarray, self.weights))
        grads = self.kind(*(xp.asarray(np.ones_like(each)) for each in self.weights))
        gain = None if self.gain is None else xp.asarray(self.gain)
        with strict_device.count_syncs() as syncs:
            given = *self.settings, gain, self.precision, keep
            y, kept = self.forward(x, weights, *given, xp=xp)
            rest = weights, grads, gain, self.precision
            dx = self.backward(dy, x, kept, *rest, xp=xp) if keep else None
        self.syncs += syncs
        self.kept = len(kept)
        np.testing.assert_array_equal(wide(x), wide(self.x))
        np.testing.assert_array_equal(wide(dy), wide(self.dy))
        return [y, dx, *grads]

    def exact(self) -> list[np.ndarray]:
        """Return the same in float64."""
        x, dy = wide(self.x), wide(self.dy)
        weights = self.kind(*(each.astype("float64") for each in self.weights))
        grads = self.kind(*(np.ones_like(each) for each in weights))
        gain = None if self.gain is None else self.gain.astype("float64")
        given = *self.settings, gain, "float32", True  # of operands, which are rounded to nothing
        y, kept = self.forward.reference(x, weights, *given, xp=np)
        rest = weights, grads, gain, "float32"
        return [y, self.backward.reference(dy, x, kept, *rest, xp=np), *grads]

    def wrong(self, narrow_dy: bool = True) -> str:
        """Return what is wrong with this branch of bits, or nothing."""
        found, widened = self.results(narrow_dy=narrow_dy), self.results(narrow=False)
        if [each.dtype.name for each in found] != ["uint16"] * 2 + ["float32"] * 6:
            return "a dtype"
        tolerance = ROUNDINGS[self.name] ** 0.5 * HALF
        for which, (got, same, exact) in enumerate(zip(found, widened, self.exact(), strict=True)):
            rounded = which == 0 and self.rounds_bias and self.gain is None
            shift = np.abs(self.weights[-1]).max() if rounded else 0.0
            rounding = HALF * (np.abs(wide(same)) + shift) if which < 2 else 0.0
            allowed = rounding + 1e-5 * np.abs(wide(same)).max()
            if not (np.abs(wide(got) - wide(same)) <= allowed).all():
                return f"result {which} is not that of float32"
            if not apart(got, exact) < tolerance:
                return f"result {which} is not exact"
        return "it waits" if self.syncs else ""


@emulated
@names
@gains
@sizes
def test_bits_are_float32_rounded_once(
    name: str, gained: bool, size: str, rng: np.random.Generator
) -> None:
    branch = Branch(name, rng, gained, size)
    assert branch.wrong() == ""
    y, *_ = branch.results(keep=False)
    assert branch.kept == 0
    np.testing.assert_array_equal(y.get(), branch.results()[0].get())


@emulated
@names
@gains
def test_a_gradient_that_comes_in_float32(
    name: str, gained: bool, rng: np.random.Generator
) -> None:
    assert Branch(name, rng, gained).wrong(narrow_dy=False) == ""


@pytest.mark.usefixtures("emulated_once")
@gains
def test_another_activation(gained: bool, rng: np.random.Generator) -> None:
    assert Branch("mlp_branch", rng, gained, activation="gelu").wrong() == ""


@names
@gains
@sizes
@pytest.mark.parametrize("seconds", [0.5, 2.0])
def test_by_the_library(
    name: str,
    gained: bool,
    size: str,
    seconds: float,
    through: FakeCublasLt,
    rng: np.random.Generator,
    together_takes: Callable[[float], None],
) -> None:
    """Products add what flows in, and a bias, in bfloat16; sums and GELUs may be parts of them."""
    together_takes(seconds)
    branch = Branch(name, rng, gained, size)
    branch.rounds_bias = True
    for _ in range(2):  # the second time nothing is chosen
        assert branch.wrong() == ""
    added = [problem for _, problem in _lt.PLANS if problem.adds and problem.out == "uint16"]
    assert bool(added) is (not gained)
    assert all(problem.bias for problem in added)
    if name == "mlp_branch" and size != "odd":  # whose hidden rows are not whole vectors
        assert branch.kept == (5 if seconds < 1 else 4)
        assert set(_lt_gelu.PAYS.values()) == {seconds < 1}
    # The sums of a gradient that needs no kernel of its own may come with a product.
    outputs = SIZES[size][2]
    of_dy = [pays for (_, _, dy, *_), pays in _lt_sums.PAYS.items() if dy[1] == outputs]
    assert set(of_dy) == (set() if gained else {seconds < 1})


def test_a_gradient_in_float32_after_a_gelu_in_the_product(
    through: FakeCublasLt, rng: np.random.Generator, together_takes: Callable[[float], None]
) -> None:
    """What no kernel takes reads the derivative that was rounded, as the reference does."""
    together_takes(0.5)
    branch = Branch("mlp_branch", rng)
    found = branch.results(narrow_dy=False)
    assert branch.kept == 5
    assert [each.dtype.name for each in found] == ["uint16"] * 2 + ["float32"] * 6
    for got, exact in zip(found, branch.exact(), strict=True):
        assert apart(got, exact) < ROUNDINGS["mlp_branch"] ** 0.5 * HALF


@pytest.mark.usefixtures("emulated_once")
@names
@pytest.mark.parametrize("precision", ["float32", "tf32", "float16"])
def test_products_in_another_precision(name: str, precision: str, rng: np.random.Generator) -> None:
    """A model does not do this, but bits are bits."""
    branch = Branch(name, rng, True)
    branch.precision = precision
    assert branch.wrong() == ""


@pytest.mark.usefixtures("emulated_once")
@names
def test_views_empty_batches_and_wide_rows(
    name: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    branch = Branch(name, rng)
    expected = [each.get() for each in branch.results()]
    branch.gaps = True
    assert not branch.put(branch.x).flags.c_contiguous
    found = [each.get() for each in branch.results()]
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, two)
    monkeypatch.setattr(_branch, "WIDEST", 63)  # what is wider is left to the reference
    assert branch.wrong() == ""
    branch.x, branch.dy = branch.x[:0], branch.dy[:0]
    y, dx, *grads = branch.results()
    assert (y.shape, y.dtype, dx.shape, dx.dtype) == ((0, 9, 64), "uint16") * 2
    assert all((each.get() == 1).all() for each in grads)


def test_a_step_waits_for_nothing_and_its_graph_repeats_it(
    through: FakeCublasLt, together_takes: Callable[[float], None]
) -> None:
    together_takes(0.5)
    for options in ({}, {"drop_path": 0.5}, {"dropout": 0.2}):
        syncs: list[Any] = []
        given = {**options, "residual_in_fp32": False}
        found, expected = trained(True, syncs, **given), trained(False, syncs, **given)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)
        assert not syncs
        wide = trained(False, syncs, **options)
        assert any((one != other).any() for one, other in zip(found, wide, strict=True))


def test_inference_as_a_graph(through: FakeCublasLt, rng: np.random.Generator) -> None:
    sizes = {"dim": 32, "depth": 2, "num_heads": 1, "mlp_dim": 48, "num_classes": 3}
    kind = {"precision": "bfloat16", "residual_in_fp32": False, "init": "scratch"}
    model = ViT("Ti/4", image_size=8, xp=xp, **sizes, **kind)
    infer, seen = GraphedForward(model), []
    for _ in range(5):
        images = xp.asarray(rng.standard_normal((2, 3, 8, 8)).astype("float32"))
        expected = model(images).get()
        with strict_device.count_syncs() as syncs:
            logits = infer(images)
        seen += syncs
        np.testing.assert_array_equal(logits.get(), expected)
    assert not seen


def without_sums(branch: Any, dy: Any, gain: Any, x: Any, dweight: Any, dbias: Any) -> Any:
    branch.add_weight_gradient(dy, x, dweight)
    return dy


def without_plus(branch: Any, a: Any, b: Any, out: Any, **options: Any) -> None:
    if out.dtype == "uint16":
        options["plus"] = None
    MULTIPLY(branch, a, b, out, **options)


def without_residual(
    du: Any, x: Any, weight: Any, mean: Any, rstd: Any, dy: Any, *rest: Any
) -> Any:
    return layer_norm.normalize_backward(du, x, weight, mean, rstd, None, *rest)


def rounded_twice(residual: Any, y: Any, gain: Any, module: Any) -> Any:
    if residual.dtype == "uint16":
        y = casts.cast(casts.cast(y, "uint16", module), "float32", module)
    return casts.add_gained(residual, y, gain, module)


def without_gain(dy: Any, gain: Any, *rest: Any) -> Any:
    return casts.gained_cast(dy, None, *rest)


MULTIPLY = _branch.Branch._multiply
FAULTS: dict[str, tuple[Any, str, Any]] = {
    "no residual beside a product": (_branch.Branch, "_multiply", without_plus),
    "no residual beside gains": (
        _branch,
        "add_gained",
        lambda residual, y, gain, xp: casts.add_gained(xp.zeros_like(residual), y, gain, xp),
    ),
    "a branch rounded before it is added": (_branch, "add_gained", rounded_twice),
    "gradients without gains": (_branch, "gained_cast", without_gain),
    "no sums of a gradient": (_branch.Branch, "output_gradient", without_sums),
    "an MLP's gradient without that of the residual": (mlp, "normalize_backward", without_residual),
    "attention's without that of the residual": (
        attention_branch,
        "normalize_backward",
        without_residual,
    ),
}


@pytest.mark.usefixtures("emulated_once")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_noticed(
    fault: str, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    def is_noticed() -> bool:
        found = [Branch(name, rng, gained).wrong() for name in NAMES for gained in (False, True)]
        return any(found)

    assert not is_noticed()
    monkeypatch.setattr(*FAULTS[fault])
    assert is_noticed()
