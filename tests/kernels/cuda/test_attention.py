"""Fused attention's CUDA kernels against float64, and against faults planted in them.

Errors are given in units of what rounding may do to each number by itself: inputs are exact, every
probability and every gradient of a score is rounded once, and so is each result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

from vitkit import ops
from vitkit.kernels.cuda import _fused, _heads, attention
from vitkit.testing import cuda_on_cpu, strict_device

xp = strict_device.xp
DTYPES = ("uint16", "float16")
ROUNDING = {"uint16": 2.0**-8, "float16": 2.0**-11}  # half of what is between 1 and the next
TINY = {"uint16": 0.0, "float16": 2.0**-25}  # half of the smallest number
EPS = float(np.finfo("float32").eps)
Case = tuple[int, int, int, int]  # images, tokens, heads, and the width of one
SHORT = [(2, 1, 1, 32), (1, 3, 2, 64), (1, 17, 3, 32), (1, 31, 1, 80), (1, 32, 1, 96)]
SHORT += [(2, 33, 1, 128), (1, 33, 2, 64)]
LONG = [(1, 65, 3, 64), (1, 65, 2, 32), (1, 65, 1, 80), (1, 65, 1, 96), (1, 65, 1, 128)]
LONGER = [(1, 197, 2, 64), (1, 197, 1, 32), (1, 129, 1, 128)]


class Truth(NamedTuple):
    """Results in float64, and what may be lost of y and dqkv."""

    y: np.ndarray
    largest: np.ndarray
    log_total: np.ndarray
    dqkv: np.ndarray
    y_loss: np.ndarray
    dqkv_loss: np.ndarray


def low(x: np.ndarray, dtype: str) -> np.ndarray:
    """Return numbers of fewer digits, near to these."""
    if dtype == "float16":
        return x.astype("float16")
    return (x.astype("float32").view("uint32") >> 16).astype("uint16")


def wide(x: Any) -> np.ndarray:
    """Return what an array holds, in float64."""
    host = np.asarray(x.get() if hasattr(x, "get") else x)
    if host.dtype == "uint16":
        host = (host.astype("uint32") << 16).view("float32")
    return host.astype("float64")


def inputs(case: Case, dtype: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return qkv and dy. Scores grow with their key, so that the largest comes late."""
    batch, tokens, heads, width = case
    qkv = rng.standard_normal((batch, tokens, 3, heads * width))
    qkv[:, :, 1] *= np.linspace(0.5, 5, tokens)[:, None]
    dy = rng.standard_normal((batch, tokens, heads * width))
    return low(qkv.reshape(batch, tokens, -1), dtype), low(dy, dtype)


def truth(
    qkv: np.ndarray, dy: np.ndarray, heads: int, dtype: str, fine: float | None = None
) -> Truth:
    """Compute attention and its gradients, given their inputs in float64.

    ``fine`` is what float32 may lose of a probability, relative to it; None for what it may lose
    in sums of products in any order, and in powers whose exponents are off by as much.
    """
    batch, tokens, dim = dy.shape
    unit, tiny, width = ROUNDING[dtype], TINY[dtype], dim // heads
    q, k, v = qkv.reshape(batch, tokens, 3, heads, width).transpose(2, 0, 3, 1, 4)
    d = dy.reshape(batch, tokens, heads, width).transpose(0, 2, 1, 3)
    turned = [np.swapaxes(each, -1, -2) for each in (k, v)]
    scale = width**-0.5
    scores = q @ turned[0] * scale
    largest = scores.max(-1, keepdims=True)
    e = np.exp(scores - largest)
    total = e.sum(-1, keepdims=True)
    p = e / total
    y = p @ v
    dp = d @ turned[1]
    delta = (d * y).sum(-1, keepdims=True)
    ds = p * (dp - delta)
    if fine is None:
        fine = EPS * (16 + width + tokens) * (1 + scale * (np.abs(q) @ np.abs(turned[0])).max())
    p_loss = (unit + fine) * p + tiny
    y_loss = p_loss @ np.abs(v) + unit * np.abs(y) + tiny
    around = np.abs(d) @ np.abs(turned[1]) + (np.abs(d) * np.abs(y)).sum(-1, keepdims=True)
    # The kernel's delta is made of y as it was rounded.
    slip = (np.abs(d) * y_loss).sum(-1, keepdims=True)
    ds_loss = (unit + fine) * np.abs(ds) + p * (fine * around + slip) + tiny
    across = [np.swapaxes(each, -1, -2) for each in (p, ds, p_loss, ds_loss)]
    exact = ds @ k * scale, across[1] @ q * scale, across[0] @ d
    lost = ds_loss @ np.abs(k) * scale, across[3] @ np.abs(q) * scale, across[2] @ np.abs(d)
    dqkv = np.stack(exact)
    dqkv_loss = np.stack(lost) + unit * np.abs(dqkv) + tiny
    merged = [each.transpose(1, 3, 0, 2, 4).reshape(qkv.shape) for each in (dqkv, dqkv_loss)]
    flat = [each.transpose(0, 2, 1, 3).reshape(dy.shape) for each in (y, y_loss)]
    return Truth(flat[0], largest[..., 0], np.log(total)[..., 0], merged[0], flat[1], merged[1])


