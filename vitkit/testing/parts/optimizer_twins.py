"""Checks of an optimizer's numbers: against a formula, against PyTorch, on other devices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitkit.optim.optimizer import Optimizer
from vitkit.testing import strict_device
from vitkit.testing.check import Skip
from vitkit.testing.gradients import assert_close
from vitkit.testing.parts.array_modules import device, torch_or_skip
from vitkit.testing.parts.optimizer_runs import (
    LARGEST,
    LR,
    PARAMETERS,
    STEPS,
    Arrays,
    Maker,
    advance,
    fill,
    gradient,
    model,
)

Reference = Callable[..., np.ndarray]
Twin = Callable[[Any, list[Any], float], Any]


@dataclass(frozen=True)
class Slip:
    """A mistake that is easily made, as a change of what the reference is given.

    Attributes
    ----------
    fault, cure : str
        What the mistake is, and what to do.
    step : callable
        The step count it is given instead of the right one.
    gradient, lr : float
        What gradient and learning rate are multiplied by.
    decay : bool or None
        Whether weight decay applies; None as the parameter declares.
    forgets : bool
        Whether its state is emptied before each step.
    """

    fault: str
    cure: str
    step: Callable[[int], int] = lambda step: step
    gradient: float = 1.0
    lr: float = 1.0
    decay: bool | None = None
    forgets: bool = False


USE_STEP = "use the step that update() is given, which counts from 1"
SIGN = "wrong sign: the weights climb up the gradient"
NONE = Slip("", "")
SLIPS = (
    Slip("the step count is frozen at 1", USE_STEP, step=lambda step: 1),
    Slip("the step is off by one: it counts 0, 1, 2", USE_STEP, step=lambda step: step - 1),
    Slip("the step is off by one: it counts 2, 3, 4", USE_STEP, step=lambda step: step + 1),
    Slip(
        "the correction for young moments is missing",
        "divide them by 1 - beta**step",
        step=lambda step: 100_000,
    ),
    Slip("ignores weight_decay", "use the one that update() is given", decay=False),
    Slip(
        "decays parameters declared with decay=False",
        "use the weight_decay that update() is given, not self.weight_decay",
        decay=True,
    ),
    Slip(SIGN, "subtract the update", gradient=-1.0),
    Slip(SIGN, "subtract the update", lr=-1.0),
    Slip(
        "forgets its moments between steps",
        "name them in slots, and change them in place",
        forgets=True,
    ),
)


def against_reference(maker: Maker, reference: Reference, dtype: str) -> None:
    """Compare three steps with a formula; on a difference, say which mistake explains it."""
    optimizer, samples = maker(), model(dtype)
    start = {name: value.astype(np.float64) for name, value in samples.state_dict().items()}
    optimizer.attach(samples)
    ours = [advance(optimizer, [step]) for step in range(STEPS)]
    expected = _follow(reference, start, optimizer.weight_decay, NONE)
    difference = _first_difference(ours, expected)
    if not difference:
        return
    for slip in SLIPS:
        slipped = _follow(reference, start, optimizer.weight_decay, slip)
        if not _first_difference(ours, slipped):
            raise AssertionError(
                f"{slip.fault}, which gives these very numbers in all {STEPS} updates: {slip.cure}."
                f" First seen in {difference}"
            )
    raise AssertionError(
        f"does not follow the reference, nor any of the {len(SLIPS)} common mistakes tried. First "
        f"seen in {difference}"
    )


def _follow(reference: Reference, start: Arrays, weight_decay: float, slip: Slip) -> list[Arrays]:
    """Return the reference's weights after each step, with a mistake made."""
    state: dict[str, dict[str, Any]] = {name: {} for name in start}
    weights, trajectory = start, []
    for step in range(STEPS):
        after = {}
        for name, w in weights.items():
            declared = PARAMETERS[name][1] if slip.decay is None else slip.decay
            if slip.forgets:
                state[name].clear()
            try:
                with np.errstate(all="ignore"):
                    new = reference(
                        w.copy(),
                        slip.gradient * gradient(name, step),
                        state[name],
                        lr=slip.lr * LR,
                        step=slip.step(step + 1),
                        weight_decay=weight_decay if declared else 0.0,
                    )
            except (ArithmeticError, ValueError):  # such as a division by zero at step 0
                if slip is NONE:
                    raise
                new = np.full_like(w, np.nan)
            after[name] = _weights(new, w, name)
        trajectory.append(after)
        weights = after
    return trajectory


