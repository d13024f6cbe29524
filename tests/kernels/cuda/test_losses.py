"""Softmax cross-entropy's CUDA kernels against PyTorch in float64, and against planted faults."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import special

from vitkit import ops
from vitkit.kernels.cuda._rows import LONG
from vitkit.testing import cuda_on_cpu, strict_device

xp = strict_device.xp
EPS = float(np.finfo("float32").eps)
SHAPES = [(1, 1), (3, 3), (31, 10), (5, 32), (2, 33), (9, 65), (7, 197), (2, 1000)]
LONG_SHAPES = [(2, LONG), (3, LONG + 1), (1, 9 * 1024 + 3)]
INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]


def expected(logits: np.ndarray, targets: np.ndarray, smoothing: float) -> tuple[float, np.ndarray]:
    """Return loss and gradient in float64, of classes or a distribution."""
    if targets.ndim == 1:
        targets = np.eye(logits.shape[1])[targets]
    targets = targets.astype("float64") * (1 - smoothing) + smoothing / logits.shape[1]
    log_p = special.log_softmax(logits.astype("float64"), axis=1)
    gradient = np.exp(log_p) * targets.sum(axis=1, keepdims=True) - targets
    return float(-(targets * log_p).sum() / len(logits)), gradient / len(logits)


def difference(
    shape: tuple[int, int], soft: bool, smoothing: float, rng: np.random.Generator
) -> float:
    """Return the worst error of both outputs, in units of what float32 may lose in their sums."""
    logits = (3 * rng.standard_normal(shape)).astype("float32")
    labels = rng.integers(0, shape[1], shape[0])
    if soft:
        labels = special.softmax(rng.standard_normal(shape), axis=1).astype("float32")
        labels /= labels.sum(axis=1, keepdims=True)
    on_device = xp.asarray(logits), xp.asarray(labels)
    with strict_device.count_syncs() as syncs:
        loss, dlogits = ops.softmax_cross_entropy(*on_device, smoothing, xp=xp)
    assert syncs == []
    assert (loss.shape, loss.dtype, dlogits.dtype) == ((), np.float32, np.float32)
    exact, gradient = expected(logits, labels, smoothing)
    spread = np.ptp(logits.astype("float64"), axis=1).max()
    roundings = 8 + spread + np.sqrt(shape[1] / 32)
    errors = (
        abs(loss.get() - exact) / (EPS * roundings * (1 + spread)),
        np.abs(dlogits.get() - gradient).max() * shape[0] / (EPS * roundings),
    )
    return float(np.nan_to_num(errors, nan=np.inf).max())


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("shape", SHAPES + LONG_SHAPES, ids=str)
def test_values(
    shape: tuple[int, int], soft: bool, smoothing: float, rng: np.random.Generator
) -> None:
    assert difference(shape, soft, smoothing, rng) < 1


@pytest.mark.usefixtures("emulated_once")
def test_more_samples_than_the_last_block_has_threads(rng: np.random.Generator) -> None:
    assert difference((1030, 4), False, 0.0, rng) < 1


@pytest.mark.usefixtures("emulated_once")
def test_follows_torch(rng: np.random.Generator) -> None:
    torch: Any = pytest.importorskip("torch", reason="torch, what it is compared to, is missing")
    host = (5 * rng.standard_normal((13, 101))).astype("float32")
    hard, soft = rng.integers(0, 101, 13), special.softmax(rng.standard_normal((13, 101)), axis=1)
    for labels in (hard, soft):
        logits = torch.tensor(host, dtype=torch.float64, requires_grad=True)
        theirs = torch.nn.functional.cross_entropy(
            logits, torch.tensor(labels), label_smoothing=0.2
        )
        theirs.backward()
        loss, dlogits = ops.softmax_cross_entropy(xp.asarray(host), xp.asarray(labels), 0.2, xp=xp)
        assert abs(loss.get() - theirs.item()) < 40 * EPS * theirs.item()
        assert np.abs(dlogits.get() - logits.grad.numpy()).max() < 40 * EPS / 13


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("dtype", INTEGERS)
def test_classes_of_every_type(dtype: str, rng: np.random.Generator) -> None:
    classes = min(300, np.iinfo(dtype).max)  # more than a byte holds, where there is more
    logits = xp.asarray(rng.standard_normal((70, classes)).astype("float32"))
    labels = rng.integers(0, classes, 70)
    labels[:2] = 0, classes - 1
    found = ops.softmax_cross_entropy(logits, xp.asarray(labels.astype(dtype)), xp=xp)
    right = ops.softmax_cross_entropy(logits, xp.asarray(labels), xp=xp)
    for one, other in zip(found, right, strict=True):
        assert one.get().tobytes() == other.get().tobytes()


@pytest.mark.usefixtures("emulated_once")
def test_classes_of_two_bytes_have_no_sign(rng: np.random.Generator) -> None:
    logits = rng.standard_normal((1, 2**15 + 2)).astype("float32")
    labels = np.asarray([2**15 + 1], "uint16")
    loss, _ = ops.softmax_cross_entropy(xp.asarray(logits), xp.asarray(labels), xp=xp)
    right = -special.log_softmax(logits[0].astype("float64"))[2**15 + 1]
    assert abs(loss.get() / right - 1) < 20 * EPS


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize(
    ("dtype", "label"),
    [("int64", -1), ("int8", -128), ("uint8", 255), ("int32", 33), ("uint64", 2**63 + 1)],
)
def test_a_class_that_there_is_not_makes_all_of_it_nan(
    dtype: str, label: int, rng: np.random.Generator
) -> None:
    logits = rng.standard_normal((3, 33)).astype("float32")
    labels = np.asarray([4, label, 32], dtype)
    for smoothing in (0.0, 0.1):
        given = xp.asarray(logits), xp.asarray(labels), smoothing
        loss, dlogits = ops.softmax_cross_entropy(*given, xp=xp)
        assert np.isnan(loss.get())
        _, right = ops.softmax_cross_entropy.reference(*given, xp=xp)
        np.testing.assert_allclose(dlogits.get(), right.get(), atol=4 * EPS)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("odd", [3.4e38, -3.4e38, 1e30, np.inf, -np.inf, np.nan, 1e-45])
def test_logits_at_the_edge(odd: float, soft: bool, rng: np.random.Generator) -> None:
    logits = rng.standard_normal((4, 10)).astype("float32")
    logits[0, 3] = odd
    logits[2] = odd
    logits[3] = np.where(np.arange(10) % 2, odd, -odd)
    labels = np.full((4, 10), 0.1, "float32") if soft else np.asarray([3, 0, 1, 2])
    for rows in ([0, 1], [1, 2], [3]):
        given = xp.asarray(logits[rows]), xp.asarray(labels[rows])
        with np.errstate(all="ignore"):
            loss, dlogits = ops.softmax_cross_entropy(*given, xp=xp)
            right, slopes = ops.softmax_cross_entropy.reference(*given, xp=xp)
        np.testing.assert_allclose(loss.get(), right.get(), rtol=20 * EPS)
        np.testing.assert_allclose(dlogits.get(), slopes.get(), atol=4 * EPS)


@pytest.mark.usefixtures("emulated")
def test_views_and_what_the_reference_serves(rng: np.random.Generator) -> None:
    logits = xp.asarray(rng.standard_normal((10, 12)).astype("float32"))
    labels = xp.asarray(rng.integers(0, 5, 20))
    soft = xp.asarray(special.softmax(rng.standard_normal((5, 12)), axis=0))  # float64
    for given in (logits.T[:, ::2], labels[:12]), (logits.T[:, ::2], soft.T):
        loss, dlogits = ops.softmax_cross_entropy(*given, xp=xp)
        right, gradient = expected(given[0].get(), given[1].get(), 0.0)
        np.testing.assert_allclose(loss.get(), right, rtol=20 * EPS)
        np.testing.assert_allclose(dlogits.get(), gradient, atol=20 * EPS)
    kernel = ops.softmax_cross_entropy.kernels["cupy"]
    for wrong in (labels[:9], labels[:10].get(), soft, labels[:10] > 0):
        assert kernel(logits, wrong, 0.0, xp=xp) is NotImplemented
    assert kernel(logits, labels[:10], 1.0, xp=xp) is NotImplemented
    assert kernel(logits.astype("float64"), labels[:10], 0.0, xp=xp) is NotImplemented


def test_the_order_of_threads_changes_no_bit(rng: np.random.Generator) -> None:
    logits = xp.asarray(rng.standard_normal((1100, 7)).astype("float32"))
    labels = xp.asarray(rng.integers(0, 7, 1100))
    found = set()
    for order in (0, 1, 2, 3):
        with cuda_on_cpu.emulated(order):
            loss, dlogits = ops.softmax_cross_entropy(logits, labels, 0.1, xp=xp)
            found.add(loss.get().tobytes() + dlogits.get().tobytes())
    assert len(found) == 1


FAULTS = {
    "a shuffle too few": ("for (int lane = 16; lane", "for (int lane = 8; lane"),
    "the next class": ("c + i == label", "c + i == label + 1"),
    "labels of another sample": ("labels, bytes, row)", "labels, bytes, 0)"),
    "soft labels of another": ("static_cast<const float*>(labels) + at", "(const float*)labels"),
    "no smoothing": ("t[i] * kept + even", "t[i] * kept"),
    "a sum": ("(expf(z) / total - target) * share", "(expf(z) / total - target)"),
    "halves": ("return 2.f * (difference", "return (difference"),
    "no barrier": ("  __syncthreads();\n  return warp_sum(", "  return warp_sum("),
    "a sample too few": ("i < count; i += blockDim.x", "i < count - 1; i += blockDim.x"),
    "losses of one block": ("losses[row] = loss", "losses[row % 4] = loss"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_noticed(
    fault: str, plant: Callable[[str, str, str], None], rng: np.random.Generator
) -> None:
    if reason := cuda_on_cpu.why_not():
        pytest.skip(reason)
    plant("losses.cuh", *FAULTS[fault])
    worst = 0.0
    for order in (0, 1, 2):
        with cuda_on_cpu.emulated(order), np.errstate(all="ignore"):
            for soft in (False, True):
                for shape in ((5, 33), (9, 4), (2, LONG + 1)):
                    worst = max(worst, difference(shape, soft, 0.1, rng))
    assert worst > 1
