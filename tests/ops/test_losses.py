"""Losses against plain loops; finiteness at any logits is in test_properties."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest

from vitkit import ops
from vitkit.backend import Array, ArrayModule, philox, to_numpy
from vitkit.testing import assert_close, strict_device

LARGEST = float(np.finfo(np.float32).max)


def cross_entropy_loop(logits: np.ndarray, targets: np.ndarray) -> float:
    total = 0.0
    for x, t in zip(logits.astype(float), targets, strict=True):
        log_sum = x.max() + math.log(sum(math.exp(v - x.max()) for v in x))
        total += sum(float(t[k]) * (log_sum - x[k]) for k in range(len(x)))
    return total / len(logits)


def bce_loop(logits: np.ndarray, targets: np.ndarray) -> float:
    total = 0.0
    for x, t in zip(logits.astype(float).ravel(), targets.ravel(), strict=True):
        p = 1 / (1 + math.exp(-x))
        total -= float(t) * math.log(p) + (1 - float(t)) * math.log1p(-p)
    return total / logits.size


def squares_loop(logits: np.ndarray, targets: np.ndarray) -> float:
    pairs = zip(logits.astype(float).ravel(), targets.ravel(), strict=True)
    return sum((x - float(t)) ** 2 for x, t in pairs) / logits.size


LOSSES = {
    "softmax_cross_entropy": cross_entropy_loop,
    "sigmoid_bce": bce_loop,
    "mean_squared_error": squares_loop,
}
names = pytest.mark.parametrize("name", LOSSES)
dtypes = pytest.mark.parametrize("dtype", ["float64", "float32"])
smoothings = pytest.mark.parametrize("smoothing", [0.0, 0.1])


def one_hot(labels: np.ndarray, classes: int, smoothing: float = 0.0) -> np.ndarray:
    hot = np.zeros((len(labels), classes))
    for row, label in enumerate(labels):
        hot[row, label] = 1
    return hot * (1 - smoothing) + smoothing / classes


@names
@dtypes
@smoothings
@pytest.mark.parametrize("classes", [1, 3, 31, 32, 33])
@pytest.mark.parametrize("batch", [1, 4])
def test_value_with_integer_labels(
    name: str,
    smoothing: float,
    batch: int,
    classes: int,
    dtype: str,
    xp: ArrayModule,
    rng: np.random.Generator,
    bring: Any,
) -> None:
    logits = (2 * rng.standard_normal((batch, classes))).astype(dtype)
    labels = rng.integers(0, classes, batch)
    loss, dlogits = getattr(ops, name)(
        bring(logits, dtype), bring(labels, "int64"), smoothing, xp=xp
    )
    assert loss.shape == ()
    assert dlogits.shape == logits.shape
    assert loss.dtype == dlogits.dtype == dtype
    expected = LOSSES[name](logits, one_hot(labels, classes, smoothing))
    # Beside 1, since the cross-entropy of a single class is 0.
    assert_close(loss + 1, np.asarray(expected + 1), reduction=batch * classes)


@names
@dtypes
@smoothings
def test_value_with_soft_labels(
    name: str,
    smoothing: float,
    dtype: str,
    xp: ArrayModule,
    rng: np.random.Generator,
    bring: Any,
) -> None:
    logits = rng.standard_normal((5, 7)).astype(dtype)
    soft = rng.dirichlet(np.ones(7), 5).astype(dtype)
    loss, dlogits = getattr(ops, name)(bring(logits, dtype), bring(soft, dtype), smoothing, xp=xp)
    assert loss.dtype == dlogits.dtype == dtype
    expected = LOSSES[name](logits, soft * (1 - smoothing) + smoothing / 7)
    assert_close(loss, np.asarray(expected), reduction=35)


@names
@smoothings
@pytest.mark.parametrize("shape", [(1, 1), (1, 33), (4, 3), (33, 10)])
@pytest.mark.parametrize("soft", [True, False])
def test_gradient(
    name: str,
    soft: bool,
    shape: tuple[int, int],
    smoothing: float,
    xp: ArrayModule,
    rng: np.random.Generator,
    gradient_error: Any,
) -> None:
    host = (
        rng.dirichlet(np.ones(shape[1]), shape[0]) if soft else rng.integers(0, shape[1], shape[0])
    )
    logits, labels = rng.standard_normal(shape), xp.asarray(host)

    def loss(x: Array) -> tuple[Array, Array]:
        return getattr(ops, name)(x, labels, smoothing, xp=xp)

    if name == "softmax_cross_entropy" and shape[1] == 1:  # the loss of a single class is 0
        assert np.abs(to_numpy(loss(xp.asarray(logits))[1])).max() < 1e-15
    else:
        error = gradient_error(lambda x: loss(x)[0], lambda dy, x: (dy * loss(x)[1],), logits)
        assert error < 1e-6


@names
def test_the_gradient_is_that_of_the_mean(
    name: str, xp: ArrayModule, rng: np.random.Generator, bring: Any
) -> None:
    logits, labels = rng.standard_normal((4, 3)), rng.integers(0, 3, 4)
    loss_fn = getattr(ops, name)
    loss, dlogits = loss_fn(bring(logits), bring(labels, "int64"), xp=xp)
    twice = loss_fn(bring(np.tile(logits, (2, 1))), bring(np.tile(labels, 2), "int64"), xp=xp)
    assert_close(twice[0], loss)
    assert_close(twice[1], np.tile(to_numpy(dlogits), (2, 1)) / 2)


@pytest.mark.parametrize("batch", [1, 2, 10, 18, 23, 100, 257])
def test_cross_entropy_of_the_worst_guess_in_every_row(
    batch: int, xp: ArrayModule, bring: Any
) -> None:
    logits = bring(np.tile([LARGEST, -LARGEST, 0], (batch, 1)), "float32")
    loss, dlogits = ops.softmax_cross_entropy(logits, bring(np.ones(batch), "int64"), xp=xp)
    assert 0.99 * LARGEST < float(to_numpy(loss)) <= LARGEST
    assert_close(dlogits, np.tile([1.0, -1.0, 0.0], (batch, 1)) / batch)


@names
@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_huge_and_tiny(name: str, scale: float, xp: ArrayModule, bring: Any) -> None:
    if name == "mean_squared_error" and scale > 1:
        scale = 1e15  # its value is a square
    logits, labels = [[scale, -scale, 0], [-scale, scale, 0]], [0, 0]
    loss, dlogits = getattr(ops, name)(bring(logits, "float32"), bring(labels, "int64"), 0.0, xp=xp)
    if scale < 1:
        expected = LOSSES[name](np.zeros((2, 3)), one_hot(np.asarray(labels), 3))
    else:  # each first row is right but for the squares, each second one wrong
        expected = {
            "softmax_cross_entropy": scale,
            "sigmoid_bce": scale * 2 / 6,
            "mean_squared_error": scale**2 * 4 / 6,
        }[name]
    assert_close(loss, np.asarray(expected))
    assert np.isfinite(to_numpy(dlogits)).all()


@names
@pytest.mark.parametrize(
    ("labels", "got"),
    [
        (np.zeros((2, 1), "int64"), "int64 of shape (2, 1)"),
        (np.zeros((2, 3), "int64"), "int64 of shape (2, 3)"),
        (np.zeros(2, "float32"), "float32 of shape (2,)"),
        (np.zeros(3, "int64"), "int64 of shape (3,)"),
        (np.zeros((2, 4), "float32"), "float32 of shape (2, 4)"),
        (np.zeros(2, bool), "bool of shape (2,)"),
    ],
)
def test_labels_of_another_kind_are_refused(
    name: str, labels: np.ndarray, got: str, xp: ArrayModule
) -> None:
    logits = xp.zeros((2, 3), "float32")
    expected = f"integers of shape (2,) or floats of shape (2, 3) .* got {got}"
    with pytest.raises(ValueError, match=re.sub(r"([()])", r"\\\1", expected)):
        getattr(ops, name)(logits, xp.asarray(labels), xp=xp)


@names
@pytest.mark.parametrize("label", [-1, 3, 100])
def test_a_label_out_of_range_is_an_error_on_the_host(name: str, label: int) -> None:
    with pytest.raises(ValueError, match=f"between 0 and 2; got {label}"):
        getattr(ops, name)(np.zeros((2, 3), "float32"), np.asarray([0, label]), xp=np)


@names
@pytest.mark.parametrize("label", [-1, 3, 100])
def test_a_label_out_of_range_is_never_silent_on_a_device(name: str, label: int) -> None:
    xp = strict_device.xp
    with strict_device.count_syncs() as syncs:
        loss, dlogits = getattr(ops, name)(
            xp.zeros((2, 3), "float32"), xp.asarray([0, label]), xp=xp
        )
    assert syncs == []
    assert np.isnan(to_numpy(loss))
    assert np.isnan(to_numpy(dlogits)[1]).all()
    assert np.isfinite(to_numpy(dlogits)[0]).all()


@names
@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64"])
def test_any_integers_are_labels(name: str, dtype: str, xp: ArrayModule, bring: Any) -> None:
    logits = bring(np.eye(3), "float32")
    loss, _ = getattr(ops, name)(logits, bring([2, 0, 1], dtype), xp=xp)
    expected, _ = getattr(ops, name)(logits, bring(np.eye(3)[[2, 0, 1]], "float32"), xp=xp)
    np.testing.assert_array_equal(to_numpy(loss), to_numpy(expected))


@names
@smoothings
@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int32"])
@pytest.mark.parametrize("classes", [127, 128, 129, 255, 256, 257, 300, 1000])
def test_labels_of_few_bits_name_any_class(
    name: str, smoothing: float, dtype: str, classes: int, xp: ArrayModule, bring: Any
) -> None:
    last = min(classes - 1, np.iinfo(dtype).max)  # class 256 is more than a uint8 can say
    labels = [0, 1, last - 1, last]
    logits = bring(philox(0, "logits").standard_normal((4, classes)), "float32")
    results = [
        getattr(ops, name)(logits, bring(labels, kind), smoothing, xp=xp)
        for kind in (dtype, "int64")
    ]
    expected = LOSSES[name](to_numpy(logits), one_hot(np.asarray(labels), classes, smoothing))
    assert_close(results[0][0], np.asarray(expected), reduction=4 * classes)
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_array_equal(to_numpy(ours), to_numpy(theirs))


@names
@pytest.mark.parametrize(
    ("dtype", "classes", "label"), [("int8", 300, -1), ("uint8", 200, 200), ("uint16", 257, 1000)]
)
def test_labels_of_few_bits_out_of_range(name: str, dtype: str, classes: int, label: int) -> None:
    # -1 as a uint8 would be class 255
    with pytest.raises(ValueError, match=f"between 0 and {classes - 1}; got {label}"):
        getattr(ops, name)(np.zeros((2, classes), "float32"), np.array([0, label], dtype), xp=np)
    xp = strict_device.xp
    labels = xp.asarray(np.array([0, label], dtype))
    loss, _ = getattr(ops, name)(xp.zeros((2, classes), "float32"), labels, xp=xp)
    assert np.isnan(to_numpy(loss))
