"""What flows between blocks as bits of bfloat16, against the definition and against float32."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vitkit import ops
from vitkit.backend import ArrayModule, to_numpy
from vitkit.ops.attention_branch import AttentionArrays
from vitkit.ops.mlp import MLPArrays
from vitkit.ops.residual import as_wide, is_narrow, narrowed, widened
from vitkit.testing import strict_device

EVERY = np.arange(2**16, dtype="uint16")
D, HIDDEN, HEADS, EPS = 12, 20, 2, 1e-6
BRANCHES = ["attention_branch", "mlp_branch"]
branches = pytest.mark.parametrize("name", BRANCHES)
gains = pytest.mark.parametrize("gained", [True, False])


def number(bits: int) -> float:
    """Return what 16 bits stand for: a sign, eight bits of exponent and seven of fraction."""
    sign, exponent, fraction = -1.0 if bits >> 15 else 1.0, bits >> 7 & 0xFF, bits & 0x7F
    if exponent == 0xFF:
        return math.nan if fraction else sign * math.inf
    if exponent == 0:
        return sign * math.ldexp(fraction, -126 - 7)
    return sign * math.ldexp(128 + fraction, exponent - 127 - 7)


def is_nan(bits: np.ndarray) -> np.ndarray:
    return (bits & 0x7FFF) > 0x7F80


def test_every_number_there_and_back(xp: ArrayModule, bring: Any) -> None:
    wide = widened(bring(EVERY, "uint16"), xp=xp)
    assert wide.dtype == "float32"
    host = to_numpy(wide)
    expected = np.array([number(int(bits)) for bits in EVERY])
    np.testing.assert_array_equal(host, expected)
    np.testing.assert_array_equal(np.signbit(host), EVERY >> 15 == 1)
    back = narrowed(wide, xp=xp)
    assert back.dtype == "uint16"
    nan = is_nan(EVERY)
    np.testing.assert_array_equal(to_numpy(back)[~nan], EVERY[~nan])
    assert is_nan(to_numpy(back)[nan]).all()


def test_rounds_to_the_nearest_and_ties_to_even(xp: ArrayModule, bring: Any) -> None:
    """Between each two neighbours: a quarter, the middle, and the float32 beside the middle."""
    below = np.arange(0x7F80, dtype="uint32")  # the last is the largest number there is
    for sign in (0, 0x8000):
        first = (below | sign) << 16
        for step, up in ((0x4000, 0), (0x7FFF, 0), (0x8001, 1), (0xC000, 1)):
            found = narrowed(bring((first + step).view("float32"), "float32"), xp=xp)
            np.testing.assert_array_equal(to_numpy(found), (below | sign) + up)
        found = narrowed(bring((first + 0x8000).view("float32"), "float32"), xp=xp)
        np.testing.assert_array_equal(to_numpy(found), (below + (below & 1)) | sign)


def test_odd_numbers(xp: ArrayModule, bring: Any) -> None:
    bits = np.array([0x7F800001, 0xFFFFFFFF, 0x7FC00000], "uint32")  # one is told by its last bit
    assert is_nan(to_numpy(narrowed(bring(bits.view("float32"), "float32"), xp=xp))).all()
    odd = [np.inf, -np.inf, 3.4e38, -3.4e38, 0.0, -0.0, 1e-45]
    found = to_numpy(narrowed(bring(odd, "float32"), xp=xp)).tolist()
    assert found == [0x7F80, 0xFF80, 0x7F80, 0xFF80, 0, 0x8000, 0]


@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 0, 3), (3, 1, 5)])
def test_keep_the_shape(shape: tuple[int, ...], xp: ArrayModule, bring: Any) -> None:
    bits = narrowed(bring(np.full(shape, 1.5), "float32"), xp=xp)
    assert (bits.shape, bits.dtype) == (shape, np.uint16)
    wide = widened(bits, xp=xp)
    assert (wide.shape, wide.dtype) == (shape, np.float32)
    assert (to_numpy(wide) == 1.5).all()


def test_of_views(xp: ArrayModule, rng: np.random.Generator, bring: Any) -> None:
    host = rng.standard_normal((4, 6, 5)).astype("float32")
    whole = to_numpy(narrowed(bring(host, "float32"), xp=xp))
    for turn in (lambda a: a[:, ::2], lambda a: a.swapaxes(0, 2), lambda a: a[::-1, 1:]):
        found = narrowed(turn(bring(host, "float32")), xp=xp)
        np.testing.assert_array_equal(to_numpy(found), turn(whole))
        wide = widened(turn(bring(whole, "uint16")), xp=xp)
        expected = turn(whole).astype("uint32") << 16
        np.testing.assert_array_equal(to_numpy(wide).view("uint32"), expected)


def test_only_bits_are_narrow(xp: ArrayModule, bring: Any) -> None:
    bits, wide = bring([0x3F80], "uint16"), bring([2.0], "float32")
    assert is_narrow(bits)
    assert not is_narrow(wide)
    assert to_numpy(as_wide(bits, xp=xp)).tolist() == [1.0]
    assert as_wide(wide, xp=xp) is wide


class Branch:
    """A call of a branch, forward and backward; what comes out is on the host."""

    def __init__(self, name: str, rng: np.random.Generator, gained: bool, xp: ArrayModule) -> None:
        self.name, self.xp = name, xp
        self.forward, self.backward = getattr(ops, name), getattr(ops, f"{name}_backward_inplace")
        first = 3 * D if name == "attention_branch" else HIDDEN
        second = D if name == "attention_branch" else HIDDEN
        self.kind = AttentionArrays if name == "attention_branch" else MLPArrays
        self.settings = (HEADS, EPS) if name == "attention_branch" else (EPS, "gelu")
        shapes = [(D,), (D,), (first, D), (first,), (D, second), (D,)]
        self.weights = [rng.standard_normal(shape).astype("float32") for shape in shapes]
        self.gain = xp.asarray(rng.random(2).astype("float32")) if gained else None
        self.x, self.dy = (self.bits(rng, (2, 5, D)) for _ in range(2))

    def bits(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
        host = rng.standard_normal(shape).astype("float32")
        return narrowed(self.xp.asarray(host), xp=self.xp)

    def on_device(self) -> Any:
        return self.kind(*map(self.xp.asarray, self.weights))

    def there(self, x: Any, precision: str, keep: bool = True) -> tuple[Any, tuple[Any, ...]]:
        given = x, self.on_device(), *self.settings, self.gain, precision, keep
        y, kept = self.forward(*given, xp=self.xp)
        return y, kept

    def back(
        self, dy: Any, x: Any, kept: tuple[Any, ...], precision: str
    ) -> tuple[Any, list[np.ndarray]]:
        grads = self.kind(*(self.xp.asarray(np.ones_like(each)) for each in self.weights))
        given = dy, x, kept, self.on_device(), grads, self.gain, precision
        dx = self.backward(*given, xp=self.xp)
        return dx, [to_numpy(each) for each in grads]


@branches
@gains
@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_a_branch_of_bits_is_that_of_their_numbers_rounded(
    name: str, gained: bool, precision: str, xp: ArrayModule, rng: np.random.Generator
) -> None:
    branch = Branch(name, rng, gained, xp)
    x, dy = branch.x, branch.dy
    before = to_numpy(x).copy(), to_numpy(dy).copy()
    wide, dwide = widened(x, xp=xp), widened(dy, xp=xp)
    y, kept = branch.there(x, precision)
    exact, kept_wide = branch.there(wide, precision)
    assert (y.dtype, exact.dtype) == (np.uint16, np.float32)
    np.testing.assert_array_equal(to_numpy(y), to_numpy(narrowed(exact, xp=xp)))
    assert [each.dtype for each in kept] == [each.dtype for each in kept_wide]
    for one, two in zip(kept, kept_wide, strict=True):
        np.testing.assert_array_equal(to_numpy(one), to_numpy(two))
    assert branch.there(x, precision, keep=False)[1] == ()
    exact_dx, exact_grads = branch.back(dwide, wide, kept_wide, precision)
    for given in (dy, dwide):  # of one dtype, or what comes from a layer that gave float32
        dx, grads = branch.back(given, x, kept, precision)
        assert dx.dtype == "uint16"
        np.testing.assert_array_equal(to_numpy(dx), to_numpy(narrowed(exact_dx, xp=xp)))
        for one, two in zip(grads, exact_grads, strict=True):
            assert one.dtype == "float32"
            np.testing.assert_array_equal(one, two)
            assert (one != 1).any()
    np.testing.assert_array_equal(to_numpy(x), before[0])
    np.testing.assert_array_equal(to_numpy(dy), before[1])


@branches
def test_gradients_are_added(name: str, xp: ArrayModule, rng: np.random.Generator) -> None:
    branch = Branch(name, rng, True, xp)
    _, kept = branch.there(branch.x, "bfloat16")
    _, grads = branch.back(branch.dy, branch.x, kept, "bfloat16")
    branch.dy = narrowed(xp.zeros((2, 5, D), "float32"), xp=xp)
    _, nothing = branch.back(branch.dy, branch.x, kept, "bfloat16")
    for one, none in zip(grads, nothing, strict=True):
        np.testing.assert_array_equal(none, np.ones_like(none))  # as they were
        assert np.abs(one - 1).max() > 0.1


@pytest.mark.parametrize("call", [narrowed, widened])
def test_waits_for_no_device(call: Callable[..., Any]) -> None:
    device = strict_device.xp
    x = device.zeros((2, 3), "float32" if call is narrowed else "uint16")
    with strict_device.count_syncs() as syncs:
        call(x, xp=device)
    assert syncs == []


@branches
def test_a_branch_of_bits_waits_for_no_device(name: str, rng: np.random.Generator) -> None:
    branch = Branch(name, rng, True, strict_device.xp)
    weights, grads = branch.on_device(), branch.on_device()
    given = *branch.settings, branch.gain, "bfloat16", True
    with strict_device.count_syncs() as syncs:
        _, kept = branch.forward(branch.x, weights, *given, xp=strict_device.xp)
        rest = kept, weights, grads, branch.gain, "bfloat16"
        branch.backward(branch.dy, branch.x, *rest, xp=strict_device.xp)
    assert syncs == []
