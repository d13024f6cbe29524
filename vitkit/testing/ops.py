"""Whether an operation does what its reference does, and its backward is its gradient."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from vitkit.backend import Array, ArrayModule, philox
from vitkit.testing.check import Check, Skip, run_checks
from vitkit.testing.parts.array_modules import torch_or_skip
from vitkit.testing.parts.blame import Claim, fail_if
from vitkit.testing.parts.differences import axes_in_words, mixed_axes, numeric_gradient
from vitkit.testing.parts.function_checks import finite, function_checks
from vitkit.testing.parts.functions import DTYPES, Function, cast, doing, name_of
from vitkit.testing.parts.pairs import agrees_with_torch, linear_in_dy, needs_no_forward
from vitkit.testing.parts.staged import staged

Inputs = Sequence[np.ndarray] | Callable[[int], Sequence[np.ndarray]]
Gradients = Callable[..., Array | Sequence[Array | None]]

SIZES = (1e4, 1e-30)
SMALL = 400
"""The most numbers of an array for each of which a difference is taken, to say which is wrong."""


def check_op(
    op: Callable[..., Any],
    backward: Gradients,
    inputs: Inputs,
    *,
    reference: Callable[..., Any] | None = None,
    torch: Callable[[Any], Callable[..., Any]] | None = None,
    batched: bool | int = True,
) -> None:
    """Raise unless an operation and its gradient are right in all that layers need.

    Parameters
    ----------
    op : callable
        ``op(*arrays, xp=xp)`` returns ``y``, or ``(y, ...)`` with what backward needs besides.
        Other arguments are bound before: ``partial(ops.multi_head_attention, num_heads=2)``.
    backward : callable
        ``backward(dy, arrays, outputs, xp=xp)`` returns the gradients of ``arrays``, with None
        for what has none, such as labels; a single one need not be in a tuple. ``outputs`` is
        the tuple of all that ``op`` returned. Usually a line that puts the arguments in place::

            lambda dy, arrays, outputs, *, xp: ops.softmax_backward(dy, outputs[0], xp=xp)

    inputs : sequence of numpy.ndarray, or callable
        The ``arrays`` on the host, small, float64 or integers; or ``inputs(seed)``, which
        returns them, others for another seed.
    reference : callable, optional
        ``reference(*arrays)``: another spelling of ``op`` on NumPy, as plain as can be, of the
        first output or all.
    torch : callable, optional
        ``torch(torch)`` returns PyTorch's spelling, which takes tensors in place of ``arrays``.
    batched : bool or int, default True
        Whether axis 0 of the first input counts items that have nothing to do with each other;
        a number says of how many of the inputs.

    Raises
    ------
    ConformanceError
        Naming what is wrong, all of it at once.
    """
    checks = op_checks(op, backward, inputs, reference=reference, torch=torch, batched=batched)
    run_checks(f"op {name_of(op, 'op')!r}", checks)


def op_checks(
    op: Callable[..., Any],
    backward: Gradients,
    inputs: Inputs,
    *,
    reference: Callable[..., Any] | None = None,
    torch: Callable[[Any], Callable[..., Any]] | None = None,
    batched: bool | int = True,
) -> list[Check]:
    """Return the checks of :func:`check_op`, which takes the same arguments."""
    draw = drawing(inputs)
    forward = Function(name_of(op, "op"), parameters(op, len(draw(0))), op, draw)
    gradients = gradient_function(forward, backward)
    checks = [
        *function_checks("forward", forward),
        *function_checks("backward", gradients),
        Check("gradient", partial(gradient, forward, gradients)),
        Check("backward: linear in dy", partial(linear_in_dy, gradients)),
        Check("backward: nothing kept from forward", partial(needs_no_forward, forward, gradients)),
        Check("large and tiny inputs", partial(any_size, forward, gradients)),
    ]
    if batched:
        count = int(batched)
        checks += [
            Check("items apart", partial(items_apart, forward, count)),
            Check("one item, and none", partial(one_and_none, forward, gradients, count)),
        ]
    if reference is not None:
        checks.append(Check("reference", partial(agrees_with_reference, forward, reference)))
    if torch is not None:
        checks.append(Check("PyTorch twin", partial(agrees_with_twin, forward, gradients, torch)))
    return staged([Check("call", partial(returns_gradients, forward, gradients))], checks)


def drawing(inputs: Inputs) -> Callable[[int], Sequence[np.ndarray]]:
    """Return ``inputs`` as a function of a seed; arrays that are given also serve reversed."""
    if callable(inputs):
        return inputs
    arrays = tuple(np.asarray(array) for array in inputs)
    return lambda seed: tuple(np.flip(array) for array in arrays) if seed % 2 else arrays


def parameters(op: Callable[..., Any], count: int) -> tuple[str, ...]:
    """Return what messages call the arrays that ``op`` takes: its own names, if it has them."""
    try:
        theirs = list(inspect.signature(op).parameters.values())
    except ValueError:  # a builtin
        theirs = []
    names = [p.name for p in theirs if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return tuple(names[at] if at < len(names) else f"input {at}" for at in range(count))


def gradient_function(forward: Function, backward: Gradients) -> Function:
    """Return backward as a function of ``dy``, the inputs, and all outputs of forward."""
    count = len(forward.parameters)

    def draw(seed: int) -> list[np.ndarray]:
        arrays = cast(forward.draw(seed), "float64")
        outputs = all_of(forward, arrays)
        dy = philox(seed, "conformance dy").standard_normal(outputs[0].shape)
        return [dy, *arrays, *outputs]

    def call(dy: Array, *rest: Array, xp: ArrayModule) -> Any:
        return backward(dy, rest[:count], rest[count:], xp=xp)

    name = name_of(backward, f"backward of {forward.name}")
    return Function(name, ("dy", *forward.parameters), call, draw, "gradient")


def all_of(forward: Function, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return all outputs."""
    return [np.asarray(output) for output in forward.values(arrays)]


