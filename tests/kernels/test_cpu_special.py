"""What single CPU kernels promise beyond the numbers of their references."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernel_calls import KERNELS, STILL

from vitkit import ops
from vitkit.kernels.cpu import _philox, norms
from vitkit.testing import assert_close

pytestmark = pytest.mark.usefixtures("no_lucky_memory")
LARGEST = float(np.finfo(np.float32).max)
NORMAL = np.random.default_rng(0).standard_normal(9_001, np.float32)


def kernel(name: str) -> Any:
    return KERNELS[name].kernels["numpy"]


# Dropout: the mask is NumPy's, number for number.
KEYS = [(0, 0, 0), (1, 2, 3), (2**64 - 1, 2**63 + 5, 2**64 - 1), (7, 0, 2**32)]


@pytest.mark.parametrize("blocks", [1, 2, 7, 8, 9, 512, 1_001])
def test_blocks_are_those_of_numpy(blocks: int) -> None:
    key, counter = np.array([2**64 - 1, 12345], np.uint64), np.array([0, 7, 2**63, 1], np.uint64)
    words = np.zeros(4 * blocks, np.uint64)
    _philox.draw(key, counter, 1, words)
    numpys = np.random.Philox(key=key, counter=counter)
    np.testing.assert_array_equal(words, numpys.random_raw(4 * blocks))


@pytest.mark.parametrize("name", ["dropout", "dropout_backward", "drop_path", "drop_path_backward"])
@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("rate", [0.0, 0.1, 1 / 3, 0.5, 2.0**-24, 1 - 2.0**-24, 1 - 2.0**-30])
def test_masks_are_those_of_numpy(name: str, key: tuple[int, int, int], rate: float) -> None:
    for size in (1, 3, 7, 8, 9, 31, 32, 33, 4_095, 4_096, 4_097, 9_001):
        x = NORMAL[:size]
        with np.errstate(over="ignore"):
            expected = KERNELS[name].reference(x, rate, key, xp=np)
        np.testing.assert_array_equal(kernel(name)(x, rate, key, xp=np), expected)


def test_a_bad_key_is_refused_as_by_the_reference() -> None:
    for op in (ops.dropout, ops.dropout.reference):
        with pytest.raises(ValueError, match="must be a whole number between 0"):
            op(NORMAL, 0.1, (-1, 0, 0), xp=np)


# Losses: wrong labels are refused by the reference, in its words.
LOGITS = NORMAL[:12].reshape(4, 3)
WRONG: dict[str, tuple[Any, float]] = {
    "too large": (np.array([0, 1, 2, 3]), 0.0),
    "negative": (np.array([0, -1, 2, 1], np.int8), 0.0),
    "huge": (np.array([0, 1, 2, 2**64 - 1], np.uint64), 0.0),
    "too few": (np.array([0, 1, 2]), 0.0),
    "booleans": (np.array([True, False, True, False]), 0.0),
    "a list": ([0, 1, 2, 1], 0.0),
    "another shape": (np.zeros((4, 2)), 0.0),
    "smoothing": (np.array([0, 1, 2, 1]), 1.0),
    "no smoothing": (np.array([0, 1, 2, 1]), float("nan")),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_labels_are_refused_as_by_the_reference(wrong: str) -> None:
    said = []
    for op in (ops.softmax_cross_entropy, ops.softmax_cross_entropy.reference):
        with pytest.raises(ValueError, match=r"\.$") as caught:
            op(LOGITS, *WRONG[wrong], xp=np)
        said.append(str(caught.value))
    assert said[0] == said[1]


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int32", "uint64"])
def test_labels_of_any_integer(dtype: str) -> None:
    labels = np.array([0, 2, 1, 2])
    loss, dlogits = kernel("softmax_cross_entropy")(LOGITS, labels.astype(dtype), xp=np)
    expected = ops.softmax_cross_entropy.reference(LOGITS, labels, xp=np)
    assert_close(loss, expected[0])
    assert_close(dlogits, expected[1])


@pytest.mark.parametrize("smoothing", [0.0, 0.9])
def test_the_largest_logits_have_a_finite_loss(smoothing: float) -> None:
    logits = np.full((10, 3), [LARGEST, -LARGEST, 0], np.float32)
    labels = np.ones(10, int)
    loss, dlogits = kernel("softmax_cross_entropy")(logits, labels, smoothing, xp=np)
    assert np.isfinite(loss)
    assert np.isfinite(dlogits).all()
    assert_close(loss, ops.softmax_cross_entropy.reference(logits, labels, smoothing, xp=np)[0])


# Softmax and patches: what is not served.
@pytest.mark.parametrize("axis", [0, 1, -2])
def test_softmax_along_another_axis_is_left_to_the_reference(axis: int) -> None:
    x = NORMAL[:24].reshape(2, 3, 4)
    assert kernel("softmax")(x, axis, xp=np) is NotImplemented
    assert kernel("softmax_backward")(x, x, axis, xp=np) is NotImplemented


def test_patches_that_do_not_fit_are_refused_as_by_the_reference() -> None:
    with pytest.raises(ValueError, match="reshape"):
        ops.patchify(np.zeros((1, 1, 5, 6), "float32"), (2, 3), xp=np)
    with pytest.raises(ValueError, match="reshape"):
        ops.unpatchify(np.zeros((1, 3, 6), "float32"), (4, 6), (2, 3), xp=np)


# The norm.
def test_the_norm_takes_an_iterator_once_and_any_mixture() -> None:
    arrays = [NORMAL, NORMAL[:0], NORMAL[:9].reshape(3, 3)[:, ::2], np.asarray(NORMAL[5])]
    expected = np.sqrt(sum(np.square(a.astype("float64")).sum() for a in arrays))
    for given in (arrays, iter(arrays)):
        norm = kernel("global_norm")(given, xp=np)
        assert (norm.shape, norm.dtype) == ((), np.float32)
        assert_close(norm, np.asarray(expected))
    doubles = [*arrays, NORMAL.astype("float64")]
    assert kernel("global_norm")(iter(doubles), xp=np).dtype == np.float64
    assert kernel("global_norm")(iter(()), xp=np) == 0
    assert kernel("global_norm")([NORMAL[:0]], xp=np) == 0


def test_the_norm_is_precise_and_overflows_where_float32_does() -> None:
    tenths = np.full(3_000_000, 0.1, np.float32)
    exact = float(np.float32(0.1)) * np.sqrt(3_000_000)
    assert abs(kernel("global_norm")([tenths], xp=np) / exact - 1) < 1e-7
    assert kernel("global_norm")([np.array([1e19, 1e19], np.float32)], xp=np) < np.inf
    for above in (np.array([2e19], np.float32), np.full(5, 1e19, np.float32)):
        assert kernel("global_norm")([above], xp=np) == np.inf
    assert np.isnan(kernel("global_norm")([np.array([1, np.nan], np.float32)], xp=np))


def test_clipping_within_the_limit_touches_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    monkeypatch.setattr(norms, "_scale", lambda x, factor: asked.append(factor))
    for norm in (4.0, np.nan, 2.0, 1.9, 0.0):
        g, given = NORMAL.copy(), np.asarray(norm, np.float32)
        assert kernel("clip_by_norm_inplace")(g, given, 2.0, xp=np) is None
    np.testing.assert_allclose(asked, [0.5, np.nan, 1.0], rtol=1e-6)  # 2 / (2 + 1e-6) is below 1


# Updates: in place, or not at all.
UPDATES = {
    "sgd_update_inplace": (
        3,
        {"lr": 0.1, "momentum": 0.9, "nesterov": False, "weight_decay": 0.0},
    ),
    "adamw_update_inplace": (4, STILL),
    "ema_update_inplace": (2, {"decay": 0.9}),
}


@pytest.mark.parametrize("name", UPDATES)
def test_what_cannot_be_changed_where_it_lies_is_left_alone(name: str) -> None:
    count, settings = UPDATES[name]
    whole = NORMAL[: count * 24].reshape(count, 4, 6) ** 2
    at_gradient = 0 if name.startswith("ema") else 1
    for place in set(range(count)) - {at_gradient, 1}:
        for wrong in (lambda a: np.repeat(a, 2, -1)[:, ::2], lambda a: a[:3], frozen):
            arrays = [array.copy() for array in whole]
            arrays[place] = wrong(arrays[place])
            before = [array.copy() for array in arrays]
            assert kernel(name)(*arrays, **settings, xp=np) is NotImplemented
            for array, old in zip(arrays, before, strict=True):
                np.testing.assert_array_equal(array, old)


def frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def test_an_update_leaves_the_neighbours_in_a_flat_buffer() -> None:
    # Numbers of their own for each: a mean of equal numbers changes by rounding, or not at all.
    starts = [(at + 1) * NORMAL[:90] ** 2 for at in range(4)]
    buffers = [start.copy() for start in starts]
    parts = [buffer[7:-9].reshape(2, 37) for buffer in buffers]
    assert kernel("adamw_update_inplace")(*parts, **STILL, xp=np) is None
    for buffer, expected, changed in zip(buffers, starts, (True, False, True, True), strict=True):
        np.testing.assert_array_equal(buffer[:7], expected[:7])
        np.testing.assert_array_equal(buffer[-9:], expected[-9:])
        assert bool((buffer != expected).any()) == changed


def test_the_steps_of_lion_are_those_of_the_reference_bit_for_bit() -> None:
    settings: dict[str, Any] = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.3}
    m = np.array([1, -1, 0, 0, 3], np.float32)  # in the first two the mixture is zero, or nearly
    g = np.array([-9, 9, 0, 1, 5], np.float32)
    ours, theirs = ([np.ones(5, np.float32), g, m.copy()] for _ in range(2))
    kernel("lion_update_inplace")(*ours, **settings, xp=np)
    ops.lion_update_inplace.reference(*theirs, **settings, xp=np)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)