def _weights(new: Any, w: np.ndarray, name: str) -> np.ndarray:
    """Return what a reference returned, if it can be new weights."""
    if getattr(new, "shape", None) != w.shape or new.dtype != np.float64:
        found = f"{getattr(new, 'dtype', type(new).__name__)} {getattr(new, 'shape', '')}"
        raise AssertionError(
            f"the reference returned {found} for {name!r}, expected its new weights, float64 "
            f"{w.shape}: reference(w, g, state, *, lr, step, weight_decay) -> new w."
        )
    return np.asarray(new)


def _first_difference(ours: list[Arrays], theirs: list[Arrays]) -> str:
    """Return the update, the parameter and by how much; nothing where all is the same."""
    for step, (mine, other) in enumerate(zip(ours, theirs, strict=True), 1):
        for name, value in mine.items():
            if apart := _apart(value, other[name]):
                return f"update {step}, {name!r}: {apart}"
    return ""


def _apart(actual: Any, expected: Any) -> str:
    try:
        assert_close(actual, expected, reduction=LARGEST)
    except AssertionError as error:
        return str(error)
    return ""


def against_torch(maker: Maker, twin: Twin, dtype: str) -> None:
    """Compare three steps with PyTorch's optimizer, on the parameters that it takes."""
    torch = torch_or_skip()
    optimizer, samples = maker(), model(dtype)
    optimizer.attach(samples)
    twins, refusals = {}, []
    for name, value in samples.state_dict().items():
        parameter = torch.nn.Parameter(torch.from_numpy(value))
        try:
            twins[name] = parameter, _twin(torch, twin, parameter, optimizer, PARAMETERS[name][1])
        except (TypeError, ValueError, RuntimeError) as error:
            refusals.append(f"{name!r} {value.shape}: {type(error).__name__}: {error}")
    if not twins:
        raise AssertionError(f"PyTorch's optimizer takes none of the parameters. {refusals[0]}")
    for step in range(STEPS):
        ours = advance(optimizer, [step])
        for name, (parameter, theirs) in twins.items():
            parameter.grad = torch.from_numpy(gradient(name, step).astype(dtype))
            theirs.step()
            if apart := _apart(ours[name], parameter.detach().numpy()):
                raise AssertionError(
                    f"differs from PyTorch's {type(theirs).__name__} in update {step + 1}, "
                    f"{name!r}: {apart}"
                )


def _twin(torch: Any, twin: Twin, parameter: Any, optimizer: Optimizer, decay: bool) -> Any:
    """Return PyTorch's optimizer of one parameter, with the weight decay that ours gives it."""
    theirs = twin(torch, [parameter], LR)
    for group in theirs.param_groups:
        if "weight_decay" in group:
            group["weight_decay"] = optimizer.weight_decay if decay else 0.0
    return theirs


def same_on(maker: Maker, name: str) -> None:
    """Compare weights and state after three steps with NumPy's, in both dtypes."""
    xp = device(name)
    for dtype in ("float64", "float32"):
        here, there = maker().attach(model(dtype)), maker()
        expected = {**advance(here, range(STEPS)), **here.state_dict()}
        try:
            actual = advance(there.attach(model(dtype, xp=xp)), range(STEPS))
            actual |= there.state_dict()
        except Exception as error:
            raise AssertionError(
                f"works on NumPy, but on {name} raised {type(error).__name__}: {error} Use the xp "
                "that update() is given, and its arrays."
            ) from error
        for key, array in expected.items():
            if apart := _apart(actual[key], array):
                raise AssertionError(f"{key!r} differs between NumPy and {name}: {apart}")


def never_waits(maker: Maker) -> None:
    """No step makes the host wait for the device."""
    optimizer, samples = maker(), model("float32", xp=strict_device.xp)
    optimizer.attach(samples)
    try:
        fill(samples, 0)
        with strict_device.count_syncs() as syncs:
            optimizer.step()
            optimizer.step()
    except Exception as error:
        raise Skip(f"does not run on strict_device ({type(error).__name__})") from error
    if syncs:
        raise AssertionError(
            f"step waits for the device {len(syncs)} times in 2 updates ({', '.join(syncs[:4])}): "
            "leave numbers on the device as 0-d arrays, and decide with xp.where instead of if."
        )
