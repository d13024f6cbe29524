"""The kernels that read and write what flows between blocks as bits of bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vitkit import ops
from vitkit.backend.precision import from_bfloat16, to_bfloat16
from vitkit.kernels.cuda.casts import add_gained, gained_cast
from vitkit.kernels.cuda.layer_norm import normalize, normalize_backward, normalized_again
from vitkit.ops.residual import narrowed, widened
from vitkit.testing import cuda_on_cpu, strict_device

xp = strict_device.xp
EPS = float(np.finfo("float32").eps)
HALF = 2.0**-8  # half a last digit of bfloat16, as a part of the number
ORDERS = (0, 1, 2)
SHAPES = [(1, 1, 1), (3, 5, 33), (2, 65, 192), (4, 197, 8), (1, 3, 130), (700, 1, 4), (5, 2, 6)]
DTYPES = ["uint16", "float32"]
emulated = pytest.mark.usefixtures("emulated")
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def bits(x: np.ndarray) -> np.ndarray:
    """Return float32 numbers as they are stored in 16 bits."""
    return np.asarray(to_bfloat16(x, xp=np))


def wide(x: np.ndarray) -> np.ndarray:
    """Return stored numbers in float64."""
    return (from_bfloat16(x, xp=np) if x.dtype == "uint16" else x).astype("float64")


def drawn(shape: tuple[int, ...], dtype: str, rng: np.random.Generator) -> np.ndarray:
    """Return normal numbers as they are stored."""
    x = (rng.standard_normal(shape) + 0.5).astype("float32")
    return bits(x) if dtype == "uint16" else x


def on_device(x: np.ndarray, off: int = 0) -> Any:
    """Return the array on the device, so many numbers after a boundary of 16 bytes."""
    return xp.asarray(np.concatenate([np.zeros(off, x.dtype), x.ravel()]))[off:].reshape(x.shape)


def losses(found: Any, exact: np.ndarray, terms: int = 1) -> float:
    """Return the worst error in units of what sums in float32, and then rounding, may lose."""
    got = found.get()
    stored = HALF * np.abs(exact) if got.dtype == "uint16" else 0.0
    allowed = stored + EPS * (4 + np.sqrt(terms)) * max(np.abs(exact).max(), 1)
    with np.errstate(all="ignore"):
        units = np.abs(wide(got) - exact) / allowed
    return float(np.nan_to_num(units, nan=np.inf).max())


def gained(shape: tuple[int, ...], gains: bool, off: int, rng: np.random.Generator) -> str:
    """Return what is wrong with a gradient in bits times gains, or nothing."""
    batch, _, width = shape
    dy = drawn(shape, "uint16", rng)
    gain = rng.choice([0.0, 1 / 0.9, 1.5], batch).astype("float32")  # the last makes ties
    dbias = rng.standard_normal(width).astype("float32")
    into, given = xp.asarray(dbias.copy()), on_device(dy, off)
    with strict_device.count_syncs() as syncs:
        factors = xp.asarray(gain) if gains else None
        found = gained_cast(given, factors, "uint16", into, xp)
    assert syncs == []
    assert (found is given) is (not gains)  # nothing is to be done but to add up
    times = from_bfloat16(dy, xp=np) * (gain[:, None, None] if gains else np.float32(1))
    if (found.get() != bits(times)).any():
        return "a number"
    terms = wide(found.get()).reshape(-1, width)
    bound = 2 * EPS * (np.abs(dbias) + np.abs(terms).sum(axis=0))
    return "" if (np.abs(into.get() - dbias - terms.sum(axis=0)) <= bound).all() else "a sum"


def added(shape: tuple[int, ...], dtype: str, off: int, rng: np.random.Generator) -> float:
    """Return the worst error of a residual plus a branch times gains, in units of its losses."""
    residual, branch = drawn(shape, dtype, rng), drawn(shape, "float32", rng)
    gain = rng.choice([0.0, 1 / 0.9, 2.0], shape[0]).astype("float32")
    given = on_device(residual, off), on_device(branch, off), xp.asarray(gain)
    with strict_device.count_syncs() as syncs:
        found = add_gained(*given, xp)
    assert syncs == []
    assert (found.dtype, found.shape) == (dtype, shape)
    np.testing.assert_array_equal(given[0].get(), residual)
    return losses(found, wide(residual) + gain[:, None, None].astype("float64") * wide(branch))


def normal(shape: tuple[int, ...], off: int, rng: np.random.Generator) -> float:
    """Return the worst error of normalizing bits, there, again and back, in units of its losses."""
    x, residual, dy = (drawn(shape, "uint16", rng) for _ in range(3))
    weight, bias, dweight, dbias = (
        rng.standard_normal(shape[-1]).astype("float32") for _ in range(4)
    )
    x64, w64, b64 = wide(x), weight.astype("float64"), bias.astype("float64")
    exact = ops.layer_norm.reference(x64, w64, b64, 1e-6, xp=np)
    dx, *sums = ops.layer_norm_backward.reference(wide(dy), x64, w64, *exact[1:], xp=np)
    given = on_device(x, off), xp.asarray(weight), xp.asarray(bias)
    adds = xp.asarray(dweight.copy()), xp.asarray(dbias.copy())
    with strict_device.count_syncs() as syncs:
        y, mean, rstd = normalize(*given, 1e-6, "uint16", xp)
        again = normalized_again(*given, mean, rstd, "uint16", xp)
        back = on_device(dy), given[0], given[1], mean, rstd, on_device(residual, off)
        found = normalize_backward(*back, *adds, xp)
    assert syncs == []
    assert (found.dtype, mean.dtype, rstd.dtype) == ("uint16", "float32", "float32")
    rows, terms = x.size // shape[-1], shape[-1]
    with np.errstate(all="ignore"):
        return max(
            losses(y, exact[0], terms),
            losses(again, exact[0], terms),
            losses(mean, exact[1], terms),
            losses(rstd, exact[2], terms),
            losses(found, dx + wide(residual), terms),
            losses(adds[0], sums[0] + dweight, rows),
            losses(adds[1], sums[1] + dbias, rows),
        )


@emulated
@shapes
@pytest.mark.parametrize("gains", [True, False])
def test_a_gradient_of_bits(shape: tuple[int, ...], gains: bool, rng: np.random.Generator) -> None:
    for off in (0, 1):
        assert gained(shape, gains, off, rng) == ""


@emulated
@shapes
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_residual_and_a_branch_times_gains(
    shape: tuple[int, ...], dtype: str, rng: np.random.Generator
) -> None:
    for off in (0, 1, 2):
        assert added(shape, dtype, off, rng) < 1


@emulated
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gain_of_one_sums_exactly(dtype: str, rng: np.random.Generator) -> None:
    """As rounded once, of a sum in float32."""
    residual, branch = drawn((3, 5, 33), dtype, rng), drawn((3, 5, 33), "float32", rng)
    ones = xp.asarray(np.ones(3, "float32"))
    found = add_gained(xp.asarray(residual), xp.asarray(branch), ones, xp).get()
    total = wide(residual).astype("float32") + branch
    np.testing.assert_array_equal(found, bits(total) if dtype == "uint16" else total)


@emulated
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_no_number_stays_in_its_sample(dtype: str) -> None:
    x = np.zeros((3, 2, 4), "float32")
    x[1, 0, 1:] = np.nan, np.inf, -np.inf
    given = bits(x) if dtype == "uint16" else x
    branch = xp.asarray(np.ones((3, 2, 4), "float32"))
    gain = xp.asarray(np.array([1.0, 2.0, np.nan], "float32"))
    found = wide(add_gained(xp.asarray(given), branch, gain, xp).get())
    expected = x + 1
    expected[1], expected[2] = x[1] + 2, np.nan
    np.testing.assert_array_equal(found, expected)


@emulated
@shapes
def test_bits_are_normalized(shape: tuple[int, ...], rng: np.random.Generator) -> None:
    for off in (0, 1):
        assert normal(shape, off, rng) < 1


@emulated
@pytest.mark.parametrize("shape", [(), (0,), (3, 5), (4, 6, 10)], ids=str)
def test_what_flows_is_rounded_and_widened_by_kernels(
    shape: tuple[int, ...], rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = np.asarray(rng.standard_normal(shape), "float32")
    x = xp.asarray(host)

    def reference(x: Any, *, xp: Any) -> Any:
        raise AssertionError("the reference was asked")

    monkeypatch.setattr(narrowed, "reference", reference)
    monkeypatch.setattr(widened, "reference", reference)
    low = narrowed(x, xp=xp)
    assert (low.shape, low.dtype) == (shape, "uint16")
    np.testing.assert_array_equal(low.get(), bits(host).reshape(shape))
    turned = narrowed(x.T, xp=xp)
    np.testing.assert_array_equal(turned.get(), bits(host).reshape(shape).T)
    for given in (low, low.T):
        back = widened(given, xp=xp)
        assert (back.shape, back.dtype) == (given.shape, "float32")
        np.testing.assert_array_equal(back.get(), wide(given.get()))


def wrong(rng: np.random.Generator) -> bool:
    """Return whether anything is wrong with any of the kernels."""
    return any(
        gained(shape, True, 0, rng)
        or normal(shape, 0, rng) >= 1
        or any(added(shape, dtype, 0, rng) >= 1 for dtype in DTYPES)
        for shape in SHAPES
    )


FAULTS = {
    "a gain of another sample": ("casts.cuh", "= gain[sample]", "= gain[0]"),
    "a branch without its gain": ("casts.cuh", "v[i] += factor * w[i]", "v[i] += w[i]"),
    "no residual": ("casts.cuh", "v[i] += factor * w[i]", "v[i] = factor * w[i]"),
    "a residual times the gain": (
        "casts.cuh",
        "v[i] += factor * w[i]",
        "v[i] = factor * (v[i] + w[i])",
    ),
    "samples that overlap": ("casts.cuh", "(i64)sample * each", "(i64)sample * (each - 1)"),
    "blocks of one sample in one place": ("casts.cuh", "blockIdx.x % across * 256", "0 * 256"),
    "a dropped tail": ("casts.cuh", "if (at >= each)", "if (at >= each - V)"),
    "a gradient without its gain": ("casts.cuh", "put(v[i] * factor", "put(v[i]"),
    "a sum before rounding": ("casts.cuh", "to_float(rounded.at[i])", "v[i] * factor"),
    "half goes up": ("casts.cuh", "+ 0x7fffu + ((u >> 16) & 1u)", "+ 0x8000u"),
    "no rounding": ("casts.cuh", "+ 0x7fffu + ((u >> 16) & 1u)", ""),
    "statistics of other rows": (
        "layer_norm.cuh",
        "const float m = mean[row], r = rstd[row];\n  float v",
        "const float m = mean[0], r = rstd[0];\n  float v",
    ),
    "a gradient without its residual": ("layer_norm.cuh", "d[i] += v[i];", ";"),
    "a residual of other rows": ("layer_norm.cuh", "load(residual + at + c", "load(residual + c"),
    "a residual twice": ("layer_norm.cuh", "d[i] += v[i];", "d[i] += 2 * v[i];"),
    "rows not normalized again": ("layer_norm.cuh", "store(v, y + at + c)", "store(w, y + at + c)"),
    "a number cut off": ("layer_norm.cuh", "+ 0x7fffu + ((u >> 16) & 1u)", ""),
}


def test_nothing_is_wrong_without_a_fault(rng: np.random.Generator) -> None:
    if reason := cuda_on_cpu.why_not():
        pytest.skip(reason)
    with cuda_on_cpu.emulated():
        assert not wrong(rng)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_noticed(
    fault: str, plant: Callable[[str, str, str], None], rng: np.random.Generator
) -> None:
    if reason := cuda_on_cpu.why_not():
        pytest.skip(reason)
    plant(*FAULTS[fault])
    noticed = False
    for order in ORDERS:
        with cuda_on_cpu.emulated(order), np.errstate(all="ignore"):
            noticed = noticed or wrong(rng)
    assert noticed