def run(qkv: np.ndarray, dy: np.ndarray, heads: int) -> list[Any]:
    """Return y, largest, log_total and dqkv of the kernels."""
    given = xp.asarray(qkv)
    found = _fused.attend(given, heads, xp)
    return [*found, _fused.attend_backward(xp.asarray(dy), given, *found, xp)]


def error(case: Case, dtype: str, rng: np.random.Generator) -> float:
    """Return the worst error of all results, over what may be lost."""
    qkv, dy = inputs(case, dtype, rng)
    with np.errstate(all="ignore"):
        y, largest, log_total, dqkv = (wide(found) for found in run(qkv, dy, case[2]))
    true = truth(wide(qkv), wide(dy), case[2], dtype)
    fine = EPS * (16 + case[3]) * (1 + np.abs(true.largest).max() * 4)
    ratios = [
        np.abs(y - true.y) / true.y_loss,
        np.abs(largest - true.largest) / fine,
        np.abs(log_total - true.log_total) / fine,
        np.abs(dqkv - true.dqkv) / np.maximum(true.dqkv_loss, 1e-30),
    ]
    return max(float(np.nan_to_num(ratio, nan=np.inf).max()) for ratio in ratios)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", SHORT)
def test_values(case: Case, dtype: str, rng: np.random.Generator) -> None:
    assert error(case, dtype, rng) < 1


@pytest.mark.usefixtures("emulated_once")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [*LONG, *LONGER])
def test_values_of_several_tiles(case: Case, dtype: str, rng: np.random.Generator) -> None:
    assert error(case, dtype, rng) < 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_do_not_depend_on_the_order_of_threads_or_on_other_images(
    dtype: str, rng: np.random.Generator
) -> None:
    if reason := cuda_on_cpu.why_not():
        pytest.skip(reason)
    qkv, dy = inputs((2, 70, 2, 32), dtype, rng)
    found = []
    for order in (0, 1, 2):
        with cuda_on_cpu.emulated(order):
            found.append([each.get() for each in run(qkv, dy, 2)])
    with cuda_on_cpu.emulated():
        second = [each.get() for each in run(qkv[1:], dy[1:], 2)]
    for first, *others in zip(*found, strict=True):
        for other in others:
            np.testing.assert_array_equal(first, other)
    for both, alone in zip(found[0], second, strict=True):
        np.testing.assert_array_equal(both[1:], alone)


@pytest.mark.usefixtures("emulated_once")
@pytest.mark.parametrize("width", [32, 80])
def test_huge_scores_keep_their_digits(width: int, rng: np.random.Generator) -> None:
    # Sums of whole numbers are exact, so scores of 10000 are; and near to each other in each row.
    tokens, scale = 40, width**-0.5
    q, k = rng.integers(-2, 3, (2, tokens, width)).astype("float64")
    q[:, 0] = k[:, 0] = np.round(np.sqrt(1e4 / scale))
    v = rng.standard_normal((tokens, width))
    qkv = low(np.stack([q, k, v], axis=1).reshape(1, tokens, -1), "uint16")
    dy = low(rng.standard_normal((1, tokens, width)), "uint16")
    # The largest score is rounded where it is kept; so probabilities are off by a thousandth.
    true = truth(wide(qkv), wide(dy), 1, "uint16", fine=2e-3)
    assert true.largest.min() > 9000
    y, largest, log_total, dqkv = (wide(found) for found in run(qkv, dy, 1))
    assert (np.abs(largest / true.largest - 1) < 2 * EPS).all()
    # A sum in one number with the largest score would lose a thousandth.
    np.testing.assert_allclose(log_total, true.log_total, atol=1e-5)
    assert (np.abs(y - true.y) <= true.y_loss).all()
    assert (np.abs(dqkv - true.dqkv) <= true.dqkv_loss).all()


