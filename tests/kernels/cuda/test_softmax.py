"""Softmax's CUDA kernels against float64, and against faults planted in them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import special

from vitkit import ops
from vitkit.kernels.cuda._rows import LONG
from vitkit.testing import cuda_on_cpu, strict_device

xp = strict_device.xp
EPS = float(np.finfo("float32").eps)
SHAPES: list[tuple[int, ...]] = [
    (1,),
    (3, 3),
    (2, 5, 31),
    (5, 32),
    (2, 33),
    (3, 65),
    (1, 197),
    (2, LONG - 4),
    (2, LONG),
]
LONG_SHAPES: list[tuple[int, ...]] = [(3, LONG + 1), (2, LONG + 100), (1, 9 * 1024 + 3)]


def difference(shape: tuple[int, ...], rng: np.random.Generator) -> float:
    """Return the worst error of all outputs, in units of what float32 may lose in their sums."""
    x, dy = 3 * rng.standard_normal((2, *shape)).astype("float32")
    with strict_device.count_syncs() as syncs:
        y = ops.softmax(xp.asarray(x), xp=xp)
        dx = ops.softmax_backward(xp.asarray(dy), y, -1, xp=xp)
    assert syncs == []
    exact = special.softmax(x.astype("float64"), axis=-1)
    y64, dy64 = y.get().astype("float64"), dy.astype("float64")
    gradient = y64 * (dy64 - (dy64 * y64).sum(axis=-1, keepdims=True))
    # An exponential loses its argument's rounding; a sum over lanes its own.
    terms = 4 + np.abs(x - x.max(axis=-1, keepdims=True)) + np.sqrt(shape[-1] / 32)
    largest = np.abs(dy).max(axis=-1, keepdims=True)
    errors = [
        np.abs(y.get() - exact) / (EPS * exact * terms),
        np.abs(dx.get() - gradient) / (EPS * y64 * largest * (4 + np.sqrt(shape[-1] / 32))),
    ]
    return float(max(np.nan_to_num(error, nan=np.inf).max() for error in errors))


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("shape", SHAPES + LONG_SHAPES, ids=str)
def test_values(shape: tuple[int, ...], rng: np.random.Generator) -> None:
    assert difference(shape, rng) < 1


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("width", [7, 40, LONG + 5])
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-45])
def test_numbers_at_the_edge(odd: float, width: int, rng: np.random.Generator) -> None:
    x, dy = rng.standard_normal((2, 3, width)).astype("float32")
    x[1, width - 2] = odd
    x[2] = odd
    with np.errstate(all="ignore"):
        y = ops.softmax(xp.asarray(x), xp=xp).get()
        expected = ops.softmax.reference(x, xp=np)
        np.testing.assert_allclose(y, expected, rtol=30 * EPS, atol=1e-44)
        dx = ops.softmax_backward(xp.asarray(dy), xp.asarray(y), xp=xp).get()
        slopes = ops.softmax_backward.reference(dy, y, xp=np)
    np.testing.assert_allclose(dx, slopes, atol=20 * EPS)


@pytest.mark.usefixtures("emulated")
def test_views_and_what_the_reference_serves(rng: np.random.Generator) -> None:
    x = rng.standard_normal((5, 6, 8)).astype("float32")
    view, host = xp.asarray(x).T[:, ::2], x.T[:, ::2]
    expected = special.softmax(host.astype("float64"), axis=-1)
    np.testing.assert_allclose(ops.softmax(view, 2, xp=xp).get(), expected, rtol=20 * EPS)
    kernel = ops.softmax.kernels["cupy"]
    assert kernel(view, 0, xp=xp) is NotImplemented
    assert kernel(xp.zeros((3, 0), "float32"), -1, xp=xp) is NotImplemented
    assert kernel(view.astype("float64"), -1, xp=xp) is NotImplemented


def test_the_order_of_threads_changes_no_bit(rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, LONG + 33)).astype("float32")
    found = set()
    for order in (0, 1, 2, 3):
        with cuda_on_cpu.emulated(order):
            y = ops.softmax(xp.asarray(x), xp=xp)
            found.add(y.get().tobytes() + ops.softmax_backward(y, y, xp=xp).get().tobytes())
    assert len(found) == 1


FAULTS = {
    "a shuffle too few": ("for (int lane = 16; lane", "for (int lane = 8; lane"),
    "a largest of one lane": ("largest = row_largest<THREADS>(largest, room);", ""),
    "no barrier": ("  __syncthreads();\n  return warp_largest", "  return warp_largest"),
    "a warp too few": ("lane < THREADS / 32 ?", "lane + 1 < THREADS / 32 ?"),
    "a dropped tail": (
        "width; c += THREADS * V) {\n    load(dy",
        "width - 1; c += THREADS * V) {\n    load(dy",
    ),
    "numbers twice": ("threadIdx.x % THREADS * V", "threadIdx.x % (THREADS / 2) * V"),
    "a wrong sign": ("(d[i] - along)", "(d[i] + along)"),
    "another row": ("blockIdx.x * WARP_ROWS + threadIdx.x / 32", "threadIdx.x / 32"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_noticed(
    fault: str, plant: Callable[[str, str, str], None], rng: np.random.Generator
) -> None:
    if reason := cuda_on_cpu.why_not():
        pytest.skip(reason)
    plant("softmax.cuh", *FAULTS[fault])
    worst = 0.0
    x = np.where(np.arange(LONG + 8) == 1023, 3e4, 0).astype("float32")  # the last warp's alone
    for order in (0, 1, 2):
        with cuda_on_cpu.emulated(order), np.errstate(all="ignore"):
            worst = max(worst, *(difference(shape, rng) for shape in [(40, 6), (3, 65), (1, 2500)]))
            y = ops.softmax(xp.asarray(x), xp=xp).get()
        worst = max(worst, 0 if np.allclose(y, special.softmax(x), rtol=1e-5) else np.inf)
    assert worst > 1
