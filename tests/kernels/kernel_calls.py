"""What every CPU kernel is called with, and how what comes of it is compared to the reference.

To add an operation, say in ``ARGUMENTS`` what it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from hashlib import sha256
from typing import Any, NamedTuple

import numpy as np
import pytest

from vitkit import kernels, ops
from vitkit.backend import philox
from vitkit.ops import Op
from vitkit.ops.attention_branch import AttentionArrays
from vitkit.ops.mlp import MLPArrays
from vitkit.testing import assert_close

if reason := kernels.why_none(np):
    pytest.skip(f"no CPU kernels here: {reason}", allow_module_level=True)

kernels.load(np)
KERNELS: dict[str, Op[Any, Any]] = {
    name: op for name, op in vars(ops).items() if isinstance(op, Op) and "numpy" in op.kernels
}
KEY = (0, 1, 2)
ADAM: dict[str, Any] = {
    "lr": 0.1,
    "beta1": 0.9,
    "beta2": 0.99,
    "eps": 1e-6,
    "weight_decay": 0.3,
    "step": 2,
}
STILL = {**ADAM, "weight_decay": 0.0}
LION: dict[str, Any] = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.3}
SGD: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.3}
DENORMAL = 2.0**-149  # the smallest float32: nothing can be closer to it than that


class Call(NamedTuple):
    """The arguments of one call; an array that may be written to is one that the op changes."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Maker:
    """Makes the arrays of one call, in one dtype and of about one size."""

    def __init__(self, rng: np.random.Generator, dtype: str, scale: float) -> None:
        self.rng, self.dtype, self.scale = rng, dtype, scale

    def __call__(self, *shape: int) -> np.ndarray:
        """Return normal numbers, times the scale, that are only read."""
        return read_only(self.changed(*shape))

    def changed(self, *shape: int) -> np.ndarray:
        """Return normal numbers that the operation changes."""
        return np.asarray(self.rng.standard_normal(shape) * self.scale, self.dtype)

    def state(self, n: int, d: int, slots: int) -> list[np.ndarray]:
        """Return weights, their gradient, and slots, of which the second is a mean of squares."""
        arrays = [self.changed(n, d), self(n, d), *(self.changed(n, d) for _ in range(slots))]
        if slots == 2:
            arrays[3] **= 2
        return arrays

    def norm(self) -> np.ndarray:
        """Return a norm, of shape ()."""
        return read_only(np.abs(self.changed(1)).reshape(()))

    def labels(self, count: int, classes: int) -> np.ndarray:
        """Return class indices."""
        return read_only(self.rng.integers(0, classes, count))

    def pixels(self, *shape: int) -> np.ndarray:
        """Return bytes."""
        return read_only(self.rng.integers(0, 256, shape, dtype=np.uint8))


def read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def attention_backward(new: Maker, n: int, d: int) -> tuple[Any, ...]:
    qkv = new(2, min(n, 200), 6 * d)
    outputs = ops.multi_head_attention.reference(qkv, 2, xp=np)
    return (new(*outputs[0].shape), qkv, *map(read_only, outputs))


def mlp_arrays(make: Callable[..., np.ndarray], d: int) -> MLPArrays:
    m = d + 5
    shapes = ((d,), (d,), (m, d), (m,), (d, m), (d,))
    return MLPArrays(*(make(*shape) for shape in shapes))


def mlp(new: Maker, n: int, d: int, gain: bool = True) -> tuple[Any, ...]:
    gains = new(2) if gain else None
    return (new(2, n, d), mlp_arrays(new, d), 1e-6, "gelu", gains, "float32", True)


def mlp_backward(new: Maker, n: int, d: int, gain: bool = True) -> tuple[Any, ...]:
    x, weights, *_, gains, precision, _ = args = mlp(new, n, d, gain)
    _, kept = ops.mlp_branch.reference(*args, xp=np)
    grads = mlp_arrays(new.changed, d)
    return (new(2, n, d), x, tuple(map(read_only, kept)), weights, grads, gains, precision)


def attention_arrays(make: Callable[..., np.ndarray], d: int) -> AttentionArrays:
    shapes = ((d,), (d,), (3 * d, d), (3 * d,), (d, d), (d,))
    return AttentionArrays(*(make(*shape) for shape in shapes))


def attend(new: Maker, n: int, d: int, gain: bool = True) -> tuple[Any, ...]:
    n, d, gains = min(n, 200), 2 * d, new(2) if gain else None
    return (new(2, n, d), attention_arrays(new, d), 2, 1e-6, gains, "float32", True)


def attend_backward(new: Maker, n: int, d: int, gain: bool = True) -> tuple[Any, ...]:
    x, weights, *_, gains, precision, _ = args = attend(new, n, d, gain)
    _, kept = ops.attention_branch.reference(*args, xp=np)
    grads = attention_arrays(new.changed, 2 * d)
    return (new(*x.shape), x, tuple(map(read_only, kept)), weights, grads, gains, precision)


