"""Both forms of GELU by their CUDA kernels: every 16-bit number, and faults planted in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import special

from vitkit import ops
from vitkit.backend.precision import operand, stored
from vitkit.kernels.cuda.gelu import FORMS, activate, through_activation
from vitkit.testing import cuda_on_cpu, strict_device

xp = strict_device.xp
EPS = float(np.finfo("float32").eps)
PRECISIONS = ["float32", "bfloat16", "float16"]
# What rounding loses: half a unit in the last place, and of the smallest numbers.
HALF_UNIT = {
    "float32": (0.0, 0.0),
    "bfloat16": (2.0**-8, 2.0**-134),
    "float16": (2.0**-11, 2.0**-25),
}
TAIL, FIT = 5e-6, 1.6e-8  # of the fit in gelu.cuh: of a tail itself, and of Phi
SIZES = [1, 3, 31, 32, 33, 65, 197, 4096, 8197]
SHAPES = [(1, 1), (3, 33), (5, 31, 8), (197, 64), (700, 4), (2, 65, 264), (8201, 2)]


def inputs(precision: str, rng: np.random.Generator) -> np.ndarray:
    """Return pre-activations: all there are of 16 bits, and of float32 those of any size."""
    if precision != "float32":
        return np.arange(2**16, dtype="uint16").view(
            stored(np.ones(1, "float32"), precision, xp=np).dtype
        )
    sizes = 2.0 ** rng.uniform(-149, 128, 2000)
    odd = [0.0, -0.0, np.nan, np.inf, -np.inf, 3.4e38, -3.4e38, 1e-45, -9.0, 9.0]
    near = np.linspace(-14, 14, 20_001)
    with np.errstate(over="ignore"):
        return np.concatenate([odd, near, sizes, -sizes]).astype("float32")


def exact(x: np.ndarray, activation: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return value and derivative in float64, and what float32 may lose of the first factor."""
    inside = np.clip(x.astype("float64"), -100, 100)
    if activation == "gelu":
        cdf = special.ndtr(inside)
        along = inside * np.exp(-0.5 * inside * inside) / np.sqrt(2 * np.pi)
        fit, spread = np.minimum(TAIL * cdf, 1.5 * FIT), 0.5 * inside * inside
    else:
        argument = 2 * np.sqrt(2 / np.pi) * (inside + 0.044715 * inside**3)
        cdf = special.expit(argument)
        growth = 2 * np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * inside**2)
        along = inside * cdf * special.expit(-argument) * growth
        fit, spread = 0.0 * cdf, np.minimum(np.abs(argument), 70)
    # What multiplies an exponential loses the argument's rounding, times the argument.
    lost = fit + EPS * (6 + 3 * spread) * np.minimum(cdf, 1 - cdf) + 2 * EPS * cdf
    both = np.stack([lost, lost + EPS * (8 + 4 * spread) * np.abs(along)])
    if activation == "gelu_tanh":  # 0 from -9 on
        both = np.where(inside <= -9, np.abs([cdf, cdf + along]), both)
    return cdf, cdf + along, both


def too_far(found: np.ndarray, expected: np.ndarray, lost: np.ndarray, precision: str) -> bool:
    """Return whether numbers are further from what is expected than float32 and storing lose."""
    part, least = HALF_UNIT[precision]
    bound = lost * (1 + part) + np.abs(expected) * part + least + 2.0**-140
    return bool((np.abs(found - expected) > bound).any())