def first_of(forward: Function, others: Sequence[np.ndarray], x: np.ndarray) -> np.ndarray:
    """Return the first output for a first input ``x``."""
    return all_of(forward, [x, *others])[0]


def returns_gradients(forward: Function, backward: Function) -> None:
    """Require that both run, and that each input has a gradient of its shape."""
    inputs = forward.draw(0)
    for at, host in enumerate(inputs):
        if host.dtype.kind not in "biu" and host.dtype != np.float64:
            raise AssertionError(
                f"{forward.argument(at)} is {host.dtype}; pass float64, which this check turns "
                "into float32 itself, or integers."
            )
    with doing(forward.name):
        outputs = forward.values(inputs)
    if any(output is None for output in outputs):
        raise AssertionError(f"{forward.name} must return arrays; it returned None.")
    with doing(backward.name):
        made = backward.values(backward.draw(0))
    if len(made) != len(inputs):
        raise AssertionError(
            f"{backward.name} returned {len(made)} gradients for {len(inputs)} inputs; return "
            "one for each, None for what has none."
        )
    require_shapes(forward, made, inputs, backward.name)


def require_shapes(
    forward: Function,
    gradients: Sequence[np.ndarray | None],
    inputs: Sequence[np.ndarray],
    what: str,
) -> None:
    """Raise unless each gradient has the shape of its input."""
    for at, (got, host) in enumerate(zip(gradients, inputs, strict=True)):
        if got is not None and got.shape != host.shape:
            name = forward.argument(at)
            raise AssertionError(
                f"{what}: the gradient of {name} has shape {got.shape}; it must have that of "
                f"{name}, {host.shape}. Where an input serves many rows, its gradient is their "
                "sum."
            )


def gradient(forward: Function, backward: Function) -> None:
    """Require that backward gives the gradient of the sum of ``dy`` times the first output."""
    dy, *rest = backward.draw(0)
    inputs = rest[: len(forward.parameters)]
    names = [forward.argument(at) for at in range(len(inputs))]
    made = dict(zip(names, backward.values([dy, *rest]), strict=True))
    gradients = {name: got for name, got in made.items() if got is not None}
    claim = Claim(
        lambda: np.sum(all_of(forward, inputs)[0] * dy),
        {name: host for name, host in zip(names, inputs, strict=True) if name in gradients},
        gradients,
        np,
    )
    sizes = sorted({size for host in (dy, *inputs) for size in host.shape if size > 1})
    factors = {f"it is divided by {size}, a mean where a sum must be": 1 / size for size in sizes}
    factors |= {f"a division by {size} is missing": size for size in sizes}
    start = f"{backward.name} is not the gradient of {forward.name}"
    problem = claim.problem(factors)
    fail_if(problem and f"{problem}{worst_number(claim)}", start)


def worst_number(claim: Claim) -> str:
    """Return where a gradient is furthest off, and by how much."""
    off, text = 0.0, ""
    for name, got in claim.gradients.items():
        if got.size > SMALL or not np.isfinite(got).all():
            continue
        want = numeric_gradient(claim.function, claim.arrays[name])
        worst = np.unravel_index(int(np.abs(got - want).argmax()), got.shape)
        if abs(got[worst] - want[worst]) > off:
            off = abs(got[worst] - want[worst])
            text = (
                f". Furthest off is that of {name} at {tuple(int(i) for i in worst)}: "
                f"{got[worst]:.6g}, by differences {want[worst]:.6g}"
            )
    return text