Arguments = Callable[[Maker, int, int], tuple[Any, ...]]
# What each op is called with for n rows of d numbers; keywords last. A comma begins a variant.
ARGUMENTS: dict[str, Arguments] = {
    "linear": lambda new, n, d: (new(2, n, d), new(d + 2, d), new(d + 2)),
    "linear, no bias": lambda new, n, d: (new(n, d), new(5, d), None),
    "linear_backward": lambda new, n, d: (new(2, n, d + 2), new(2, n, d), new(d + 2, d)),
    "gelu": lambda new, n, d: (new(n, d),),
    "gelu_backward": lambda new, n, d: (new(n, d), new(n, d)),
    "gelu_tanh": lambda new, n, d: (new(n, d),),
    "gelu_tanh_backward": lambda new, n, d: (new(n, d), new(n, d)),
    "layer_norm": lambda new, n, d: (new(2, n, d), new(d), new(d), 1e-6),
    "layer_norm_backward": lambda new, n, d: (
        *(new(2, n, d), new(2, n, d), new(d), new(2, n, 1), new(2, n, 1)),
    ),
    "softmax": lambda new, n, d: (new(2, n, d),),
    "softmax_backward": lambda new, n, d: (new(2, n, d), new(2, n, d)),
    "multi_head_attention": lambda new, n, d: (new(2, min(n, 200), 6 * d), 2),
    "multi_head_attention_backward": attention_backward,
    "mlp_branch": mlp,
    "mlp_branch, no gain": partial(mlp, gain=False),
    "mlp_branch_backward_inplace": mlp_backward,
    "mlp_branch_backward_inplace, no gain": partial(mlp_backward, gain=False),
    "attention_branch": attend,
    "attention_branch, no gain": partial(attend, gain=False),
    "attention_branch_backward_inplace": attend_backward,
    "attention_branch_backward_inplace, no gain": partial(attend_backward, gain=False),
    "softmax_cross_entropy": lambda new, n, d: (new(n, d), new.labels(n, d), 0.1),
    "softmax_cross_entropy, not smoothed": lambda new, n, d: (new(n, d), new.labels(n, d)),
    "softmax_cross_entropy, soft labels": lambda new, n, d: (new(n, d), new(n, d), 0.1),
    "dropout": lambda new, n, d: (new(2, n, d), 0.3, KEY),
    "dropout_backward": lambda new, n, d: (new(2, n, d), 0.3, KEY),
    "drop_path": lambda new, n, d: (new(n, d), 0.3, KEY),
    "drop_path_backward": lambda new, n, d: (new(n, d), 0.3, KEY),
    "normalize_images": lambda new, n, d: (
        *(new.pixels(2, 2, n, d), 255, (0.1, 0.2), (1.0, 2.0), new.dtype),
    ),
    "patchify": lambda new, n, d: (new(2, 3, 2 * n, 2 * d), (n, d)),
    "patchify, small patches": lambda new, n, d: (new(2, 1, 3 * n, 2 * d), (3, 2)),
    "unpatchify": lambda new, n, d: (new(2, n, 3 * d), (n, d), (1, d)),
    "pool_first_backward": lambda new, n, d: (new(3, d), n),
    "pool_mean": lambda new, n, d: (new(3, n, d),),
    "pool_mean_backward": lambda new, n, d: (new(3, d), n),
    "embed_positions": lambda new, n, d: (new(3, n, d), new(1, 1, d), new(1, n + 1, d)),
    "embed_positions, no token": lambda new, n, d: (new(3, n, d), None, new(1, n, d)),
    "embed_positions_backward": lambda new, n, d: (new(3, n, d), True),
    "embed_positions_backward, no token": lambda new, n, d: (new(3, n, d), False),
    "global_norm": lambda new, n, d: ([new(n, d), new(d)],),
    "clip_by_norm_inplace": lambda new, n, d: (new.changed(n, d), new.norm(), 1e-3),
    "clip_by_norm_inplace, within the limit": lambda new, n, d: (
        *(new.changed(n, d), new.norm(), 1e3),
    ),
    "sgd_update_inplace": lambda new, n, d: (*new.state(n, d, 1), SGD),
    "sgd_update_inplace, no decay": lambda new, n, d: (
        *(*new.state(n, d, 1), {**SGD, "weight_decay": 0.0, "nesterov": False}),
    ),
    "sgd_update_inplace, no momentum": lambda new, n, d: (
        *(*new.state(n, d, 0), None, {**SGD, "momentum": 0.0}),
    ),
    "adam_update_inplace": lambda new, n, d: (*new.state(n, d, 2), ADAM),
    "adam_update_inplace, no decay": lambda new, n, d: (*new.state(n, d, 2), STILL),
    "adamw_update_inplace": lambda new, n, d: (*new.state(n, d, 2), ADAM),
    "lamb_update_inplace": lambda new, n, d: (*new.state(n, d, 2), ADAM),
    "lamb_update_inplace, no decay": lambda new, n, d: (*new.state(n, d, 2), STILL),
    "lion_update_inplace": lambda new, n, d: (*new.state(n, d, 1), LION),
    "ema_update_inplace": lambda new, n, d: (*new.state(n, d, 0), {"decay": 0.9}),
}
NAMES = list(ARGUMENTS)


