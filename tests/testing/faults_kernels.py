"""Kernels with one fault each, and the words by which the kit must name it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from vitkit import ops
from vitkit.backend import philox
from vitkit.ops import Op
from vitkit.testing.kernels import check_kernel
from vitkit.testing.parts.memory import MARGIN

BLOCK, LARGE_BLOCK = 8, 1000


def exact(x: Any) -> Any:
    return ops.gelu.reference(x, xp=np)


def longer(array: Any, after: int = 1, before: int = 0) -> Any:
    """Return a one-dimensional view that goes on beyond both ends of a contiguous array.

    This is what a loop in C that runs too far sees. Nothing outside the margins that the kit
    leaves is touched.
    """
    assert before + after < MARGIN
    flat = array.reshape(-1)
    if not flat.flags.c_contiguous or not np.shares_memory(flat, array):
        return None
    size, step = flat.size, flat.itemsize
    shifted = as_strided(flat, (size + after,), (step,))
    if before:
        whole = array.base.reshape(-1)
        start = (array.ctypes.data - whole.ctypes.data) // step
        shifted = whole[start - before : start + size + after]
    return shifted


# GELU, element by element.


def gelu(x: Any, *, xp: Any) -> Any:
    """Return the right one, in blocks, with a tail; it leaves gaps to the reference."""
    if not x.flags.c_contiguous:
        return NotImplemented
    y = np.empty_like(x)
    flat_x, flat_y = x.reshape(-1), y.reshape(-1)
    for start in range(0, x.size, LARGE_BLOCK):
        part = slice(start, start + LARGE_BLOCK)
        flat_y[part] = exact(flat_x[part])
    return y


def drops_the_tail(x: Any, *, xp: Any) -> Any:
    if not x.flags.c_contiguous:
        return NotImplemented
    y = np.empty_like(x)
    whole = x.size // BLOCK * BLOCK
    y.reshape(-1)[:whole] = exact(x.reshape(-1)[:whole])
    return y


def drops_one(x: Any, *, xp: Any) -> Any:
    if not x.flags.c_contiguous:
        return NotImplemented
    y = np.zeros_like(x)
    y.reshape(-1)[:-1] = exact(x.reshape(-1)[:-1])
    return y


def reads_one_more(x: Any, *, xp: Any) -> Any:
    wide = longer(x) if x.size else None
    if wide is None:
        return NotImplemented
    return exact(x) + 0 * wide[-1]


def reads_one_before(x: Any, *, xp: Any) -> Any:
    if not x.size or not x.flags.c_contiguous or x.base is None:
        return NotImplemented
    return exact(x) + 0 * longer(x, after=0, before=1)[0]


def writes_one_more(x: Any, *, xp: Any) -> Any:
    if not x.flags.c_contiguous:
        return NotImplemented
    y = np.empty_like(x)
    if y.size:
        longer(y)[-1] = 0
    y[...] = exact(x)
    return y


def spoils_what_follows(x: Any, *, xp: Any) -> Any:
    if not x.flags.c_contiguous or not x.size:
        return NotImplemented
    y = exact(x)
    longer(x)[-1] = 7
    return y


def ignores_strides(x: Any, *, xp: Any) -> Any:
    if x.ndim < 2 or x.flags.c_contiguous:
        return exact(x)
    return exact(x.T.reshape(x.shape))


def trusts_base(x: Any, *, xp: Any) -> Any:
    return exact(x if x.base is None else x.base)


def in_place(x: Any, *, xp: Any) -> Any:
    y = exact(x)
    x[...] = 0
    return y


def spoils_and_leaves(x: Any, *, xp: Any) -> Any:
    if x.dtype == np.float64:
        x *= 2
        return NotImplemented
    return exact(x)


def widens(x: Any, *, xp: Any) -> Any:
    return exact(x.astype("float64"))


def never(x: Any, *, xp: Any) -> Any:
    return NotImplemented


def unwritten(x: Any, *, xp: Any) -> Any:
    y = np.empty_like(x)
    np.copyto(y, exact(x), where=x > -3)
    return y


def loses_the_middle(x: Any, *, xp: Any) -> Any:
    y = exact(x)
    if x.size > 50_000:
        y.reshape(-1)[x.size // 2] = 0
    return y


def hides_nan(x: Any, *, xp: Any) -> Any:
    return exact(np.nan_to_num(x, nan=0.0, posinf=np.inf, neginf=-np.inf))


def needs_an_element(x: Any, *, xp: Any) -> Any:
    if not np.isfinite(x.max()):
        return NotImplemented
    return exact(x)


def imprecise(x: Any, *, xp: Any) -> Any:
    return ops.gelu_tanh.reference(x, xp=np)


def other_parameters(dy: Any, *, xp: Any) -> Any:
    return exact(dy)


def a_list(x: Any, *, xp: Any) -> Any:
    return exact(x).tolist()


class OneBuffer:
    """Writes all results of one shape into the same memory."""

    def __init__(self) -> None:
        self.buffers: dict[Any, np.ndarray] = {}

    def kernel(self, x: Any, *, xp: Any) -> Any:
        y = self.buffers.setdefault((x.shape, x.dtype), np.zeros(x.shape, x.dtype))
        y[...] = exact(x)
        return y


class Hurried:
    """Gives other last digits in each call, as sums in the order of threads do."""

    calls = 0

    def kernel(self, x: Any, *, xp: Any) -> Any:
        self.calls += 1
        noise = philox(0, "noise", self.calls).standard_normal(x.shape).astype(x.dtype)
        return exact(x) * (1 + np.finfo(x.dtype).eps * noise)


# Others.


@Op
def copied(x: Any, *, xp: Any) -> Any:
    """Return the same numbers in another array."""
    return x + 0


def returns_its_input(x: Any, *, xp: Any) -> Any:
    return x


def softmax(x: Any, axis: int = -1, *, xp: Any) -> Any:
    """Return the right one, but along the last axis only."""
    if axis not in (-1, x.ndim - 1):
        return NotImplemented
    return ops.softmax.reference(x, axis, xp=np)


def softmax_over_one_more(x: Any, axis: int = -1, *, xp: Any) -> Any:
    wide = longer(x) if x.ndim == 2 and axis == -1 else None
    if wide is None:
        return NotImplemented
    rows = as_strided(wide, (x.shape[0], x.shape[1] + 1), x.strides)
    e = np.exp(rows - x.max(axis=-1, keepdims=True))
    return e[:, :-1] / e.sum(axis=-1, keepdims=True)


def softmax_over_the_first_axis(x: Any, axis: int = -1, *, xp: Any) -> Any:
    return ops.softmax.reference(x, 0, xp=np) if x.size else NotImplemented


def norm_of_whole_blocks(arrays: Any, *, xp: Any) -> Any:
    flat = arrays[0].reshape(-1)
    whole = flat[: flat.size // 32 * 32]
    return ops.global_norm.reference([whole, *arrays[1:]], xp=np)


def ema(average: Any, w: Any, *, decay: float, xp: Any) -> None:
    """Move the average of the weights, the right way."""
    average *= decay
    average += (1 - decay) * w


def ema_of_one_more(average: Any, w: Any, *, decay: float, xp: Any) -> Any:
    here, there = longer(average), longer(w)
    if here is None or there is None:
        return NotImplemented
    here[...] = decay * here + (1 - decay) * there
    return None


def ema_spoils_w(average: Any, w: Any, *, decay: float, xp: Any) -> None:
    w *= 1 - decay
    average *= decay
    average += w


def sgd_without_velocity(
    w: Any,
    g: Any,
    m: Any,
    *,
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    xp: Any,
) -> None:
    velocity = m.copy()
    ops.sgd_update_inplace.reference(
        w,
        g,
        velocity,
        lr=lr,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
        xp=np,
    )


def layer_norm_alone(x: Any, weight: Any, bias: Any, eps: float, *, xp: Any) -> Any:
    return ops.layer_norm.reference(x, weight, bias, eps, xp=np)[0]


def on_the_host(x: Any, *, xp: Any) -> Any:
    return exact(x.get())


class Planted(NamedTuple):
    """A kernel of an op, what the message must say, and the checks that must fail."""

    op: Callable[..., Any]
    kernel: Callable[..., Any]
    message: str
    fails: set[str]
    backend: str = "numpy"


VALUES = {"values in float32", "values in float64"}
LAYOUT, WITHIN, ODD = (
    "any memory layout",
    "stays within its arrays",
    "NaN, infinity, large and tiny",
)
ALONE, OWN, REPEATED = "arguments left alone", "results of its own", "the same every time"

RIGHT = (
    Planted(ops.gelu, gelu, "", set()),
    Planted(ops.softmax, softmax, "", set()),
    Planted(ops.ema_update_inplace, ema, "", set()),
    Planted(copied, copied.reference, "", set()),
    Planted(ops.gelu, ops.gelu.reference, "", set(), backend="strict_device"),
)
PLANTED = {
    "a tail dropped": Planted(
        ops.gelu,
        drops_the_tail,
        r"drops_the_tail drops the tail: with n = 31 \(a vector of n\) in float32, the last 7 of "
        r"31 elements of the result differ.* Right for n in \[0, 32\], wrong for .* blocks of 32",
        VALUES,
    ),
    "the last element dropped": Planted(
        ops.gelu, drops_one, "drops the tail: .* the last 1 of 2 elements .*: 0, the ref", VALUES
    ),
    "the tail of a sum dropped": Planted(
        ops.global_norm,
        norm_of_whole_blocks,
        r"differs from the reference: .* wrong for \[1, .* left after blocks of 32 dropped",
        VALUES,
    ),
    "one element too many read": Planted(
        ops.gelu,
        reads_one_more,
        "reads_one_more reads beyond its input: .* in memory after the last element of x",
        {WITHIN},
    ),
    "one element too many in a sum": Planted(
        ops.softmax,
        softmax_over_one_more,
        "reads beyond its input: with n = 1 .* after the last element of x",
        {*VALUES, WITHIN},
    ),
    "one element before the first read": Planted(
        ops.gelu, reads_one_before, "reads beyond its input: .* before the first element", {WITHIN}
    ),
    "one element too many written": Planted(
        ops.gelu, writes_one_more, "writes beyond the end of an array that it made", {WITHIN}
    ),
    "memory after an argument written": Planted(
        ops.gelu, spoils_what_follows, "writes beyond the end of argument x", {WITHIN}
    ),
    "one weight too many updated": Planted(
        ops.ema_update_inplace, ema_of_one_more, "writes beyond the end of arg.* average", {WITHIN}
    ),
    "strides ignored": Planted(
        ops.gelu,
        ignores_strides,
        "does not see how its arguments lie in memory: with every second .* xp.ascontiguousarray",
        {LAYOUT},
    ),
    "the buffer behind a view": Planted(
        ops.gelu, trusts_base, r"the result has shape .*, that of the reference", {*VALUES, WITHIN}
    ),
    "an argument overwritten": Planted(
        ops.gelu, in_place, "changes its argument x, which gelu only reads", {ALONE}
    ),
    "a gradient overwritten": Planted(
        ops.ema_update_inplace, ema_spoils_w, "changes its argument w, which ema_", {ALONE}
    ),
    "spoilt, then left to the reference": Planted(
        ops.gelu, spoils_and_leaves, "argument x and then returns NotImplemented", {ALONE}
    ),
    "state not written back": Planted(
        ops.sgd_update_inplace, sgd_without_velocity, "of argument m afterwards differ", VALUES
    ),
    "float64 results": Planted(
        ops.gelu, widens, "has dtype float64, that of the reference float32", {"values in float32"}
    ),
    "never an answer": Planted(ops.gelu, never, "never answers: it returned Not", {"answers"}),
    "memory never written": Planted(ops.gelu, unwritten, "differ, .*: nan, the", VALUES),
    "an element between two threads lost": Planted(
        ops.gelu,
        loses_the_middle,
        r"1 of 100003 elements .* wrong for \[100003\]: .* divided among threads",
        VALUES,
    ),
    "a NaN hidden": Planted(
        ops.gelu, hides_nan, "where element 0 of x is nan .* must stay visible", {ODD}
    ),
    "no empty array": Planted(
        ops.gelu, needs_an_element, "for n = 0 .* raised ValueError", {*VALUES, "answers"}
    ),
    "an approximation": Planted(ops.gelu, imprecise, "imprecise differs from the ref", VALUES),
    "another axis": Planted(
        ops.softmax, softmax_over_the_first_axis, "differs from the reference", VALUES
    ),
    "other parameters": Planted(
        ops.gelu, other_parameters, r"takes \(dy, \*, xp\); it must take \(x, \*, xp", {"signature"}
    ),
    "a list": Planted(ops.gelu, a_list, "returned float; it must return arrays", {"call"}),
    "statistics left out": Planted(
        ops.layer_norm, layer_norm_alone, "it returns 1 arrays, the reference 3", VALUES
    ),
    "one buffer for all": Planted(
        ops.gelu, OneBuffer().kernel, "returns memory that it keeps", {OWN}
    ),
    "its input returned": Planted(copied, returns_its_input, "returns its argument x, or", {OWN}),
    "other digits each time": Planted(
        ops.gelu, Hurried().kernel, "other numbers when it is called again", {REPEATED}
    ),
    "a host array": Planted(
        ops.gelu,
        on_the_host,
        "returned ndarray; it must return arrays of strict_device",
        {"call"},
        backend="strict_device",
    ),
}
FAULTS = {
    name: (
        partial(check_kernel, planted.op, planted.kernel, backend=planted.backend),
        planted.message,
    )
    for name, planted in PLANTED.items()
}
