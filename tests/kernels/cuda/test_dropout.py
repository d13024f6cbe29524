"""Dropout's CUDA kernels draw the host's masks to the bit, and planted faults are noticed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vitkit import ops
from vitkit.backend import philox, record
from vitkit.testing import cuda_on_cpu, strict_device

xp = strict_device.xp
SIZES = [1, 3, 7, 8, 9, 31, 32, 33, 65, 197, 2048, 2049, 5003]
KEYS = [(0, 0, 0), (1, 2, 3), (2**64 - 1, 2**63 + 5, 2**40 + 1)]
LARGEST = 2**64 - 1


def masked(x: np.ndarray, rate: float, key: tuple[int, int, int], samples: bool) -> np.ndarray:
    """Return what the host's mask leaves of numbers, or of samples."""
    seed, *indices = key
    shape = (len(x), *(1,) * (x.ndim - 1)) if samples else x.shape
    mask = philox(seed, "dropout", *indices).random(shape, np.float32) >= rate
    with np.errstate(invalid="ignore"):
        return x * mask * np.float32(1 / (1 - rate))


def same(found: Any, expected: np.ndarray) -> bool:
    """Return whether float32 numbers agree in every bit, but for those of NaNs."""
    host = found.get()
    equal = (host.view("uint32") == expected.view("uint32")) | np.isnan(expected) & np.isnan(host)
    return host.shape == expected.shape and bool(equal.all())


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("key", KEYS, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_numbers(size: int, key: tuple[int, int, int], rng: np.random.Generator) -> None:
    host = rng.standard_normal(size + 1).astype("float32")
    for first in (0, 1):  # aligned, and not
        x = xp.asarray(host)[first:]
        with strict_device.count_syncs() as syncs:
            y, dx = (op(x, 0.3, key, xp=xp) for op in (ops.dropout, ops.dropout_backward))
        assert syncs == []
        assert same(y, masked(host[first:], 0.3, key, False))
        assert same(dx, y.get())


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("key", KEYS, ids=str)
@pytest.mark.parametrize(
    "shape", [(1,), (9,), (33, 3), (7, 5, 4), (3, 31, 65), (2, 40, 32)], ids=str
)
def test_samples(
    shape: tuple[int, ...], key: tuple[int, int, int], rng: np.random.Generator
) -> None:
    host = rng.standard_normal(shape).astype("float32")
    with strict_device.count_syncs() as syncs:
        y, dx = (
            op(xp.asarray(host), 0.4, key, xp=xp) for op in (ops.drop_path, ops.drop_path_backward)
        )
        gain = ops.path_gain(shape[0], 0.4, key, np.dtype("float32"), xp=xp)
    assert syncs == []
    assert same(y, masked(host, 0.4, key, True))
    assert same(dx, y.get())
    assert same(gain, masked(np.ones(shape[0], "float32"), 0.4, key, True))


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("rate", [0.0, 2.0**-24, 2.0**-25, 0.1, 0.5, 0.9, 1 - 2.0**-24, 0.99999999])
def test_rates(rate: float) -> None:
    host = np.ones(4099, "float32")
    assert same(
        ops.dropout(xp.asarray(host), rate, (5, 6, 7), xp=xp), masked(host, rate, (5, 6, 7), False)
    )


@pytest.mark.usefixtures("emulated")
def test_a_number_drawn_exactly_at_the_rate_is_kept() -> None:
    host, drawn = np.ones(64, "float32"), philox(1, "dropout", 2, 3).random(64, np.float32)
    for number in drawn[:9]:
        for rate in (float(number), float(np.nextafter(number, np.float32(1)))):
            y = ops.dropout(xp.asarray(host), rate, (1, 2, 3), xp=xp)
            assert same(y, masked(host, rate, (1, 2, 3), False))
            assert bool((y.get() > 0)[drawn == number].all()) == (rate == float(number))


@pytest.mark.usefixtures("emulated")
def test_odd_numbers_and_views(rng: np.random.Generator) -> None:
    host = rng.standard_normal((6, 10, 4)).astype("float32")
    host[:, ::3, 0] = np.asarray([np.nan, np.inf, -np.inf, 1e-45])
    views: list[Callable[[Any], Any]] = [lambda a: a.T, lambda a: a[::2, ::-1, 1:]]
    for view in views:
        x = view(xp.asarray(host))
        assert same(
            ops.dropout(x, 0.5, (1, 2, 3), xp=xp), masked(view(host), 0.5, (1, 2, 3), False)
        )
        assert same(
            ops.drop_path(x, 0.5, (1, 2, 3), xp=xp), masked(view(host), 0.5, (1, 2, 3), True)
        )


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("op", [ops.dropout, ops.drop_path], ids=lambda op: op.__name__)
def test_a_step_on_the_device_is_read_anew_each_time(op: Any, rng: np.random.Generator) -> None:
    host = rng.standard_normal((40, 12)).astype("float32")
    x, step = xp.asarray(host), xp.asarray(np.asarray(3, "int64"))
    graph, y = record(lambda: op(x, 0.5, (1, step, 2), xp=xp), xp=xp)
    for number in (3, 4, 2**40):
        step.fill(number)
        graph.replay()
        assert same(y, masked(host, 0.5, (1, number, 2), op is ops.drop_path))


@pytest.mark.usefixtures("emulated")
def test_what_the_reference_serves() -> None:
    x, key = xp.ones((3, 4), "float32"), (1, 2, 3)
    kernel: Any
    for kernel in (op.kernels["cupy"] for op in (ops.dropout, ops.drop_path)):
        assert kernel(x.astype("float64"), 0.5, key, xp=xp) is NotImplemented
        assert kernel(x[:0], 0.5, key, xp=xp) is NotImplemented
        assert kernel(x, -0.5, key, xp=xp) is NotImplemented
        assert kernel(x, 0.5, (1, 2), xp=xp) is NotImplemented
        assert kernel(x, 0.5, (1, xp.ones(1, "int64"), 3), xp=xp) is NotImplemented
        for wrong in ((-1, 2, 3), (1, LARGEST + 1, 3), (1, 2, -3)):
            with pytest.raises(ValueError, match="between 0 and"):
                kernel(x, 0.5, wrong, xp=xp)
    assert ops.drop_path.kernels["cupy"](x[0, 0], 0.5, key, xp=xp) is NotImplemented


FAULTS = {
    "a round too few": ("round < 10", "round < 9"),
    "the low half of a product": ("__umul64hi(FACTOR1, c2)", "(FACTOR1 * c2)"),
    "one key": ("high0 ^ c3 ^ k1", "high0 ^ c3 ^ k0"),
    "a wrong bump": ("0xBB67AE8584CAA73Bull", "0xBB67AE8584CAA73Aull"),
    "the block before": ("philox(at / DRAWN + 1", "philox(at / DRAWN"),
    "the high half first": ("32 * ((k + i) % 2)", "32 * (1 - (k + i) % 2)"),
    "step and count exchanged": ("step, draws, last", "draws, step, last"),
    "the lower bits": ("bits >> 8 >= least", "(bits & 0xffffff) >= least"),
    "at the rate dropped": (">= least", "> least"),
    "a dropped tail": ("if (i < left) put", "if (i + 1 < left) put"),
    "a choice": ("(bits >> 8 >= least ? gain : 0.f)", "1.f"),
    "the first sample": ("factors[sample]", "factors[0]"),
    "another sample": ("x + sample * width", "x + sample / 2 * width"),
    "half a sample": ("blockIdx.x % across", "blockIdx.x % across / 2"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_noticed(
    fault: str, plant: Callable[[str, str, str], None], rng: np.random.Generator
) -> None:
    if reason := cuda_on_cpu.why_not():
        pytest.skip(reason)
    plant("dropout.cuh", *FAULTS[fault])
    right, key = [], (2**63, 5, 6)
    at = float(philox(2**63, "dropout", 5, 6).random(9, np.float32)[8])
    with cuda_on_cpu.emulated():
        for shape in ((9,), (201,), (3, 1031), (2, 4096)):
            host = rng.standard_normal(shape).astype("float32")
            x = xp.asarray(host)
            right.append(same(ops.dropout(x, at, key, xp=xp), masked(host, at, key, False)))
            right.append(same(ops.drop_path(x, 0.4, key, xp=xp), masked(host, 0.4, key, True)))
    assert not all(right)