@np.errstate(invalid="ignore", under="ignore")  # NaN that signal among all bits; tails
def wrong(precision: str, activation: str, rng: np.random.Generator) -> str:
    """Return which result of an activation is wrong, or nothing."""
    h = inputs(precision, rng)
    with strict_device.count_syncs() as syncs:
        found: tuple[Any, Any] = activate(xp.asarray(h), activation, True, xp)
        alone, none = activate(xp.asarray(h), activation, False, xp)
    assert syncs == []
    assert none is None
    assert found[0].dtype == found[1].dtype == h.dtype
    value, slope = (operand(each.get(), precision, xp=np).astype("float64") for each in found)
    if not np.array_equal(alone.get(), found[0].get(), equal_nan=h.dtype.kind == "f"):
        return "alone"
    x = operand(h, precision, xp=np).astype("float64")
    at_ends = {np.inf: (np.inf, 1.0), -np.inf: (np.nan, 0.0), np.nan: (np.nan, np.nan)}
    for odd, pair in at_ends.items():
        where = np.isnan(x) if np.isnan(odd) else x == odd
        if not (
            where.any()
            and np.array_equal(np.stack([value, slope])[:, where].T, [pair] * where.sum(), True)
        ):
            return f"at {odd}"
    number = np.isfinite(x)
    x, value, slope = x[number], value[number], slope[number]
    cdf, derivative, lost = exact(x, activation)
    if too_far(value, x * cdf, np.abs(x) * lost[0], precision):
        return "value"
    return "slope" if too_far(slope, derivative, lost[1], precision) else ""


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("activation", FORMS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_number(precision: str, activation: str, rng: np.random.Generator) -> None:
    assert wrong(precision, activation, rng) == ""


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("size", SIZES)
def test_sizes_and_alignments(size: int, precision: str, rng: np.random.Generator) -> None:
    h = stored(rng.standard_normal(size + 1).astype("float32"), precision, xp=np)
    wholes: tuple[Any, Any] = activate(xp.asarray(h), "gelu", True, xp)
    parts: tuple[Any, Any] = activate(xp.asarray(h)[1:], "gelu", True, xp)
    for whole, part in zip(wholes, parts, strict=True):
        assert part.get().tobytes() == whole.get()[1:].tobytes()


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("activation", FORMS)
def test_operations_follow_torch(activation: str, rng: np.random.Generator) -> None:
    torch: Any = pytest.importorskip("torch", reason="torch, what it is compared to, is missing")
    x, dy = (3 * rng.standard_normal((2, 37, 65))).astype("float32")
    theirs = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    form = "tanh" if activation == "gelu_tanh" else "none"
    expected = torch.nn.functional.gelu(theirs, approximate=form)
    expected.backward(torch.tensor(dy))
    forward, backward = getattr(ops, activation), getattr(ops, f"{activation}_backward")
    with strict_device.count_syncs() as syncs:
        y = forward(xp.asarray(x), xp=xp)
        dx = backward(xp.asarray(dy), xp.asarray(x), xp=xp)
    assert syncs == []
    for found, right, factor in ((y, expected.detach(), x), (dx, theirs.grad, dy)):
        bound = (
            4 * EPS * np.maximum(1, np.abs(factor))
        )  # what Phi and the derivative lose, times it
        assert (np.abs(found.get() - right.numpy()) <= bound).all()


def gradient(shape: tuple[int, ...], precision: str, rng: np.random.Generator) -> str:
    """Return what is wrong with a gradient taken through an activation, or nothing."""
    d, slope = (
        stored(rng.standard_normal(shape).astype("float32"), precision, xp=np) for _ in range(2)
    )
    dbias = rng.standard_normal(shape[-1]).astype("float32")
    given, into = xp.asarray(d.copy()), xp.asarray(dbias)
    with strict_device.count_syncs() as syncs:
        dh = through_activation(given, xp.asarray(slope), into, xp)
    assert syncs == []
    assert (dh.shape, dh.data.ptr) == (shape, given.data.ptr)
    products = operand(d, precision, xp=np) * operand(slope, precision, xp=np)
    expected = stored(products, precision, xp=np)
    if dh.get().tobytes() != expected.tobytes():
        return "a number"
    terms = operand(expected, precision, xp=np).astype("float64").reshape(-1, shape[-1])
    bound = EPS * (2 + np.sqrt(len(terms))) * (np.abs(dbias) + np.abs(terms).max(axis=0))
    return "" if (np.abs(into.get() - dbias - terms.sum(axis=0)) <= bound).all() else "a sum"


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_through_activation(
    shape: tuple[int, ...], precision: str, rng: np.random.Generator
) -> None:
    assert gradient(shape, precision, rng) == ""


def test_nothing_and_the_order_of_threads(rng: np.random.Generator) -> None:
    d, slope = rng.standard_normal((2, 1000, 33)).astype("float32")
    found = set()
    for order in (0, 1, 2, 3):
        with cuda_on_cpu.emulated(order):
            dbias = xp.zeros(33, "float32")
            through_activation(xp.asarray(d.copy()), xp.asarray(slope), dbias, xp)
            found.add(dbias.get().tobytes())
            empty = xp.zeros((0, 33), "uint16")
            assert through_activation(empty, empty, dbias, xp).shape == (0, 33)
            assert activate(empty, "gelu", True, xp)[0].shape == (0, 33)
    assert len(found) == 1


FAULTS = {
    "a wrong coefficient": ("0.097354902287f", "0.0974549f"),
    "no tail": ("x < 0.f ? tail : 1.f - tail", "1.f - tail"),
    "no square": ("exponential<FAST>(-0.5f, x * x)", "exponential<FAST>(-0.5f, x)"),
    "infinity times 0": ("fminf(fmaxf(x, -40.f), 40.f)", "x"),
    "NaN lost": ("x < -9.f ? -9.f : x > 9.f ? 9.f : x", "fminf(fmaxf(x, -9.f), 9.f)"),
    "a derivative without its end": ("(LINEAR + 3.f * CUBE * square)", "(LINEAR + CUBE * square)"),
    "the fast base": ("factor * 1.44269504f * x", "factor * x"),
    "a slope for the value": ("x[round][i] = both.value", "x[round][i] = both.slope"),
    "one round twice": ("at = first_number<V, 2>(round);", "at = first_number<V, 2>(0);"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_noticed(
    fault: str, plant: Callable[[str, str, str], None], rng: np.random.Generator
) -> None:
    if reason := cuda_on_cpu.why_not():
        pytest.skip(reason)
    plant("gelu.cuh", *FAULTS[fault])
    with cuda_on_cpu.emulated(), np.errstate(all="ignore"):
        found = {wrong(each, form, rng) for each in ("float32", "float16") for form in FORMS}
    assert found != {""}


SUM_FAULTS = {
    "sums of slopes": ("total[i] += to_float(d[k].at[i])", "total[i] += to_float(s[k].at[i])"),
    "no barrier": ("  __syncthreads();\n  const int mine", "  const int mine"),
    "a warp too few": ("for (int i = 0; i < 8; i++) sum +=", "for (int i = 0; i < 7; i++) sum +="),
    "rows left out": ("row += AHEAD * step", "row += (AHEAD + 1) * step"),
    "rows twice": ("row += AHEAD * step", "row += (AHEAD - 1) * step"),
    "the last row": ("step >= rows) break;\n        for", "step + 1 >= rows) break;\n        for"),
    "parts of other blocks": ("(i64)blockIdx.y * width + first", "first"),
    "columns of others": ("sums[warp][lane * V + i]", "sums[warp][lane + i * 32]"),
}


@pytest.mark.parametrize("fault", SUM_FAULTS)
def test_a_planted_fault_of_the_gradient_is_noticed(
    fault: str, plant: Callable[[str, str, str], None], rng: np.random.Generator
) -> None:
    if reason := cuda_on_cpu.why_not():
        pytest.skip(reason)
    plant("gelu.cuh", *SUM_FAULTS[fault])
    found = set()
    for order in (0, 1, 2):
        with cuda_on_cpu.emulated(order), np.errstate(all="ignore"):
            found |= {gradient(shape, "bfloat16", rng) for shape in SHAPES}
    assert found != {""}