def special(name: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return qkv (1, 37, 96) and dy with something in them that is not a number, or extreme."""
    qkv, dy = rng.standard_normal((1, 37, 3, 32)), rng.standard_normal((1, 37, 32))
    q, k, v = (qkv[0, :, part] for part in range(3))
    if name == "a query is NaN":
        q[20, 3] = np.nan
    elif name == "a key is NaN":
        k[36, 0] = np.nan
    elif name == "a value is NaN":
        v[5, 7] = np.nan
    elif name == "a key is infinite":
        k[30, 2] = np.inf
    elif name == "a value is infinite":
        v[36, 9] = -np.inf
    elif name == "a score is minus infinity":
        q[:, 4], k[3, 4] = np.abs(q[:, 4]) + 0.1, -np.inf
    elif name == "all scores of a query are minus infinity":
        q[7, 1], k[:, 1] = np.inf, -np.abs(k[:, 1]) - 0.1
    elif name == "the first keys have minus infinity":
        q[:, 4], k[:20, 4] = np.abs(q[:, 4]) + 0.1, -np.inf
    elif name == "a gradient is infinite":
        dy[0, 11, 0] = np.inf
    elif name == "a gradient is NaN":
        dy[0, 36, 31] = np.nan
    elif name == "one key has it all":
        k[35] *= 1000
    elif name == "all scores are far below zero":
        q[:, 0], k[:, 0] = 30, -60
    else:
        qkv *= 1e-30
    return qkv.reshape(1, 37, 96), dy


SPECIAL = (
    "a query is NaN", "a key is NaN", "a value is NaN", "a key is infinite", "a value is infinite",
    "a score is minus infinity", "all scores of a query are minus infinity",
    "the first keys have minus infinity", "a gradient is infinite", "a gradient is NaN",
    "one key has it all", "all scores are far below zero", "tiny numbers",
)  # fmt: skip


@pytest.mark.usefixtures("emulated_once")
@pytest.mark.parametrize("name", SPECIAL)
def test_what_is_not_a_number_goes_where_the_reference_sends_it(
    name: str, rng: np.random.Generator
) -> None:
    qkv, dy = special(name, rng)
    given, slope = low(qkv, "uint16"), low(dy, "uint16")
    with np.errstate(all="ignore"):
        forward = ops.multi_head_attention.reference(wide(given), 1, xp=np)
        found = run(given, slope, 1)
        backward = ops.multi_head_attention_backward.reference(
            wide(slope), wide(given), wide(found[0]), forward[1], forward[2], xp=np
        )
    for got, expected in zip(found, (*forward, backward), strict=True):
        got = wide(got)
        np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
        np.testing.assert_array_equal(got == np.inf, expected == np.inf)
        np.testing.assert_array_equal(got == -np.inf, expected == -np.inf)
        finite = np.isfinite(expected)
        error = np.abs(got[finite] - expected[finite]).max(initial=0)
        smallest = np.finfo("float32").tiny
        most = max(np.abs(expected[finite]).max(initial=0), smallest)
        assert error <= 8 * ROUNDING["uint16"] * most


@pytest.mark.usefixtures("emulated_once")
def test_arrays_with_gaps_and_out_of_line_are_read(rng: np.random.Generator) -> None:
    qkv, dy = inputs((2, 20, 2, 32), "uint16", rng)
    expected = [each.get() for each in run(qkv, dy, 2)]
    spread = xp.empty((2, 20, 400), "uint16")
    spread[:, :, 3:195] = xp.asarray(qkv)
    flat = xp.empty(dy.size + 1, "uint16")
    flat[1:] = xp.asarray(dy).reshape(-1)
    given, slope = spread[:, :, 3:195], flat[1:].reshape(dy.shape)
    assert not given.flags.c_contiguous
    assert slope.data.ptr % 16
    found = _fused.attend(given, 2, xp)
    dqkv = _fused.attend_backward(slope, given, *found, xp)
    for got, each in zip((*found, dqkv), expected, strict=True):
        np.testing.assert_array_equal(got.get(), each)


@pytest.mark.usefixtures("emulated_once")
@pytest.mark.parametrize(("precision", "dtype"), [("bfloat16", "uint16"), ("float16", "float16")])
def test_the_operation_runs_the_kernels_and_never_waits(
    precision: str, dtype: str, rng: np.random.Generator
) -> None:
    qkv, dy = (wide(each).astype("float32") for each in inputs((1, 35, 2, 32), dtype, rng))
    with strict_device.count_syncs() as syncs:
        given = xp.asarray(qkv)
        y, largest, log_total = ops.multi_head_attention(given, 2, precision, xp=xp)
        dqkv = ops.multi_head_attention_backward(
            xp.asarray(dy), given, y, largest, log_total, precision, xp=xp
        )
    assert syncs == []
    found = y, largest, log_total, dqkv
    assert {each.dtype.name for each in found} == {"float32"}
    for got, each in zip(found, run(low(qkv, dtype), low(dy, dtype), 2), strict=True):
        np.testing.assert_array_equal(wide(got), wide(each))


@pytest.mark.usefixtures("emulated_once")
def test_what_the_kernels_do_not_serve_is_left_to_others(rng: np.random.Generator) -> None:
    def answer(width: int, precision: str, dtype: str = "float32") -> Any:
        qkv = xp.asarray(rng.standard_normal((1, 5, 3 * 2 * width)).astype(dtype))
        return attention.multi_head_attention_cuda(qkv, 2, precision, xp=xp)

    assert answer(32, "bfloat16") is not NotImplemented
    assert answer(32, "float8") is NotImplemented
    assert answer(32, "bfloat16", "float64") is NotImplemented
    empty = xp.empty((0, 5, 192), "float32")
    assert attention.multi_head_attention_cuda(empty, 2, "bfloat16", xp=xp) is NotImplemented
    assert not _fused.serves(xp.empty((1, 5, 192), "float32"), 2, xp)
    assert not _fused.serves(xp.empty((1, 5, 190), "uint16"), 2, xp)
    assert not _fused.serves(xp.empty((1, 5, 6 * 40), "uint16"), 2, xp)
    assert not _fused.serves(xp.empty((1, 5, 6 * 192), "float16"), 2, xp)
    shapes = (1, 5, 64), (1, 5, 192), (1, 5, 64), (1, 2, 5), (1, 2, 5)
    dy, qkv, y, largest, log_total = (xp.empty(shape, "float32") for shape in shapes)
    kernel = attention.multi_head_attention_backward_cuda
    assert kernel(dy, qkv, y, largest, log_total, "float8", xp=xp) is NotImplemented


@pytest.mark.usefixtures("emulated_once")
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16", "float16"])
@pytest.mark.parametrize("width", [24, 32])
def test_by_products_where_no_fused_kernel_serves(
    precision: str, width: int, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    monkeypatch.setattr(_heads, "FUSED", ())
    qkv = rng.standard_normal((2, 9, 3 * 2 * width)).astype("float32")
    dy = rng.standard_normal((2, 9, 2 * width)).astype("float32")
    found = ops.multi_head_attention(xp.asarray(qkv), 2, precision, xp=xp)
    dqkv = ops.multi_head_attention_backward(
        xp.asarray(dy), xp.asarray(qkv), *found, precision, xp=xp
    )
    expected = ops.multi_head_attention.reference(qkv, 2, precision, xp=np)
    truth = ops.multi_head_attention_backward.reference(dy, qkv, *expected, precision, xp=np)
    unit = {"float32": 2e-6, "tf32": 2**-10, "bfloat16": 2**-7, "float16": 2**-10}[precision]
    for got, exact in zip((*found, dqkv), (*expected, truth), strict=True):
        assert np.abs(got.get() - exact).max() <= unit * np.abs(exact).max()


def test_a_gpu_that_is_too_old_is_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    qkv = xp.empty((1, 5, 192), "uint16")
    for capability, able in ((75, False), (80, True), (90, True)):
        monkeypatch.setattr(_fused, "capability", lambda _, have=capability: have)
        assert _fused.serves(qkv, 2, xp) is able


F, B = "attention.cuh", "attention_backward.cuh"
TILE_ENDS = "    copies_arrived();\n    __syncthreads();"
FAULTS = {
    "scores of fewer lanes": (F, "lane <= 2; lane <<= 1) top", "lane <= 1; lane <<= 1) top"),
    "a total of fewer lanes": (F, "other <= 2; other <<= 1", "other <= 1; other <<= 1"),
    "no barrier before the first tile": (F, "arrived();\n  __syncthreads();", "arrived();"),
    "no barrier after a tile": (F, TILE_ENDS, "    copies_arrived();"),
    "tiles not waited for": (F, TILE_ENDS, "    __syncthreads();"),
    "results not waited for": (F, "  __syncwarp();\n  write_rows", "  write_rows"),
    "keys that are not there": (F, "if (i + 16 > left) hide(s, left - i);", ""),
    "one key too few": (F, "hide(s, left - i)", "hide(s, left - i - 1)"),
    "a tail left out": (F, "i < min(left, KEYS); i", "i + 16 <= min(left, KEYS); i"),
    "rows that are not there": (F, "is_there = (int)row < there;", "is_there = true;"),
    "sums of an old shift": (F, "sum[m][c][2 * h] *= factor;", ""),
    "a total of an old shift": (F, "row.total *= factor;", ""),
    "a shift from the start": (F, "NO_SHIFT = 3e38f", "NO_SHIFT = 0.f"),
    "too much room for scores": (F, "ROOM = 8.f;", "ROOM = 1e30f;"),
    "a wrong scale": (F, "[i % 4], step, row.shift)", "[i % 4], step * LN_2, row.shift)"),
    "largest without its scale": (F, "= row.top * scale", "= row.top"),
    "no rest of the shift": (F, " - fmaf(row.top, step, row.shift) * LN_2", ""),
    "an operand swapped": (F, "right[0], right[1], s[m][0]", "right[1], right[0], s[m][0]"),
    "keys for values": (F, "keys + (KEYS + i) * STEP", "keys + i * STEP"),
    "halves of rows swapped": (F, "share[m][0], share[m][1]", "share[m][1], share[m][0]"),
    "another head": (F, "3 * dim + place.head * D;", "3 * dim;"),
    "no barrier before queries are used": (B, "step);\n      __syncthreads();", "step);"),
    "no barrier after a tile backwards": (B, TILE_ENDS, "    copies_arrived();"),
    "tiles not waited for backwards": (B, TILE_ENDS, "    __syncthreads();"),
    "gradients not waited for": (B, "  __syncwarp();\n  write_rows", "  write_rows"),
    "a delta of fewer lanes": (B, "(int lane = 4; lane;", "(int lane = 1; lane;"),
    "no delta": (B, " - by.delta[at]", ""),
    "no share": (B, " * by.share[at]", ""),
    "columns that are not there": (B, "if (i + 16 > left) hide(s, left - i);", ""),
    "a tail left out backwards": (B, "i < min(left, ROWS); i", "i + 16 <= min(left, ROWS); i"),
    "q for dy": (B, "(p, b_tile, db)", "(p, a_tile, db)"),
    "p for ds": (B, "(ds, a_tile, da)", "(p, a_tile, da)"),
    "no scale of gradients": (B, "(da[0], scale, scale", "(da[0], 1.f, 1.f"),
    "keys' gradients to queries": (B, "keys.first * 3 + 1", "keys.first * 3"),
    "columns described as others": (B, "% 4 * 2;\n      load(", "% 4;\n      load("),
}  # fmt: skip


def worst(rng: np.random.Generator) -> float:
    """Return the worst error of several inputs, infinite where a number is missing."""
    found = [error(case, "uint16", rng) for case in ((1, 70, 2, 32), (1, 3, 1, 32))]
    for name in ("one key has it all", "all scores are far below zero"):
        qkv, dy = special(name, rng)
        results = run(low(qkv, "uint16"), low(dy, "uint16"), 1)
        found += [0.0 if np.isfinite(wide(result)).all() else np.inf for result in results]
    return max(found)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_noticed(
    fault: str,
    plant: Callable[[str, str, str], None],
    monkeypatch: pytest.MonkeyPatch,
    rng: np.random.Generator,
) -> None:
    if reason := cuda_on_cpu.why_not():
        pytest.skip(reason)
    for family in (_fused.FORWARD, _fused.BACKWARD):  # or twenty kernels are compiled
        monkeypatch.setattr(family, "choices", {"x": ("bf16",), "d": (32,)})
    plant(*FAULTS[fault])
    noticed = 0.0
    for order in (0, 1, 2):
        with cuda_on_cpu.emulated(order), np.errstate(all="ignore"):
            try:
                noticed = max(noticed, worst(rng))
            except RuntimeError as problem:
                if "nobody waits for" not in str(problem):
                    raise
                noticed = np.inf
        if noticed > 1:
            return
    pytest.fail(f"errors are within bounds, {noticed:.2f} of them")