def any_size(forward: Function, backward: Function) -> None:
    """Require that a large or tiny first input gives finite numbers, also on the way."""
    x, *others = forward.draw(0)
    if x.dtype.kind != "f" or not x.any():
        raise Skip("the first input holds no floating-point numbers to scale")
    for dtype in DTYPES:
        for size in SIZES:
            arrays = cast([x * (size / np.abs(x).max()), *others], dtype)
            what = f"{forward.argument(0)} up to {size:g} in {dtype}"
            finite(forward, arrays, what)
            outputs = all_of(forward, arrays)
            finite(backward, [np.ones_like(outputs[0]), *arrays, *outputs], what)


def items_apart(forward: Function, batched: int) -> None:
    """Require that what happens to an item does not depend on the others."""
    arrays = cast(forward.draw(0), "float64")
    if min(len(array) for array in arrays[:batched]) < 2:
        raise Skip("needs inputs of at least two items; pass some, or batched=False")
    axes = mixed_axes(partial(first_of, forward, arrays[1:]), arrays[0])
    before = all_of(forward, arrays)[0]
    for at, array in enumerate(arrays[:batched]):
        if array.dtype.kind == "f":
            array[1] += philox(0, "conformance item", at).random(array[1].shape) + 0.5
    after = all_of(forward, arrays)[0]
    if np.abs(after[0] - before[0]).max() > 1e-9 * np.abs(before[0]).max():
        along = f" It computes {axes_in_words(axes)}." if axes else ""
        raise AssertionError(
            f"the batch items are mixed: output 0 of {forward.name} changes when item 1 of "
            f"{forward.argument(0)} changes. An operation over the wrong axis?{along} If items "
            "must see each other, pass batched=False."
        )


def one_and_none(forward: Function, backward: Function, batched: int) -> None:
    """Require that a batch of one gives what the item gives among others, and none gives none."""
    dy, *rest = cast(backward.draw(0), "float64")
    arrays = rest[: len(forward.parameters)]
    whole = all_of(forward, arrays)[0]
    for count, what in ((1, "a batch of one"), (0, "an empty batch")):
        batch = [array[:count] if at < batched else array for at, array in enumerate(arrays)]
        with doing(f"{forward.name} of {what}"):
            outputs = all_of(forward, batch)
        of = f"{forward.name} of {what} is not what it is among others"
        forward.same(of, outputs[:1], [whole[:count]], forward.reduction(arrays))
        with doing(f"{backward.name} of {what}"):
            gradients = backward.values([dy[:count], *batch, *outputs])
        require_shapes(forward, gradients, batch, f"{backward.name} of {what}")
    for at, got in enumerate(gradients):
        if got is not None and got.any():
            raise AssertionError(
                f"{backward.name} of {what}: the gradient of {forward.argument(at)} must be zero, "
                "the sum over no item."
            )


def agrees_with_reference(forward: Function, reference: Callable[..., Any]) -> None:
    """Require what the other spelling gives."""

    def on_numpy(*arrays: np.ndarray, xp: ArrayModule) -> Any:
        return reference(*arrays)

    arrays = cast(forward.draw(0), "float64")
    other = Function("the reference", forward.parameters, on_numpy, forward.draw)
    with doing(other.name):
        want = all_of(other, arrays)
    with naming_axes(forward, other, arrays):
        what = f"{forward.name} differs from its reference"
        got = all_of(forward, arrays)[: len(want)]
        forward.same(what, got, want, forward.reduction(arrays))


def agrees_with_twin(
    forward: Function, backward: Function, twin: Callable[[Any], Callable[..., Any]]
) -> None:
    """Require the values and gradients of PyTorch's spelling."""
    torch = torch_or_skip()

    def on_numpy(*arrays: np.ndarray, xp: ArrayModule) -> np.ndarray:
        value = twin(torch)(*(torch.tensor(array) for array in arrays))
        return np.asarray((value[0] if isinstance(value, (tuple, list)) else value).numpy())

    other = Function("its PyTorch twin", forward.parameters, on_numpy, forward.draw)
    with naming_axes(forward, other, cast(forward.draw(0), "float64")):
        agrees_with_torch(forward, backward, twin)


@contextmanager
def naming_axes(forward: Function, other: Function, arrays: Sequence[np.ndarray]) -> Iterator[None]:
    """Say, where two spellings differ, that one computes along other axes than the other."""
    try:
        yield
    except AssertionError as error:
        x, *others = arrays
        if x.dtype.kind != "f":
            raise
        ours, theirs = (mixed_axes(partial(first_of, f, others), x) for f in (forward, other))
        if ours is None or theirs is None or ours == theirs:
            raise
        raise AssertionError(
            f"{error} Over the wrong axis: {forward.name} computes {axes_in_words(ours)} of "
            f"{forward.argument(0)}, {other.name} {axes_in_words(theirs)}."
        ) from None
