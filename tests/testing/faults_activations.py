"""Activations with one fault each, and the words by which the kit must name it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from vitkit.backend import philox
from vitkit.testing.activations import check_activation


def sigmoid(x: Any, xp: Any) -> Any:
    return 0.5 * (1 + xp.tanh(0.5 * x))


def swish(x: Any, *, xp: Any) -> Any:
    """Return the right one, which the others spoil."""
    return x * sigmoid(x, xp)


def swish_backward(dy: Any, x: Any, *, xp: Any) -> Any:
    s = sigmoid(x, xp)
    return dy * (s * (1 + x * (1 - s)))


def product_rule_forgotten(dy: Any, x: Any, *, xp: Any) -> Any:
    return dy * sigmoid(x, xp)


def ignores_dy(dy: Any, x: Any, *, xp: Any) -> Any:
    return swish_backward(xp.ones_like(dy), x, xp=xp)


def wrong_sign(dy: Any, x: Any, *, xp: Any) -> Any:
    return swish_backward(-dy, x, xp=xp)


def twice(dy: Any, x: Any, *, xp: Any) -> Any:
    return swish_backward(2 * dy, x, xp=xp)


def zero(dy: Any, x: Any, *, xp: Any) -> Any:
    return xp.zeros_like(x)


def passes_dy(dy: Any, x: Any, *, xp: Any) -> Any:
    return dy


def exchanged(x: Any, dy: Any, *, xp: Any) -> Any:
    return swish_backward(dy, x, xp=xp)


def clips_dy(dy: Any, x: Any, *, xp: Any) -> Any:
    return swish_backward(xp.clip(dy, -1, 1), x, xp=xp)


def tanh(x: Any, *, xp: Any) -> Any:
    return xp.tanh(x)


def tanh_of_its_output(dy: Any, y: Any, *, xp: Any) -> Any:
    return dy * (1 - y * y)


def leaky(x: Any, *, xp: Any) -> Any:
    return xp.where(x > 0, x, 0.1 * x)


def leaky_less(dy: Any, x: Any, *, xp: Any) -> Any:
    return xp.where(x > 0, dy, 0.01 * dy)


def leaks(x: Any, *, xp: Any) -> Any:
    return swish(x, xp=xp) * np.sqrt(4.0) / 2


def leaks_backward(dy: Any, x: Any, *, xp: Any) -> Any:
    return swish_backward(dy, x, xp=xp) * np.float64(1)


def narrow(x: Any, *, xp: Any) -> Any:
    return swish(x.astype("float32"), xp=xp).astype(x.dtype)


def cancels(x: Any, *, xp: Any) -> Any:
    return swish(x, xp=xp) + 3e3 - 3e3


def in_place(x: Any, *, xp: Any) -> Any:
    s = sigmoid(x, xp)
    x *= s
    return x


def in_place_backward(dy: Any, x: Any, *, xp: Any) -> Any:
    s = sigmoid(x, xp)
    dy *= s * (1 + x * (1 - s))
    return dy


def centred(x: Any, *, xp: Any) -> Any:
    return swish(x - x.mean(axis=-1, keepdims=True), xp=xp)


def flattens(x: Any, *, xp: Any) -> Any:
    return swish(x, xp=xp).reshape(x.shape[0], -1)


def rows_and_columns(x: Any, *, xp: Any) -> Any:
    rows, columns = x.shape
    return swish(x.reshape(rows * columns), xp=xp).reshape(rows, columns)


def needs_a_row(x: Any, *, xp: Any) -> Any:
    return swish(x.reshape(x.shape[0], -1), xp=xp).reshape(x.shape)


def overflows(x: Any, *, xp: Any) -> Any:
    return x / (1 + xp.exp(-x))


def nan_at_zero(x: Any, *, xp: Any) -> Any:
    return swish(x, xp=xp) * (x / xp.abs(x)) ** 2


def of_numpy(x: Any, *, xp: Any) -> Any:
    return x * sigmoid(x, np)


def host_array(x: Any, *, xp: Any) -> Any:
    return swish(np.asarray(x if xp is np else x.get()), xp=np)


def waits(x: Any, *, xp: Any) -> Any:
    if x.size and x.max() > 1e30:
        return x
    return swish(x, xp=xp)


class Remembers:
    """Keeps the input of the last forward pass, as four ancestors do."""

    def forward(self, x: Any, *, xp: Any) -> Any:
        self.x = x.copy()
        return swish(x, xp=xp)

    def backward(self, dy: Any, x: Any, *, xp: Any) -> Any:
        kept = getattr(self, "x", x)
        return swish_backward(dy, kept if kept.shape == x.shape else x, xp=xp)


class OneBuffer:
    """Writes all results into the same memory."""

    buffer = np.zeros(0)

    def __call__(self, x: Any, *, xp: Any) -> Any:
        y = swish(x, xp=xp)
        if xp is not np or x.dtype != np.float64:
            return y
        if self.buffer.shape != x.shape:
            self.buffer = np.empty_like(y)
        self.buffer[...] = y
        return self.buffer


class Noisy:
    """Draws other numbers in each call."""

    calls = 0

    def __call__(self, x: Any, *, xp: Any) -> Any:
        self.calls += 1
        noise = philox(0, "noise", self.calls).standard_normal(x.shape).astype(x.dtype)
        return swish(x, xp=xp) + 1e-16 * xp.asarray(noise) * x


def by_memory(x: Any, *, xp: Any) -> Any:
    flat = x.ravel(order="K") if xp is np else x
    return swish(flat, xp=xp).reshape(x.shape)


def without_xp(x: Any) -> Any:
    return swish(x, xp=np)


def a_pair(x: Any, *, xp: Any) -> Any:
    return swish(x, xp=xp), x


class Planted(NamedTuple):
    """A faulty pair, what the message must say, and the checks that must fail."""

    forward: Callable[..., Any]
    backward: Callable[..., Any]
    message: str
    fails: set[str]


GRADIENT, LINEAR = "gradient", "backward: linear in dy"
FORWARD_SIZES, BACKWARD_SIZES = "forward: one element, and none", "backward: one element, and none"
DEVICE, DIMENSIONS = "forward: same on strict_device", "forward: 1 to 4 dimensions"
EXTREMES = "forward: large and tiny inputs"
REMEMBERS = Remembers()

PLANTED = {
    "the product rule forgotten": Planted(
        swish,
        product_rule_forgotten,
        r"is not the derivative of swish .*at x = -1.5\d+ and dy = 1 it gives 0.17\d+, where the "
        r"derivative of swish is -0.04\d+ by differences. It is wrong at 210 of 210 points",
        {GRADIENT},
    ),
    "wrong where x is negative": Planted(
        leaky,
        leaky_less,
        r"it gives 0.01, where the derivative of leaky is 0.1 .* from x = -7.\d+ to -0.0",
        {GRADIENT},
    ),
    "dy ignored": Planted(swish, ignores_dy, "it ignores dy, .* multiply", {GRADIENT, LINEAR}),
    "the wrong sign": Planted(swish, wrong_sign, "it has the wrong sign", {GRADIENT}),
    "a factor": Planted(swish, twice, "it is 2 times what it must be", {GRADIENT}),
    "no gradient": Planted(swish, zero, "it is zero everywhere", {GRADIENT}),
    "dy passed through": Planted(swish, passes_dy, "it returns dy, as if", {GRADIENT}),
    "arguments exchanged": Planted(
        swish, exchanged, "right with its arguments exchanged", {GRADIENT, LINEAR}
    ),
    "the derivative in terms of the output": Planted(
        tanh, tanh_of_its_output, "right if given the output of tanh", {GRADIENT}
    ),
    "dy clipped": Planted(swish, clips_dy, "not linear in dy: .* clipped", {GRADIENT, LINEAR}),
    "float64 from a NumPy number": Planted(
        leaks,
        swish_backward,
        "leaks is float64 where the input is float32.*math.sqrt",
        {"forward: dtype", FORWARD_SIZES},
    ),
    "a float64 gradient": Planted(
        swish,
        leaks_backward,
        "leaks_backward is float64 where the input is float32",
        {"backward: dtype", BACKWARD_SIZES},
    ),
    "float32 within": Planted(
        narrow, swish_backward, "narrow computes in float32 within", {"forward: dtype", GRADIENT}
    ),
    "cancellation": Planted(
        cancels, swish_backward, "cancels loses precision in float32", {"forward: dtype"}
    ),
    "the input overwritten": Planted(
        in_place,
        swish_backward,
        "in_place changes its argument x in place: 210 of 210",
        {"forward: inputs left alone", DEVICE},
    ),
    "dy overwritten": Planted(
        swish,
        in_place_backward,
        "in_place_backward changes its argument dy in place",
        {"backward: inputs left alone", "backward: same on strict_device"},
    ),
    "a mean over a row": Planted(
        centred,
        swish_backward,
        r"centred is not element-wise: its output at \(0, 1\) changes with x at \(0, 0\)",
        {GRADIENT, "forward: element-wise", DIMENSIONS, FORWARD_SIZES},
    ),
    "another shape": Planted(
        flattens,
        swish_backward,
        r"flattens turns shape \(5,\) into \(5, 1\)",
        {DIMENSIONS, FORWARD_SIZES},
    ),
    "two dimensions only": Planted(
        rows_and_columns,
        swish_backward,
        r"rows_and_columns of shape \(5,\) raised ValueError: not enough values",
        {DIMENSIONS, FORWARD_SIZES, EXTREMES},
    ),
    "no empty array": Planted(
        needs_a_row,
        swish_backward,
        r"of an empty array of shape \(0,\) raised ValueError",
        {FORWARD_SIZES},
    ),
    "an overflow": Planted(
        overflows, swish_backward, "with x = -10000 in float32: overflow .* in exp", {EXTREMES}
    ),
    "a NaN at zero": Planted(
        nan_at_zero, swish_backward, "with x = 0 in float32: invalid value", {EXTREMES}
    ),
    "functions of NumPy": Planted(
        of_numpy, swish_backward, "on strict_device, where only functions of xp", {DEVICE}
    ),
    "a host array": Planted(
        host_array, swish_backward, "must be an array of strict_device", {DEVICE}
    ),
    "a wait for the device": Planted(
        waits, swish_backward, "makes the host wait .* bool. Keep it", {"forward: no host sync"}
    ),
    "x kept for backward": Planted(
        REMEMBERS.forward,
        REMEMBERS.backward,
        "backward changes with what forward was called with last: something is kept",
        {
            "backward: nothing kept from forward",
            "backward: dtype",
            "backward: same on strict_device",
        },
    ),
    "one buffer for all": Planted(
        OneBuffer(), swish_backward, "returns memory that it keeps", {"forward: nothing kept"}
    ),
    "noise": Planted(
        Noisy(), swish_backward, "another result when it is called again", {"forward: nothing kept"}
    ),
    "strides ignored": Planted(
        by_memory,
        swish_backward,
        "with a transposed array as x gives another result",
        {"forward: any memory layout"},
    ),
    "no xp": Planted(
        without_xp, swish_backward, r"is called as without_xp\(x, xp=xp\); it takes", {"call"}
    ),
    "two results": Planted(a_pair, swish_backward, "must return one array; it returns 2", {"call"}),
}
FAULTS = {
    name: (partial(check_activation, planted.forward, planted.backward), planted.message)
    for name, planted in PLANTED.items()
}
