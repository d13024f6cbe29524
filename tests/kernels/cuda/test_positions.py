"""Class token and positions by CUDA kernels, against float64 and planted faults."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vitkit import ops
from vitkit.testing import cuda_on_cpu, strict_device

xp = strict_device.xp
EPS = float(np.finfo("float32").eps)
SHAPES = [(1, 1, 1), (3, 4, 3), (2, 31, 33), (5, 65, 8), (2, 197, 12), (70, 3, 36), (300, 1, 4)]


def wrong(shape: tuple[int, int, int], with_token: bool, rng: np.random.Generator) -> str:
    """Return which result is wrong, or nothing."""
    batch, count, width = shape
    patches = rng.standard_normal(shape).astype("float32")
    token = rng.standard_normal((1, 1, width)).astype("float32") if with_token else None
    positions = rng.standard_normal((1, count + with_token, width)).astype("float32")
    dtokens = rng.standard_normal((batch, count + with_token, width)).astype("float32")
    given = [None if each is None else xp.asarray(each) for each in (patches, token, positions)]
    with strict_device.count_syncs() as syncs:
        tokens = ops.embed_positions(*given, xp=xp)
        found = ops.embed_positions_backward(xp.asarray(dtokens), with_token, xp=xp)
    assert syncs == []
    if not np.array_equal(
        tokens.get(), ops.embed_positions.reference(patches, token, positions, xp=np)
    ):
        return "tokens"
    dpatches, dtoken, dpositions = (np.empty(0) if each is None else each.get() for each in found)
    if not np.array_equal(dpatches, dtokens[:, int(with_token) :]):
        return "dpatches"
    exact = dtokens.astype("float64").sum(axis=0, keepdims=True)
    bound = EPS * (2 + np.sqrt(batch)) * np.abs(dtokens).max()
    if np.abs(dpositions - exact).max() > bound:
        return "dpositions"
    right = np.array_equal(dtoken, dpositions[:, :1]) if with_token else found[1] is None
    return "" if right else "dtoken"


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("with_token", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values(shape: tuple[int, int, int], with_token: bool, rng: np.random.Generator) -> None:
    assert wrong(shape, with_token, rng) == ""


@pytest.mark.usefixtures("emulated")
def test_odd_numbers_views_and_what_the_reference_serves(rng: np.random.Generator) -> None:
    host = rng.standard_normal((5, 6, 8)).astype("float32")
    host[0, 0, :4] = np.nan, np.inf, -np.inf, 1e-45
    x, token, places = xp.asarray(host).T[::2], xp.ones((1, 1, 5), "float32"), xp.asarray(host)
    tokens = ops.embed_positions(x, token, x[:1, :1].repeat(7, axis=1), xp=xp)
    patches = host.T[::2]
    expected = np.concatenate([np.ones((4, 1, 5), "float32"), patches], 1) + patches[:1, :1]
    np.testing.assert_array_equal(tokens.get(), expected)
    dpatches, _, dpositions = ops.embed_positions_backward(x, False, xp=xp)
    np.testing.assert_array_equal(dpatches.get(), patches)
    np.testing.assert_allclose(dpositions.get()[0], patches.sum(axis=0), atol=8 * EPS)
    kernel: Any = ops.embed_positions.kernels["cupy"]
    for wrong_places in (places[:1], places, xp.ones((1, 7, 5), "float64")):
        assert kernel(x, token, wrong_places, xp=xp) is NotImplemented
    assert kernel(x, token[0], xp.ones((1, 7, 5), "float32"), xp=xp) is NotImplemented
    backward: Any = ops.embed_positions_backward.kernels["cupy"]
    assert backward(x[0], True, xp=xp) is NotImplemented


FAULTS = {
    "tokens for patches": ("at < lead ? token + at", "at <= lead ? token + at"),
    "positions of another": ("load(positions + at, p)", "load(positions, p)"),
    "patches moved": ("+ (at - lead), v)", "+ at, v)"),
    "one image": ("const i64 image = blockIdx.x / across", "const i64 image = 0"),
    "one block of an image": ("blockIdx.x % across * blockDim.x", "0"),
    "a dropped tail": ("if (at >= count) return", "if (at + V >= count) return"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_noticed(
    fault: str, plant: Callable[[str, str, str], None], rng: np.random.Generator
) -> None:
    if reason := cuda_on_cpu.why_not():
        pytest.skip(reason)
    plant("positions.cuh", *FAULTS[fault])
    with cuda_on_cpu.emulated(), np.errstate(all="ignore"):
        assert {wrong(shape, True, rng) for shape in SHAPES} != {""}
