"""What holds for any input: Hypothesis looks for a counterexample."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vitkit import ops
from vitkit.backend import ArrayModule, philox, to_numpy
from vitkit.testing import assert_close

# Powers of two near 1, 30, 1e3 and 1e30: a whole number times one of them is exact.
SCALES = [2.0**-6, 2.0**-1, 2.0**4, 2.0**94]
FINITE32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
LARGEST = float(np.finfo(np.float32).max)
seeds = st.integers(0, 2**32 - 1)


@st.composite
def logits_and_shifts(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    """Return whole numbers, a shift for each row along an axis, and that axis."""
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=4, max_side=5))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    rows = list(shape)
    rows[axis] = 1
    numbers = st.integers(-64, 64)
    x = draw(hnp.arrays(np.int64, shape, elements=numbers))
    shift = draw(hnp.arrays(np.int64, tuple(rows), elements=numbers))
    return x, shift, axis


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@settings(max_examples=60)
@given(case=logits_and_shifts())
def test_softmax_does_not_see_a_shift_of_a_row(
    scale: float, dtype: str, case: tuple[np.ndarray, np.ndarray, int], xp: ArrayModule
) -> None:
    x, shift, axis = case
    y = ops.softmax(xp.asarray(x * scale, dtype=dtype), axis, xp=xp)
    shifted = ops.softmax(xp.asarray((x + shift) * scale, dtype=dtype), axis, xp=xp)
    np.testing.assert_array_equal(to_numpy(y), to_numpy(shifted))  # exact: so are the logits


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@settings(max_examples=60)
@given(case=logits_and_shifts())
def test_softmax_gives_a_distribution_that_follows_the_logits(
    scale: float, dtype: str, case: tuple[np.ndarray, np.ndarray, int], xp: ArrayModule
) -> None:
    x, _, axis = case
    y = to_numpy(ops.softmax(xp.asarray(x * scale, dtype=dtype), axis, xp=xp))
    assert y.dtype == dtype
    assert y.shape == x.shape
    assert (y >= 0).all()
    total = y.astype("float64").sum(axis=axis)
    assert_close(total.astype(dtype), np.ones_like(total), reduction=x.shape[axis])
    # The ratio of two probabilities is the exponential of the difference of their logits.
    largest = y.max(axis=axis, keepdims=True)
    with np.errstate(under="ignore"):
        expected = np.exp((x - x.max(axis=axis, keepdims=True)) * scale)
    assert_close(y / largest, expected)


@st.composite
def logits_and_labels(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    shape = draw(st.tuples(st.integers(1, 12), st.integers(1, 5)))
    extremes = st.sampled_from([LARGEST, -LARGEST, 0.0])
    logits = draw(hnp.arrays(np.float32, shape, elements=FINITE32 | extremes))
    labels = draw(hnp.arrays(np.int64, shape[:1], elements=st.integers(0, shape[1] - 1)))
    return logits, labels


# Ten times a tenth of the largest loss: rounding must not carry the sum over the largest number.
WORST = (np.full((10, 2), [LARGEST, -LARGEST], "float32"), np.ones(10, int))


def one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    return (labels[:, None] == np.arange(classes)).astype("float32")


@settings(max_examples=300)
@given(case=logits_and_labels(), smoothing=st.sampled_from([0.0, 0.1, 0.9]), soft=st.booleans())
@example(case=WORST, smoothing=0.0, soft=False)
@example(case=WORST, smoothing=0.9, soft=True)
def test_cross_entropy_is_finite(
    case: tuple[np.ndarray, np.ndarray], smoothing: float, soft: bool, xp: ArrayModule
) -> None:
    logits, labels = case
    batch, classes = logits.shape
    targets = one_hot(labels, classes) if soft else labels
    loss, dlogits = ops.softmax_cross_entropy(
        xp.asarray(logits), xp.asarray(targets), smoothing, xp=xp
    )
    loss, dlogits = to_numpy(loss), to_numpy(dlogits)
    assert loss.dtype == dlogits.dtype == np.float32
    assert np.isfinite(loss)
    assert loss >= -1e-6
    assert np.isfinite(dlogits).all()
    assert (np.abs(dlogits) <= (1 + 1e-6) / batch).all()
    # Probabilities and targets both sum to one.
    assert np.abs(dlogits.sum(axis=1)).max() < 1e-6


@settings(max_examples=100)
@given(case=logits_and_labels(), smoothing=st.floats(0, 0.9))
@pytest.mark.parametrize("name", ["softmax_cross_entropy", "sigmoid_bce", "mean_squared_error"])
def test_one_hot_labels_mean_the_same_as_integers(
    name: str, case: tuple[np.ndarray, np.ndarray], smoothing: float, xp: ArrayModule
) -> None:
    logits, labels = case
    logits = np.clip(logits, -1e15, 1e15)
    hot = one_hot(labels, logits.shape[1])
    loss_fn, x = getattr(ops, name), xp.asarray(logits)
    for ours, theirs in zip(
        loss_fn(x, xp.asarray(labels), smoothing, xp=xp),
        loss_fn(x, xp.asarray(hot), smoothing, xp=xp),
        strict=True,
    ):
        np.testing.assert_array_equal(to_numpy(ours), to_numpy(theirs))


@settings(max_examples=100)
@given(seed=seeds, classes=st.integers(1, 33), smoothing=st.floats(0, 0.99))
@pytest.mark.parametrize("name", ["softmax_cross_entropy", "sigmoid_bce", "mean_squared_error"])
def test_smoothing_is_a_mixture_with_the_even_distribution(
    name: str, seed: int, classes: int, smoothing: float, xp: ArrayModule
) -> None:
    rng = philox(seed, "test")
    logits = xp.asarray(rng.standard_normal((4, classes)))
    labels = rng.integers(0, classes, 4)
    mixed = one_hot(labels, classes).astype("float64") * (1 - smoothing) + smoothing / classes
    loss_fn = getattr(ops, name)
    loss, dlogits = loss_fn(logits, xp.asarray(labels), smoothing, xp=xp)
    expected, dexpected = loss_fn(logits, xp.asarray(mixed), xp=xp)
    assert_close(1 + loss, 1 + expected)
    assert_close(1 + dlogits, 1 + dexpected)


def attend(qkv: np.ndarray, num_heads: int) -> np.ndarray:
    """Attend in Python: each query of each head of each image by itself."""
    batch, tokens, width = qkv.shape
    dim, size = width // 3, width // 3 // num_heads
    out = np.zeros((batch, tokens, dim))
    for b in range(batch):
        for head in range(num_heads):
            part = slice(head * size, (head + 1) * size)
            q, k, v = (qkv[b, :, at * dim : (at + 1) * dim][:, part] for at in range(3))
            for n in range(tokens):
                scores = [sum(q[n] * key) / math.sqrt(size) for key in k]
                powers = [math.exp(score - max(scores)) for score in scores]
                for power, value in zip(powers, v, strict=True):
                    out[b, n, part] += power / sum(powers) * value
    return out


@settings(max_examples=60)
@given(
    seed=seeds,
    batch=st.integers(1, 3),
    tokens=st.integers(1, 7),
    num_heads=st.integers(1, 4),
    size=st.integers(1, 4),
    scale=st.sampled_from([1e-30, 1.0, 5.0, 30.0, 1e15]),
)
def test_attention_is_a_plain_loop(
    seed: int, batch: int, tokens: int, num_heads: int, size: int, scale: float, xp: ArrayModule
) -> None:
    qkv = philox(seed, "test").standard_normal((batch, tokens, 3 * num_heads * size))
    qkv[..., : 2 * num_heads * size] *= scale  # the queries and keys
    y, *_ = ops.multi_head_attention(xp.asarray(qkv), num_heads, xp=xp)
    assert_close(y, attend(qkv, num_heads))
    p = to_numpy(ops.attention_weights(xp.asarray(qkv), num_heads, xp=xp))
    assert p.shape == (batch, num_heads, tokens, tokens)
    assert_close(p.sum(axis=-1), np.ones(p.shape[:3]))


@settings(max_examples=100)
@given(
    seed=seeds,
    batch=st.integers(0, 3),
    channels=st.integers(1, 3),
    grid=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    patch=st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
def test_patches_go_back_and_have_the_order_of_a_convolution(
    seed: int,
    batch: int,
    channels: int,
    grid: tuple[int, int],
    patch: tuple[int, int],
    xp: ArrayModule,
) -> None:
    rng = philox(seed, "test")
    size = (grid[0] * patch[0], grid[1] * patch[1])
    images = rng.standard_normal((batch, channels, *size))
    patches = ops.patchify(xp.asarray(images), patch, xp=xp)
    assert patches.shape == (batch, grid[0] * grid[1], channels * patch[0] * patch[1])
    back = ops.unpatchify(patches, size, patch, xp=xp)
    np.testing.assert_array_equal(to_numpy(back), images)
    weight = rng.standard_normal((2, channels, *patch))
    convolved = np.zeros((batch, 2, *grid))
    for row, column in np.ndindex(grid):  # a convolution whose stride is its kernel
        top, left = row * patch[0], column * patch[1]
        window = images[:, :, top : top + patch[0], left : left + patch[1]]
        convolved[:, :, row, column] = np.tensordot(window, weight, ([1, 2, 3], [1, 2, 3]))
    product = to_numpy(patches) @ weight.reshape(2, -1).T  # (B, N, 2)
    expected = convolved.transpose(0, 2, 3, 1).reshape(product.shape)
    assert_close(product, expected)


rates = st.floats(0, 0.95)
keys = st.tuples(seeds, st.integers(0, 2**40), st.integers(1, 1000))


@pytest.mark.parametrize("name", ["dropout", "drop_path"])
@settings(max_examples=50)
@given(rate=rates, key=keys)
def test_dropout_keeps_the_mean(
    name: str, rate: float, key: tuple[int, int, int], xp: ArrayModule
) -> None:
    count = 4000
    y = to_numpy(getattr(ops, name)(xp.asarray(np.ones((count, 1))), rate, key, xp=xp))
    spread = math.sqrt(rate / (1 - rate) / count)  # of the mean; six of them in 1e9 draws
    assert abs(y.mean() - 1) <= 6 * spread + 1e-12


@pytest.mark.parametrize("name", ["dropout", "drop_path"])
@settings(max_examples=50)
@given(rate=rates, key=keys, seed=seeds)
def test_the_mask_depends_on_the_key_alone(
    name: str, rate: float, key: tuple[int, int, int], seed: int, xp: ArrayModule
) -> None:
    op, backward = getattr(ops, name), getattr(ops, f"{name}_backward")
    values = 1 + philox(seed, "test").random((60, 2))  # none is zero
    inputs: list[tuple[Any, np.ndarray, str]] = [
        (op, values, "float64"),
        (op, -values, "float64"),
        (op, values, "float32"),
        (backward, np.ones((60, 2)), "float32"),
    ]
    masks = [
        to_numpy(function(xp.asarray(x, dtype=dtype), rate, key, xp=xp)) != 0
        for function, x, dtype in (*inputs, inputs[0])
    ]
    for mask in masks[1:]:
        np.testing.assert_array_equal(mask, masks[0])
