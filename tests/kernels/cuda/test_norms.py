"""The CUDA kernels of the global norm and of clipping, against float64 and planted faults."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vitkit import ops
from vitkit.models import ViT
from vitkit.optim import clip_global_norm
from vitkit.testing import cuda_on_cpu, strict_device

xp = strict_device.xp
EPS = np.finfo("float32").eps
ORDERS = (0, 1, 2)
SIZES = [(1,), (3,), (31, 32, 33), (65, 197), (16384, 16385, 4095), (70001,)]


def arrays(sizes: tuple[int, ...], first: int, rng: np.random.Generator) -> list[Any]:
    """Return arrays that begin at a number of their memory, and so aligned or not."""
    hosts = [rng.standard_normal(size + first).astype("float32") for size in sizes]
    return [xp.asarray(host)[first:] for host in hosts]


def difference(sizes: tuple[int, ...], first: int, rng: np.random.Generator) -> float:
    """Return the error of a norm, in units of what float32 may lose in its sum."""
    listed = arrays(sizes, first, rng)
    expected = np.linalg.norm(np.concatenate([a.get() for a in listed]).astype("float64"))
    found = ops.global_norm(listed, xp=xp)
    assert (found.shape, found.dtype) == ((), np.float32)
    # 16 and some 20 more roundings of half an eps on the way through the tree; half of it in a root
    return float(abs(found.get() - expected) / (3 * EPS * expected))


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_norms(sizes: tuple[int, ...], first: int, rng: np.random.Generator) -> None:
    assert difference(sizes, first, rng) < 1


@pytest.mark.usefixtures("emulated_once")
def test_a_sum_of_a_million_is_as_precise_as_a_pairwise_one() -> None:
    # one after another would lose three digits
    norm = ops.global_norm([xp.asarray(np.full(1_000_000, 0.1, "float32"))], xp=xp)
    expected = float(np.float32(0.1)) * 1000
    assert abs(norm.get() - expected) < 8 * EPS * expected  # all round to one side


def test_the_order_of_threads_changes_no_bit(rng: np.random.Generator) -> None:
    listed = arrays((40_000, 77), 1, rng)
    found = set()
    for order in (*ORDERS, 3):
        with cuda_on_cpu.emulated(order):
            found.add(ops.global_norm(listed, xp=xp).get().tobytes())
    assert len(found) == 1


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf, 1e30, 3e-23, 1e-40])
def test_numbers_at_the_edge(odd: float) -> None:
    host = np.zeros(197, "float32")
    host[190] = odd
    with np.errstate(over="ignore"):
        expected = ops.global_norm.reference([host], xp=np)
        assert np.array_equal(ops.global_norm([xp.asarray(host)], xp=xp).get(), expected, True)


@pytest.mark.usefixtures("emulated")
def test_views_iterators_and_what_the_reference_serves(rng: np.random.Generator) -> None:
    host = rng.standard_normal((33, 64)).astype("float32")
    found = ops.global_norm(iter([xp.asarray(host)[:, ::2].T, xp.zeros((0, 3), "float32")]), xp=xp)
    assert abs(found.get() / np.linalg.norm(host[:, ::2].astype("float64")) - 1) < 3 * EPS
    assert ops.global_norm([], xp=xp).get() == 0
    assert ops.global_norm([xp.zeros(0, "float32")], xp=xp).get() == 0
    wide = ops.global_norm([xp.asarray(host.astype("float64"))], xp=xp)
    assert wide.dtype == np.float64


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("norm", [0.5, 2.0, 5.0, 1e-30, np.inf, np.nan])
def test_clipping(norm: float, first: int, rng: np.random.Generator) -> None:
    listed = arrays((1, 33, 4096 + 3), first, rng)
    listed[1][:4] = xp.asarray(np.asarray([np.nan, np.inf, 1e-40, -0.0], "float32"))
    before = [array.get() for array in listed]
    on_device = xp.asarray(np.float32(norm))
    with strict_device.count_syncs() as syncs:
        for array in listed:
            assert ops.clip_by_norm_inplace.kernels["cupy"](array, on_device, 2.0, xp=xp) is None
    assert syncs == []
    with np.errstate(invalid="ignore"):
        for array, host in zip(listed, before, strict=True):
            ops.clip_by_norm_inplace.reference(host, np.float32(norm), 2.0, xp=np)
            assert np.array_equal(array.get(), host, equal_nan=True)


@pytest.mark.usefixtures("emulated")
def test_what_is_left_to_the_reference_is_clipped_too(rng: np.random.Generator) -> None:
    kernel = ops.clip_by_norm_inplace.kernels["cupy"]
    for dtype, of_norm, step in (
        ("float32", "float32", 2),
        ("float64", "float64", 1),
        ("float32", "float64", 1),
    ):
        host = rng.standard_normal((5, 8)).astype(dtype)
        g, norm = xp.asarray(host)[:, ::step], xp.asarray(np.asarray(4, of_norm))
        assert kernel(g, norm, 2.0, xp=xp) is NotImplemented
        assert np.array_equal(g.get(), host[:, ::step])
        ops.clip_by_norm_inplace(g, norm, 2.0, xp=xp)
        assert g.dtype == dtype
        assert np.allclose(g.get(), host[:, ::step] / 2, rtol=1e-6)


@pytest.mark.usefixtures("emulated")
def test_clipping_is_by_the_kernel(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    model = ViT("Ti/4", image_size=8, depth=1, num_classes=3, xp=xp)
    for group in model.groups:
        group.grads[...] = xp.asarray(rng.standard_normal(group.grads.shape, "float32"))
    before = [group.grads.get() for group in model.groups]
    reference = ops.clip_by_norm_inplace.reference
    monkeypatch.setattr(ops.clip_by_norm_inplace, "reference", None)  # an error where it is called
    norm = clip_global_norm(model.groups, 0.5, xp=xp)
    for group, host in zip(model.groups, before, strict=True):
        reference(host, norm.get(), 0.5, xp=np)
        assert np.array_equal(group.grads.get(), host)


@pytest.mark.usefixtures("emulated")
def test_nothing_waits_for_the_device(rng: np.random.Generator) -> None:
    listed = arrays((65, 40_000), 0, rng)
    with strict_device.count_syncs() as syncs:
        ops.global_norm(listed, xp=xp)
    assert syncs == []


FAULTS = {
    "a shuffle too few": ("for (int lane = 16; lane", "for (int lane = 8; lane"),
    "no barrier": ("  __syncthreads();\n  return warp_sum(", "  return warp_sum("),
    "a dropped tail": ("x[i] = i < left ?", "x[i] = i + 1 < left ?"),
    "a block too few": ("int i = threadIdx.x; i < count;", "int i = threadIdx.x; i < count - 1;"),
    "a round too few": ("round < 16", "round < 15"),
    "a number of each vector": ("total[i] += total[i + step]", "total[i] += 0"),
    "overlapping blocks": ("blockIdx.x * ROUNDS + round", "blockIdx.x + round"),
    "no root": ("sqrtf(sum)", "sum"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_noticed(
    fault: str, plant: Callable[[str, str, str], None], rng: np.random.Generator
) -> None:
    if reason := cuda_on_cpu.why_not():
        pytest.skip(reason)
    plant("norms.cuh", *FAULTS[fault])

    def is_noticed(order: int) -> bool:
        with cuda_on_cpu.emulated(order), np.errstate(all="ignore"):
            return any(not difference(sizes, 0, rng) < 1 for sizes in SIZES)

    assert any(map(is_noticed, ORDERS))


SCALING_FAULTS = {
    "turned around": ("limit / (*norm + 1e-6f)", "(*norm + 1e-6f) / limit"),
    "always": ("if (scale >= 1.f) return;", ""),
    "no tail": ("if (i < left) put", "if (i + 1 < left) put"),
}


@pytest.mark.parametrize("fault", SCALING_FAULTS)
def test_a_planted_fault_of_scaling_is_noticed(
    fault: str, plant: Callable[[str, str, str], None]
) -> None:
    if reason := cuda_on_cpu.why_not():
        pytest.skip(reason)
    plant("norms.cuh", *SCALING_FAULTS[fault])
    wrong = False
    for norm, scale in ((4.0, 0.5), (1.0, 1.0)):
        host = np.arange(1, 8, dtype="float32")
        array = xp.asarray(host)
        with cuda_on_cpu.emulated():
            ops.clip_by_norm_inplace(array, xp.asarray(np.float32(norm)), 2.0, xp=xp)
        wrong |= not np.allclose(array.get(), host * scale, rtol=1e-5)
    assert wrong
