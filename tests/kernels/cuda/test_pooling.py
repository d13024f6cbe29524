"""Pooling's CUDA kernels against float64, and against faults planted in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vitkit import ops
from vitkit.testing import cuda_on_cpu, strict_device

xp = strict_device.xp
EPS = float(np.finfo("float32").eps)
SHAPES = [(1, 1, 1), (3, 3, 3), (2, 31, 33), (5, 9, 32), (2, 65, 132), (3, 197, 12), (1, 8, 300)]


def wrong(shape: tuple[int, int, int], rng: np.random.Generator) -> str:
    """Return which result is wrong, or nothing."""
    batch, count, width = shape
    x = rng.standard_normal(shape).astype("float32")
    dy = rng.standard_normal((batch, width)).astype("float32")
    with strict_device.count_syncs() as syncs:
        y = ops.pool_mean(xp.asarray(x), xp=xp)
        dmean = ops.pool_mean_backward(xp.asarray(dy), count, xp=xp)
        dfirst = ops.pool_first_backward(xp.asarray(dy), count, xp=xp)
    assert syncs == []
    bound = EPS * (2 + np.sqrt(count)) / np.sqrt(count)
    if np.abs(y.get() - x.astype("float64").mean(axis=1)).max() > bound * np.abs(x).max():
        return "mean"
    if not np.array_equal(dmean.get(), ops.pool_mean_backward.reference(dy, count, xp=np)):
        return "gradient of the mean"
    right = np.array_equal(dfirst.get(), ops.pool_first_backward.reference(dy, count, xp=np))
    return "" if right else "gradient of the first"


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values(shape: tuple[int, int, int], rng: np.random.Generator) -> None:
    assert wrong(shape, rng) == ""


@pytest.mark.usefixtures("emulated")
def test_odd_numbers_views_and_what_the_reference_serves(rng: np.random.Generator) -> None:
    host = rng.standard_normal((4, 9, 6)).astype("float32")
    host[0, 2, :4] = np.nan, np.inf, -np.inf, 1e-45
    x = xp.asarray(host).T[::2]
    expected = host.T[::2].astype("float64").mean(axis=1)
    np.testing.assert_allclose(ops.pool_mean(x, xp=xp).get(), expected, atol=4 * EPS)
    for backward in (ops.pool_first_backward, ops.pool_mean_backward):
        dx = backward(x[:, 2].T, 3, xp=xp)  # what is odd goes to the first alone, or to all
        right = backward.reference(host.T[::2][:, 2].T, 3, xp=np)
        np.testing.assert_array_equal(dx.get(), right)
    assert ops.pool_mean.kernels["cupy"](x[0], xp=xp) is NotImplemented
    backwards: Any = ops.pool_mean_backward.kernels["cupy"]
    assert backwards(x, 3, xp=xp) is NotImplemented
    assert backwards(x[0], 0, xp=xp) is NotImplemented
    assert backwards(x[0].astype("float64"), 3, xp=xp) is NotImplemented


def test_the_order_of_threads_changes_no_bit(rng: np.random.Generator) -> None:
    x = xp.asarray(rng.standard_normal((2, 197, 40)).astype("float32"))
    found = set()
    for order in (0, 1, 2, 3):
        with cuda_on_cpu.emulated(order):
            found.add(ops.pool_mean(x, xp=xp).get().tobytes())
    assert len(found) == 1


FAULTS = {
    "tokens left out": ("token += 8", "token += 16"),
    "a warp too few": ("for (int i = 0; i < 8; i++) sum +=", "for (int i = 0; i < 7; i++) sum +="),
    "no barrier": ("  __syncthreads();\n  const int mine", "  const int mine"),
    "a sum": ("sum / tokens", "sum"),
    "columns of others": ("sums[warp][lane * V + i]", "sums[warp][lane + i * 32]"),
    "columns of the first block": ("blockIdx.x % across * 32 * V", "0"),
    "one image": ("dy + image * width", "dy"),
    "a token with part of another": ("at % width", "at % (width - 1)"),
    "all tokens for the first": ("if (share != 0.f || at < width)", "if (true)"),
    "a dropped tail": ("if (at >= count) return", "if (at + V >= count) return"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_noticed(
    fault: str, plant: Callable[[str, str, str], None], rng: np.random.Generator
) -> None:
    if reason := cuda_on_cpu.why_not():
        pytest.skip(reason)
    plant("pooling.cuh", *FAULTS[fault])
    found = set()
    for order in (0, 1, 2):
        with cuda_on_cpu.emulated(order), np.errstate(all="ignore"):
            found |= {wrong(shape, rng) for shape in SHAPES[1:]}
    assert found != {""}
