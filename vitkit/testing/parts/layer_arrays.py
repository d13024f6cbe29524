"""Checks of the arrays that a layer returns, and that it leaves alone those it is given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from vitkit.backend import Array, to_numpy
from vitkit.testing.gradients import assert_close
from vitkit.testing.parts.array_modules import draw, frozen
from vitkit.testing.parts.blame import differences, fail_if
from vitkit.testing.parts.memory import same_bits
from vitkit.testing.parts.passes import (
    BATCH,
    DTYPES,
    Subject,
    Watching,
    backward,
    forward,
    gradients_of,
    training,
    watch_gradients,
)

SCALES = (1e3, 1e-30, 0.0)
"""Of inputs: large ones, those whose square is zero in float32, and zero."""


def shapes(s: Subject) -> None:
    """Check that the batch stays the first axis, and ``dx`` has the shape of ``x``."""
    layer, x = s.placed(), s.inputs()
    y, dx, _ = s.run(layer, x)
    if y.shape[:1] != (BATCH,):
        raise AssertionError(
            f"for x of shape {x.shape} it returned {y.shape}; the first axis must stay the batch."
        )
    if layer(x).shape != y.shape:
        raise AssertionError(f"y is {y.shape} in training and {layer(x).shape} in inference.")
    if dx.shape != x.shape:
        raise AssertionError(f"dx is {dx.shape}; it must have the shape of x, {x.shape}.")


def dtype_is_kept(s: Subject) -> None:
    """Check that everything has the precision of the input and the parameters."""
    for dtype in DTYPES:
        layer, x = s.placed(dtype), s.inputs(dtype)
        added = watch_gradients(layer)
        y, dx, ctx = s.run(layer, x)
        found = {"y": y.dtype, "dx": dx.dtype, "y in inference": layer(x).dtype, **added}
        found |= {name: grad.dtype for name, grad in gradients_of(layer).items()}
        kept = [("an array on ctx", d) for d in ctx.dtypes if d.kind == "f"]
        wrong = [f"{what} is {d}" for what, d in [*found.items(), *kept] if d != dtype]
        if wrong:
            raise AssertionError(
                f"for {dtype} input and parameters {', '.join(wrong)}. A constant that is an "
                "array, such as np.sqrt(2) or xp.zeros(n), carries float64 into the result; "
                "Python's numbers do not, and xp.zeros(n, x.dtype) says what is meant."
            )


def input_is_not_modified(s: Subject) -> None:
    """Check that neither ``x`` nor ``dy`` is written to."""
    layer, ctx = s.placed(), training()
    x = s.xp.asarray(frozen(draw((BATCH, *s.shape), "float32")))
    with _unchanged("forward", "x", x):
        layer(x)
        y = forward(layer, x, ctx)
    with _unchanged("backward", "x", x):
        backward(layer, s.draw(y.shape, seed=1), ctx)
    forward(layer, s.inputs(), ctx)  # not read-only, so that who writes is known
    dy = s.xp.asarray(frozen(draw(y.shape, "float32", seed=1)))
    with _unchanged("backward", "dy", dy):
        backward(layer, dy, ctx)


@contextmanager
def _unchanged(method: str, name: str, array: Array) -> Iterator[None]:
    """Raise where the block writes to a read-only array, or changes one of a device."""
    before = to_numpy(array).copy()
    start = f"{method} changes {name} in place"
    advice = "Another layer may still need it: compute into a new array."
    try:
        yield
    except ValueError as error:
        if "read-only" in str(error):
            raise AssertionError(f"{start}, or a view of it ({error}). {advice}") from error
        raise
    if not same_bits(to_numpy(array), before):
        raise AssertionError(f"{start}. {advice}")


def batch_of(s: Subject, *sizes: int) -> None:
    """Check that a batch may have these sizes."""
    usual = s.placed("float64")(s.inputs("float64")).shape
    for size in sizes:
        layer, x = s.placed("float64"), s.inputs("float64", batch=size)
        y, dx, ctx = s.run(layer, x)
        got = {"y": y.shape, "y in inference": layer(x).shape, "dx": dx.shape}
        shape = (size, *usual[1:])
        for name, expected in {"y": shape, "y in inference": shape, "dx": x.shape}.items():
            if got[name] != expected:
                raise AssertionError(
                    f"for x of shape {x.shape}, {name} is {got[name]}; it must be {expected}."
                )
        if len(ctx):
            raise AssertionError(f"for a batch of {size}, {len(ctx)} entries are left on ctx.")
        for name, grad in gradients_of(layer).items():
            values = to_numpy(grad)
            if not np.isfinite(values).all():
                raise AssertionError(f"for a batch of {size}, {name} is not finite.")
            if size == 0 and values.any():
                raise AssertionError(f"for a batch of 0, {name} is not zero.")


def samples_are_independent(s: Subject) -> None:
    """Check that a sample does not see its neighbours."""
    layer = s.placed("float64")
    y, dx, _ = s.run(layer, s.inputs("float64"), Watching(keep=True))
    for size in range(1, BATCH):
        x, dy = s.inputs("float64"), s.draw(y.shape, "float64", seed=1)
        ctx = Watching(keep=True)
        got = {"y": forward(layer, x[:size], ctx), "dx": backward(layer, dy[:size], ctx)}
        expected = {"y": to_numpy(y)[:size], "dx": to_numpy(dx)[:size]}
        fail_if(
            differences(got, expected, assert_close),
            f"it mixes samples: {size} of {BATCH} alone give something else (if on purpose, as "
            "batch normalization does, check it with batched=False)",
        )


def extreme_inputs(s: Subject) -> None:
    """Check that large, tiny and zero inputs in float32 give finite numbers."""
    for scale in SCALES:
        layer, x = s.placed(), s.inputs() * scale
        with np.errstate(all="ignore"):  # an infinity on the way to a number is no fault
            y, dx, _ = s.run(layer, x)
        for name, array in {"y": y, "dx": dx, **gradients_of(layer)}.items():
            if not np.isfinite(to_numpy(array)).all():
                raise AssertionError(
                    f"for float32 inputs of size {scale:g}, {name} is not finite: an exponential "
                    "or a power overflows, or something is divided by what may be zero."
                )


def another_width(s: Subject) -> None:
    """Check that an input of another width is not broadcast in silence."""
    for width in {1, s.shape[-1] + 1} - {s.shape[-1]} if s.shape else ():
        layer, x = s.placed(), s.draw((BATCH, *s.shape[:-1], width))
        try:
            _, dx, _ = s.run(layer, x)
        except Exception:  # noqa: S112 (an error is what is wanted)
            continue
        if dx.shape != x.shape:
            raise AssertionError(
                f"it takes x of shape {x.shape}, broadcasts it in silence, and returns dx of "
                f"shape {dx.shape}. Begin forward with self.expect_width(x, {s.shape[-1]})."
            )
