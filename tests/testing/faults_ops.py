"""Operations with one fault each, and the words by which the kit must name it."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np

from vitkit.testing.ops import check_op
from vitkit.testing.parts.array_modules import draw

X, WEIGHT, BIAS = draw((3, 4, 5)), draw((5,), seed=1), draw((5,), seed=2)


# Softmax over the last axis.


def softmax(x: Any, *, xp: Any) -> Any:
    """Return the right one, which the others spoil."""
    e = xp.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def softmax_backward(dy: Any, arrays: Any, outputs: Any, *, xp: Any, axis: int = -1) -> Any:
    (y,) = outputs
    return y * (dy - (dy * y).sum(axis=axis, keepdims=True))


def softmax_of_batch(x: Any, *, xp: Any) -> Any:
    e = xp.exp(x - x.max(axis=0, keepdims=True))
    return e / e.sum(axis=0, keepdims=True)


def softmax_of_rows(x: Any, *, xp: Any) -> Any:
    e = xp.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def maximum_of_batch(x: Any, *, xp: Any) -> Any:
    e = xp.exp(x - x.max(axis=0, keepdims=True) * 0.5)
    return e / e.sum(axis=-1, keepdims=True)


def without_maximum(x: Any, *, xp: Any) -> Any:
    e = xp.exp(x)
    return e / e.sum(axis=-1, keepdims=True)


def without_sum(dy: Any, arrays: Any, outputs: Any, *, xp: Any) -> Any:
    return outputs[0] * dy


def plain_softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)


# A scale and a shift.


def affine(x: Any, weight: Any, bias: Any, *, xp: Any) -> Any:
    return x * weight + bias


def affine_backward(dy: Any, arrays: Any, outputs: Any, *, xp: Any) -> Any:
    x, weight, _ = arrays
    return dy * weight, (dy * x).sum(axis=(0, 1)), dy.sum(axis=(0, 1))


def mean_for_sum(dy: Any, arrays: Any, outputs: Any, *, xp: Any) -> Any:
    dx, dweight, dbias = affine_backward(dy, arrays, outputs, xp=xp)
    return dx, dweight / 3, dbias


def no_sum(dy: Any, arrays: Any, outputs: Any, *, xp: Any) -> Any:
    dx, dweight, _ = affine_backward(dy, arrays, outputs, xp=xp)
    return dx, dweight, dy


def wrong_sign(dy: Any, arrays: Any, outputs: Any, *, xp: Any) -> Any:
    dx, dweight, dbias = affine_backward(dy, arrays, outputs, xp=xp)
    return -dx, dweight, dbias


def forgets_bias(dy: Any, arrays: Any, outputs: Any, *, xp: Any) -> Any:
    dx, dweight, dbias = affine_backward(dy, arrays, outputs, xp=xp)
    return dx, dweight, xp.zeros_like(dbias)


def two_of_three(dy: Any, arrays: Any, outputs: Any, *, xp: Any) -> Any:
    return affine_backward(dy, arrays, outputs, xp=xp)[:2]


def squares_dy(dy: Any, arrays: Any, outputs: Any, *, xp: Any) -> Any:
    dx, dweight, dbias = affine_backward(dy, arrays, outputs, xp=xp)
    return dx * xp.abs(dy), dweight, dbias


def spoils_weight(x: Any, weight: Any, bias: Any, *, xp: Any) -> Any:
    weight += 0.0 * weight + 1
    return x * (weight - 1) + bias


def leaks_a_statistic(x: Any, weight: Any, bias: Any, *, xp: Any) -> Any:
    return x * weight + bias, x.sum(axis=-1) * np.float64(2)


def squeezes(x: Any, weight: Any, bias: Any, *, xp: Any) -> Any:
    return xp.squeeze(x * weight + bias)


def normalized_by_batch(x: Any, weight: Any, bias: Any, *, xp: Any) -> Any:
    return (x - x.mean(axis=0)) * weight + bias


def normalized_by_batch_backward(dy: Any, arrays: Any, outputs: Any, *, xp: Any) -> Any:
    x, weight, _ = arrays
    dx = dy * weight
    centred = x - x.mean(axis=0)
    return dx - dx.mean(axis=0), (dy * centred).sum(axis=(0, 1)), dy.sum(axis=(0, 1))


def one_at_a_time(x: Any, weight: Any, bias: Any, *, xp: Any) -> Any:
    return xp.stack([row * weight + bias for row in x])


def asks_the_host(x: Any, weight: Any, bias: Any, *, xp: Any) -> Any:
    return x * weight + bias if float(abs(weight).sum()) else bias


class Remembers:
    """Backward uses what the last forward pass left behind."""

    x: Any = None

    def forward(self, x: Any, weight: Any, bias: Any, *, xp: Any) -> Any:
        self.x = x + 0
        return x * weight + bias

    def backward(self, dy: Any, arrays: Any, outputs: Any, *, xp: Any) -> Any:
        return affine_backward(dy, (self.x, *arrays[1:]), outputs, xp=xp)


def a_number(x: Any, weight: Any, bias: Any, *, xp: Any) -> Any:
    return 1.0


class Planted(NamedTuple):
    """Arguments of the check, what the message must say, and the checks that must fail."""

    arguments: dict[str, Any]
    message: str
    fails: set[str]


def of_softmax(message: str, fails: set[str], **changes: Any) -> Planted:
    right = {"op": softmax, "backward": softmax_backward, "inputs": (X,)}
    return Planted(right | changes, message, fails)


def of_affine(message: str, fails: set[str], **changes: Any) -> Planted:
    right = {"op": affine, "backward": affine_backward, "inputs": (X, WEIGHT, BIAS)}
    return Planted(right | changes, message, fails)


RIGHT = {
    "softmax": of_softmax("", set(), reference=plain_softmax),
    "affine": of_affine("", set(), reference=lambda x, weight, bias: x * weight + bias),
}
GRADIENT, EXTREMES = "gradient", "large and tiny inputs"
APART, ONE = "items apart", "one item, and none"
REMEMBERS = Remembers()

PLANTED = {
    "softmax over the batch": of_softmax(
        "the batch items are mixed: output 0 of softmax_of_batch changes when item 1 of x changes. "
        "An operation over the wrong axis. It computes along axis 0",
        {APART, ONE},
        op=softmax_of_batch,
        backward=partial(softmax_backward, axis=0),
    ),
    "softmax over the wrong axis": of_softmax(
        "differs from its reference: .* Over the wrong axis: softmax_of_rows computes along axis 1 "
        "of x, the reference along axis 2",
        {"reference"},
        op=softmax_of_rows,
        backward=partial(softmax_backward, axis=1),
        reference=plain_softmax,
    ),
    "the maximum of other rows": of_softmax(
        "with x up to 10000 in float32: overflow .* in exp",
        {GRADIENT, EXTREMES, APART, ONE},
        op=maximum_of_batch,
    ),
    "no maximum": of_softmax("without_maximum with x up to 10000", {EXTREMES}, op=without_maximum),
    "no sum over the row": of_softmax(
        r"without_sum is not the gradient of softmax: .* Furthest off is that of x at \(0, 1, 1\)",
        {GRADIENT},
        backward=without_sum,
    ),
    "a mean for a sum": of_affine(
        "the gradient of weight is wrong .*: it is divided by 3, a mean where a sum must be. Right "
        "are those of x, bias",
        {GRADIENT},
        backward=mean_for_sum,
    ),
    "the wrong sign": of_affine(
        "the gradient of x is wrong .* wrong sign", {GRADIENT}, backward=wrong_sign
    ),
    "a gradient forgotten": of_affine(
        "the gradient of bias is wrong .* zero everywhere", {GRADIENT}, backward=forgets_bias
    ),
    "a gradient not summed": of_affine(
        r"the gradient of bias has shape \(3, 4, 5\); it must have that of bias, \(5,\)",
        {"call"},
        backward=no_sum,
    ),
    "a gradient left out": of_affine(
        "two_of_three returned 2 gradients for 3 inputs", {"call"}, backward=two_of_three
    ),
    "dy used twice": of_affine(
        "gradient 0 of squares_dy is not linear in dy",
        {GRADIENT, "backward: linear in dy"},
        backward=squares_dy,
    ),
    "a weight overwritten": of_affine(
        "spoils_weight changes its argument weight in place: 5 of 5",
        {"forward: inputs left alone", "forward: same on strict_device"},
        op=spoils_weight,
    ),
    "a float64 statistic": of_affine(
        "output 1 of leaks_a_statistic is float64 where the input is float32",
        {"forward: dtype"},
        op=leaks_a_statistic,
    ),
    "an axis squeezed": of_affine(
        r"of a batch of one is not what .* shape \(4, 5\), expected \(1, 4, 5\)",
        {ONE},
        op=squeezes,
    ),
    "statistics of the batch": of_affine(
        "the batch items are mixed: output 0 of normalized_by_batch .* along axis 0",
        {APART, ONE},
        op=normalized_by_batch,
        backward=normalized_by_batch_backward,
    ),
    "no empty batch": of_affine(
        "one_at_a_time of an empty batch raised ValueError", {ONE}, op=one_at_a_time
    ),
    "a wait for the device": of_affine(
        "makes the host wait .*: float. Keep it", {"forward: no host sync"}, op=asks_the_host
    ),
    "x kept for backward": of_affine(
        "changes with what forward was called with last: something is kept",
        {
            "backward: dtype",
            "backward: same on strict_device",
            "backward: nothing kept from forward",
        },
        op=REMEMBERS.forward,
        backward=REMEMBERS.backward,
    ),
    "a Python number": of_affine("is of type float; it must be an array", {"call"}, op=a_number),
}
FAULTS = {
    name: (partial(check_op, **planted.arguments), planted.message)
    for name, planted in PLANTED.items()
}
