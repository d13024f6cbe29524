"""Checks of a layer's gradients: by finite differences, over several passes, and by a twin."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from vitkit.backend import Array, to_numpy
from vitkit.nn.module import Module
from vitkit.optim import AdamW
from vitkit.testing.gradients import assert_close
from vitkit.testing.parts.array_modules import draw, torch_or_skip
from vitkit.testing.parts.blame import Claim, assert_equal, close_beside, differences, fail_if
from vitkit.testing.parts.passes import (
    BATCH,
    Subject,
    Watching,
    backward,
    forward,
    gradients_of,
    training,
    values_of,
)


def gradient(s: Subject) -> None:
    """Check that backward is the derivative of forward, for the input and every parameter."""
    fail_if(_of_one_pass(s, training), "backward is not the derivative of forward")


def gradient_in_inference(s: Subject) -> None:
    """Check that it is so, too, in a pass that keeps arrays but does not train."""
    problem = _of_one_pass(s, lambda: Watching(keep=True))
    fail_if(problem, "in Context(keep=True) backward is not the derivative of inference")


def _of_one_pass(s: Subject, new_pass: Callable[[], Watching]) -> str:
    """Return what is wrong with the gradients of a pass."""
    layer, x = s.placed("float64"), s.inputs("float64")
    y, dx, _ = s.run(layer, x.copy(), new_pass())  # a layer may write into it: another check
    dy = s.draw(y.shape, "float64", seed=1)
    return Claim(
        lambda: (forward(layer, x.copy(), new_pass()) * dy).sum(),
        {"x": x, **values_of(layer)},
        {"x": dx, **_by_name(layer)},
        s.xp,
    ).problem(_factors(x), residual=dy)


def used_twice(s: Subject) -> None:
    """Check that it has the right gradients, those of both uses added up."""
    layer = s.placed("float64")
    one, two = (s.inputs("float64", seed=seed) for seed in (0, 1))
    weights = [s.draw(layer(one).shape, "float64", seed=seed) for seed in (2, 3)]

    def loss() -> Array:
        ctx = training()
        parts = [forward(layer, x.copy(), ctx) for x in (one, two)]
        return sum((y * w).sum() for y, w in zip(parts, weights, strict=True))

    ctx = training()
    for x in (one, two):
        forward(layer, x.copy(), ctx)
    dtwo = backward(layer, weights[1].copy(), ctx)
    done = backward(layer, weights[0].copy(), ctx)
    if len(ctx):
        raise AssertionError(f"{len(ctx)} entries are left on ctx after both backward passes.")
    problem = Claim(
        loss,
        {"the first x": one, "the second x": two, **values_of(layer)},
        {"the first x": done, "the second x": dtwo, **_by_name(layer)},
        s.xp,
    ).problem(_factors(one))
    start = "used twice in a pass, as when used once, its gradients are wrong"
    if problem and not _of_one_pass(s, training):
        start = (
            "used twice in a pass its gradients are wrong, though right when used once: it keeps "
            "something of a pass on self, or assigns a gradient instead of adding it"
        )
    fail_if(problem, start)


def _by_name(layer: Module) -> dict[str, Array]:
    return {repr(name): parameter.grad for name, parameter in layer.named_parameters()}


def _factors(x: Array) -> dict[str, float]:
    """Return what a gradient is often multiplied by, and what it then is."""
    return {
        "it is a mean over the batch; the loss has divided already, so sum": 1 / BATCH,
        "it is a mean over all rows; the loss has divided already, so sum": (
            1 / math.prod(x.shape[:-1])
        ),
        "it is twice the right one": 2.0,
        "it is half the right one": 0.5,
    }


def gradients_add_up(s: Subject) -> None:
    """Check that gradients of parameters are added to, and that of the input is not."""
    layer = s.placed("float64")
    layer.zero_grad()
    _, dx, _ = s.run(layer, s.inputs("float64"))
    once = {name: to_numpy(grad).copy() for name, grad in gradients_of(layer).items()}
    _, dx_again, _ = s.run(layer, s.inputs("float64"))
    for name, grad in gradients_of(layer).items():
        if once[name].any() and np.array_equal(to_numpy(grad), once[name]):
            raise AssertionError(
                f"{name} is assigned instead of added: after two passes it is that of the last. "
                "Use parameter.add_grad(...)."
            )
    twice = {name: 2 * grad for name, grad in once.items()}
    problem = differences(gradients_of(layer), twice, assert_close)
    fail_if(problem, "after two equal passes a gradient is not twice that of one")
    problem = differences({"dx": dx_again}, {"dx": dx}, assert_equal)
    fail_if(problem, "a second pass gives another dx, which must be assigned, not added to")


def every_parameter_learns(s: Subject) -> None:
    """Check that a pass and a step of an optimizer move every parameter."""
    layer, x = s.placed(), s.inputs()
    if not layer.num_parameters:
        if layer.groups:
            raise AssertionError(f"it has no parameters, but buffers for them: {layer.groups}.")
        return
    before = layer.state_dict()
    layer.zero_grad()
    optimizer = AdamW(1e-2).attach(layer)
    s.run(layer, x)
    for name, parameter in layer.named_parameters():
        if not to_numpy(parameter.grad).any():
            raise AssertionError(
                f"{name!r} never gets a gradient. Call {name}.add_grad(...) in backward; or, if "
                "forward makes no use of it, do without it."
            )
    gradients = {name: to_numpy(p.grad).copy() for name, p in layer.named_parameters()}
    optimizer.step()
    for name, value in layer.state_dict().items():
        moved = float((value != before[name]).mean())
        if moved <= 0.5:
            given = float((gradients[name] != 0).mean())
            raise AssertionError(
                f"a step of AdamW moves {moved:.0%} of the numbers of {name!r}, and backward "
                f"gives {given:.0%} of them a gradient. The optimizer sees what is added to the "
                "array that place(xp) made, with add_grad(...), and nothing else."
            )


def agrees_with_torch(s: Subject) -> None:
    """Compare output and gradients with those of a PyTorch module with the same parameters."""
    torch = torch_or_skip()
    assert s.torch is not None  # noqa: S101 (the check is made only where there is one)
    module = s.torch(torch).double().eval()
    layer, x = s.placed("float64"), s.inputs("float64")
    twins = dict(module.named_parameters())
    ours = {name: tuple(p.shape) for name, p in layer.named_parameters()}
    theirs = {name: tuple(p.shape) for name, p in twins.items()}
    if ours != theirs:
        raise AssertionError(
            f"its parameters are {ours}, those of its torch twin {theirs}; name and shape them "
            "alike, weights (out, in)."
        )
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            twins[name].copy_(torch.tensor(to_numpy(parameter.value)))
    y, dx, _ = s.run(layer, x, Watching(keep=True))
    tx = torch.tensor(to_numpy(x), requires_grad=True)
    ty = module(tx)
    problem = differences({"y": y}, {"y": ty.detach().numpy()}, assert_close)
    fail_if(problem, "forward computes something else than its torch twin")
    ty.backward(torch.tensor(draw(y.shape, seed=1)))
    expected = {"dx": tx.grad.numpy()}
    for name, parameter in twins.items():
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        expected[f"the gradient of {name!r}"] = grad.numpy()
    problem = differences({"dx": dx, **gradients_of(layer)}, expected, close_beside(expected))
    fail_if(problem, "backward computes something else than its torch twin")