def op_of(name: str) -> Op[Any, Any]:
    """Return the op that an entry of ``ARGUMENTS`` is for."""
    return KERNELS[name.partition(",")[0]]


def call_of(
    name: str, n: int, d: int, dtype: str = "float32", *, seed: int = 0, scale: float = 1.0
) -> Call:
    """Return arguments for an entry of ``ARGUMENTS``: n rows of d numbers."""
    with np.errstate(all="ignore"):  # where it uses a reference
        values = ARGUMENTS[name](Maker(philox(seed, name), dtype, scale), n, d)
    with_keywords = isinstance(values[-1], dict)
    return Call(values[:-1], values[-1]) if with_keywords else Call(values, {})


def arrays_in(value: Any) -> Iterator[np.ndarray]:
    """Yield the arrays in a result, or in arguments, in their order."""
    if isinstance(value, (np.ndarray, np.generic)):
        yield np.asarray(value)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from arrays_in(item)


def with_arrays(call: Call, arrays: Iterator[np.ndarray]) -> Call:
    """Return a call with other arrays in place of its own, in their order."""

    def put(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return next(arrays)
        if not isinstance(value, (tuple, list)):
            return value
        items = [put(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)

    return Call(put(call.args), call.kwargs)


def changed_at(call: Call, places: list[int], change: Callable[[np.ndarray], np.ndarray]) -> Call:
    """Return a call in which the arrays at some places are put through a function."""

    def put() -> Iterator[np.ndarray]:
        for at, array in enumerate(arrays_in(call.args)):
            if at not in places or array.dtype.kind != "f":
                yield array
                continue
            other = change(array)
            if not array.flags.writeable:
                read_only(other)
            yield other

    return with_arrays(call, put())


def places_in(call: Call) -> range:
    """Return the places of the arrays of a call."""
    return range(len(list(arrays_in(call.args))))


def copied(call: Call) -> Call:
    """Return a call whose arrays are copies, with the same strides and the same leave to write."""

    def copy(array: np.ndarray) -> np.ndarray:
        whole = np.copy(array, order="K")
        return whole if array.flags.writeable else read_only(whole)

    return with_arrays(call, map(copy, arrays_in(call.args)))


def compare(one: Any, two: Any, reduction: int, overflows: bool) -> None:
    """Assert that arrays are the same in number, shape and dtype, and close in value."""
    ours, theirs = list(arrays_in(one)), list(arrays_in(two))
    assert [(a.shape, a.dtype) for a in ours] == [(a.shape, a.dtype) for a in theirs]
    for a, b in zip(ours, theirs, strict=True):
        if overflows:
            a, b = (np.where(abs(b) < 1e36, array, np.nan).astype(b.dtype) for array in (a, b))
        largest = np.abs(b[np.isfinite(b)]).max(initial=0) if b.dtype.kind == "f" else 1
        if 0 < largest < 1e-35:
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=4 * DENORMAL)
        else:
            assert_close(a, b, reduction=reduction)


def check(name: str, call: Call, *, served: bool = True, overflows: bool = False) -> None:
    """Compare kernel and reference.

    ``served`` says that the reference must not answer, ``overflows`` that where the reference is
    infinite or NaN, or nearly, another order of its operations may give another number.
    """
    op, ours, theirs = op_of(name), copied(call), copied(call)
    with np.errstate(all="ignore"):  # huge numbers overflow, in the reference too
        actual = op.kernels["numpy"](*call.args, **call.kwargs, xp=np)
        if served:
            assert actual is not NotImplemented, "the kernel left a plain case to the reference"
        if actual is NotImplemented:
            for array, old in zip(arrays_in(call.args), arrays_in(ours.args), strict=True):
                np.testing.assert_array_equal(array, old, "changed, and then not served")
            return
        expected = op.reference(*theirs.args, **theirs.kwargs, xp=np)
    for array, old in zip(arrays_in(call.args), arrays_in(ours.args), strict=True):
        if not array.flags.writeable:
            np.testing.assert_array_equal(array, old, "an input was changed")
    longest = max(array.size for array in arrays_in(call.args))
    compare(actual, expected, longest, overflows)
    compare(call.args, theirs.args, longest, overflows)
    for result, right in zip(arrays_in(actual), arrays_in(expected), strict=True):
        for array, other in zip(arrays_in(call.args), arrays_in(theirs.args), strict=True):
            if np.shares_memory(result, array):
                assert np.shares_memory(right, other), "a result is not an array of its own"


def bits_of(name: str, n: int, d: int) -> str:
    """Return a digest of what a call gives and of what it changes."""
    call = call_of(name, n, d)
    with np.errstate(all="ignore"):
        result = op_of(name)(*call.args, **call.kwargs, xp=np)
    digest = sha256()
    for array in (*arrays_in(result), *arrays_in(call.args)):
        digest.update(array.tobytes())
    return digest.hexdigest()
