"""What a function and its gradient keep to together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from vitkit.testing.parts.array_modules import torch_or_skip
from vitkit.testing.parts.functions import DTYPES, Function, cast, doing
from vitkit.testing.parts.memory import same_bits


def agrees_with_torch(
    forward: Function, backward: Function, twin: Callable[[Any], Callable[..., Any]]
) -> None:
    """Require PyTorch's first output and gradients."""
    torch = torch_or_skip()
    theirs = twin(torch)
    for dtype in DTYPES:
        arguments = cast(backward.draw(0), dtype)
        dy, arrays = arguments[0], arguments[1 : 1 + len(forward.parameters)]
        tensors = [torch.tensor(a, requires_grad=a.dtype.kind == "f") for a in arrays]
        with doing("the PyTorch twin"):
            y = theirs(*tensors)
            y = y[0] if isinstance(y, (tuple, list)) else y
            y.backward(torch.tensor(dy))
        reduction = forward.reduction(arguments)
        what = f"{forward.name} differs from its PyTorch twin"
        forward.same(what, forward.values(arrays)[:1], [y.detach().numpy()], reduction)
        for at, gradient in enumerate(backward.values(arguments)):
            if gradient is None:
                continue
            grad = tensors[at].grad
            want = np.zeros_like(arrays[at]) if grad is None else grad.numpy()
            what = f"{backward.name} differs from the gradient of the PyTorch twin"
            of = f" for {forward.argument(at)}" if len(arrays) > 1 else ""
            backward.same(f"{what}{of}", [gradient], [want], reduction)


def needs_no_forward(forward: Function, backward: Function) -> None:
    """Require that backward does not depend on what forward was called with last."""
    arguments, others = cast(backward.draw(0), "float64"), cast(forward.draw(1), "float64")
    forward.values(arguments[1 : 1 + len(forward.parameters)])
    want = backward.values(arguments)
    forward.values(others)
    with doing(f"{backward.name} after another {forward.name}"):
        got = backward.values(arguments)
    what = (
        f"{backward.name} changes with what {forward.name} was called with last: something is "
        "kept between the two, which is wrong where it is used twice. Use the arguments alone"
    )
    backward.same(what, got, want, backward.reduction(arguments))


def linear_in_dy(backward: Function) -> None:
    """Require that backward is linear in ``dy``."""
    dy, *rest = cast(backward.draw(0), "float64")
    other = np.flip(dy)

    def at(seen: np.ndarray) -> list[np.ndarray | None]:
        return backward.values([seen, *rest])

    whole = at(0.5 * dy - 2 * other)
    for place, parts in enumerate(zip(whole, at(dy), at(other), at(2 * dy), strict=True)):
        got, one, two, twice = parts
        if got is None or one is None or two is None or twice is None:
            continue
        want = 0.5 * one - 2 * two
        if np.abs(got - want).max(initial=0) <= 1e-9 * max(np.abs(p).max() for p in (one, two)):
            continue
        seen = "It ignores dy" if same_bits(one, twice) else "Perhaps dy is clipped, or used twice"
        raise AssertionError(
            f"{backward.label(place, len(whole))} is not linear in dy: the gradients for two dy do "
            f"not add up to that for their sum. {seen}. A gradient is dy times "
            "a derivative that depends on the inputs alone."
        )
