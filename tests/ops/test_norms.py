"""The global norm, and clipping by it, against torch and closed forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vitkit.backend import ArrayModule, to_numpy
from vitkit.ops.norms import clip_by_norm_inplace, global_norm
from vitkit.testing import assert_close, strict_device

SHAPES = [(), (1,), (31,), (4, 5, 6), (0, 3)]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_follows_torch(dtype: str, xp: ArrayModule, rng: np.random.Generator) -> None:
    torch: Any = pytest.importorskip("torch", reason="torch, what it is compared to, is missing")
    hosts = [np.asarray(rng.standard_normal(shape), dtype) for shape in SHAPES]
    norm = global_norm([xp.asarray(host) for host in hosts], xp=xp)
    expected = torch.nn.utils.get_total_norm([torch.from_numpy(host) for host in hosts])
    assert norm.shape == ()
    assert norm.dtype == dtype
    assert_close(norm, expected.numpy(), reduction=152)


def test_closed_form(xp: ArrayModule) -> None:
    arrays = [xp.asarray(np.full((2, 3), 1.5)), xp.asarray(np.asarray(-3.0))]
    assert_close(global_norm(arrays, xp=xp), np.sqrt(6 * 1.5**2 + 9.0))


def test_takes_views_and_iterators(xp: ArrayModule) -> None:
    array = xp.asarray(np.arange(12.0).reshape(3, 4))
    every_other = global_norm(iter([array[:, ::2]]), xp=xp)
    assert_close(every_other, np.linalg.norm(np.arange(0, 12.0, 2)))


def test_of_nothing_is_zero(xp: ArrayModule) -> None:
    norm = global_norm([], xp=xp)
    assert norm.shape == ()
    assert_close(norm, np.float32(0))


def test_is_precise_over_a_million_float32(xp: ArrayModule) -> None:
    size = 1_000_000  # summed one after another in float32, the error would be about 1e-3
    norm = global_norm([xp.asarray(np.full(size, 0.1, "float32"))], xp=xp)
    assert_close(norm, np.asarray(np.float64(np.float32(0.1)) * 1000))


def test_waits_for_no_device() -> None:
    xp = strict_device.xp
    arrays = [xp.asarray(np.ones((2, 3), "float32")), xp.asarray(np.ones(4, "float32"))]
    with strict_device.count_syncs() as syncs:
        norm = global_norm(arrays, xp=xp)
    assert syncs == []
    assert_close(norm, np.sqrt(np.float32(10)))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("norm", [0.0, 0.5, 1.999, 2.0, 2.5, 40.0, np.inf, np.nan])
def test_clips_to_the_bit_as_it_is_written(
    norm: float, dtype: str, xp: ArrayModule, rng: np.random.Generator
) -> None:
    host = rng.standard_normal((197, 1001)).astype(dtype)  # more than the CPU takes in one piece
    host[0, :3] = -0.0, 1e-45, 1e30
    g, given = xp.asarray(host.copy()), xp.asarray(np.asarray(norm, dtype))
    assert clip_by_norm_inplace(g, given, 2.0, xp=xp) is None
    expected = host * np.minimum(1.0, 2.0 / (np.asarray(norm, dtype) + 1e-6))
    assert g.dtype == dtype
    found = to_numpy(g)
    np.testing.assert_array_equal(found, expected)
    if not np.isnan(norm):
        np.testing.assert_array_equal(np.signbit(found), np.signbit(expected))
    np.testing.assert_array_equal(to_numpy(given), np.asarray(norm, dtype))


def test_clipping_waits_for_no_device() -> None:
    xp = strict_device.xp
    arrays = [xp.asarray(np.full(size, 3.0, "float32")) for size in (4, 5)]
    with strict_device.count_syncs() as syncs:
        norm = global_norm(arrays, xp=xp)
        for array in arrays:
            clip_by_norm_inplace(array, norm, 1.0, xp=xp)
    assert syncs == []
    assert_close(global_norm(arrays, xp=xp), np.float32(1))
