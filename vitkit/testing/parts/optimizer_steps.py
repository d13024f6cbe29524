"""Checks of what one step of an optimizer does to weights, gradients and slots."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from vitkit.backend import Array
from vitkit.testing.check import Skip
from vitkit.testing.gradients import assert_close
from vitkit.testing.parts.array_modules import draw
from vitkit.testing.parts.optimizer_runs import (
    DECAY,
    LARGEST,
    LR,
    MANY,
    PARAMETERS,
    STEPS,
    Arrays,
    Maker,
    advance,
    gradient,
    listed,
    model,
)
from vitkit.testing.parts.optimizer_state import lost
from vitkit.testing.parts.widening import Watched, watching

DECAYED = tuple(name for name, (_, decay) in PARAMETERS.items() if decay)
UNDECAYED = tuple(name for name, (_, decay) in PARAMETERS.items() if not decay)
EXTREMES = (("float32", 1e-30), ("float32", 1e10), ("float64", 1e-30), ("float64", 1e20))
RATES = (1e-3, 1e-2, 1e-1)


def moves(maker: Maker) -> None:
    """Check that every element of every parameter moves."""
    samples = model()
    optimizer, before = maker(weight_decay=0.0).attach(samples), samples.state_dict()
    still = {name: np.ones(value.shape, bool) for name, value in before.items()}
    for step in range(MANY):
        for name, value in advance(optimizer, [step]).items():
            still[name] &= value == before[name]
    stuck = [
        f"{where.sum()} of {where.size} elements of {name!r}, the last at {_last(where)}"
        for name, where in still.items()
        if where.any()
    ]
    if stuck:
        raise AssertionError(
            f"did not move in {MANY} updates: {'; '.join(stuck)}. Does a loop or a kernel drop the "
            "tail of what it is given?"
        )


def _last(where: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argwhere(where)[-1])


def uses_slots(maker: Maker) -> None:
    """Check that no slot stays zero."""
    optimizer = maker().attach(model())
    idle = set(optimizer.slots)
    for step in range(MANY):
        advance(optimizer, [step])
        idle -= {key.rpartition(".")[2] for key, a in optimizer.state_dict().items() if a.any()}
    if idle:
        raise AssertionError(
            f"slot {listed(sorted(idle))} is still zero after {MANY} updates: change it in place "
            "(m *= beta; m += g), since m = ... makes a new array that is forgotten; or take it "
            "out of slots."
        )


def rests(maker: Maker) -> None:
    """Check that without decay nothing moves at a rate of zero, or by gradients of zero."""
    for why, lr, scale in (("lr is 0", 0.0, 1.0), ("every gradient is 0", LR, 0.0)):
        optimizer, samples = maker(lr, 0.0), model()
        before = samples.state_dict()
        after = advance(optimizer.attach(samples), range(STEPS), scale=scale)
        _finite(after, f"where {why}: add an epsilon to what is divided by")
        if optimizer.weight_decay:
            continue  # its own, not to be switched off
        changed = [name for name in after if not close(after[name], before[name])]
        if changed:
            raise AssertionError(
                f"moves {listed(changed)} although {why} and weight_decay 0: is there a decay "
                "that cannot be switched off, a sign that is never 0, or another rate than lr?"
            )


def finite(maker: Maker) -> None:
    """Check that tiny and large gradients leave weights and slots finite."""
    for dtype, scale in EXTREMES:
        optimizer, samples = maker(weight_decay=0.0), model(dtype)
        after = advance(optimizer.attach(samples), range(STEPS), scale=scale)
        _finite({**after, **optimizer.state_dict()}, f"for {dtype} gradients of size {scale:g}")


def _finite(arrays: Arrays, when: str) -> None:
    bad = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if bad:
        raise AssertionError(f"NaN or infinity in {listed(bad)} {when}.")


def keeps_dtype(maker: Maker) -> None:
    """Check that weights, slots and what is made on the way have the model's dtype."""
    for dtype in ("float32", "float64"):
        optimizer, samples = maker(), model(dtype)
        advance(optimizer.attach(samples), range(STEPS))
        arrays = {**samples.state_dict(), **optimizer.state_dict()}
        wrong = [
            f"{name} {array.dtype}"
            for name, array in arrays.items()
            if array.dtype.kind == "f" and array.dtype != dtype
        ]
        if wrong:
            raise AssertionError(f"the model is {dtype}, but after {STEPS} updates {wrong[0]}.")
    wide = _computed_in_float64(maker, float)
    if wide:
        raise AssertionError(
            f"float64 leak: float32 weights are updated in float64 ({wide}). A NumPy number or 0-d "
            "array, such as np.sqrt(1 - beta**step), widens what it multiplies: use math, or "
            "float(...)."
        )
    wide = _computed_in_float64(maker, np.float64)
    if wide:
        raise AssertionError(
            f"float64 leak: float32 weights are updated in float64 ({wide}) when lr and "
            "weight_decay are NumPy numbers: use those that update() is given, or "
            "vitkit.validate.number, which returns Python's."
        )


def _computed_in_float64(maker: Maker, number: Any) -> str:
    """Return where a float32 update makes float64 arrays of it, or nothing."""
    optimizer = maker(number(LR), number(DECAY)).attach(model("float32"))
    update = optimizer.update

    def watched(*arrays: Array, **settings: Any) -> None:
        update(*(array.view(Watched) for array in arrays), **settings)

    vars(optimizer)["update"] = watched
    with watching() as places:
        advance(optimizer, range(2), lr=number(LR))
    return places[0] if places else ""


def keeps_gradients(maker: Maker) -> None:
    """Check that gradients are read, never written."""
    optimizer, samples = maker(), model()
    optimizer.attach(samples)
    for step in range(STEPS):
        advance(optimizer, [step])
        changed = [
            name
            for name, parameter in samples.named_parameters()
            if not np.array_equal(parameter.grad, gradient(name, step))
        ]
        if changed:
            raise AssertionError(
                f"changes the gradients of {listed(changed)}: g is read only; write g = g + ... "
                "where g += ... stands."
            )


def obeys_lr(maker: Maker) -> None:
    """Check that the rate given to ``step`` takes the place of the optimizer's own."""
    own = advance(maker(LR).attach(model()), range(STEPS))
    given = advance(maker(4 * LR).attach(model()), range(STEPS), lr=LR)
    different = [name for name in own if not close(given[name], own[name])]
    if different:
        raise AssertionError(
            f"step(lr={LR}) of an optimizer made with lr={4 * LR} differs from step() of one made "
            f"with lr={LR}, in {listed(different)}: update() must use its argument lr, not "
            "self.lr, or schedules do nothing."
        )


def decays(maker: Maker) -> None:
    """Check that decay shrinks the parameters declared for it, and no others."""
    if not maker.decays:
        raise Skip("takes no weight_decay")
    plain = advance(maker(weight_decay=0.0).attach(model()), range(STEPS))
    decayed = advance(maker(weight_decay=DECAY).attach(model()), range(STEPS))
    wrong = [name for name in UNDECAYED if not close(decayed[name], plain[name])]
    if wrong:
        raise AssertionError(
            f"decays {listed(wrong)}, declared with decay=False as biases are: use the "
            "weight_decay that update() is given, which is 0 for them, not self.weight_decay."
        )
    same = [name for name in DECAYED if close(decayed[name], plain[name])]
    if same:
        raise AssertionError(
            f"ignores weight_decay: {listed(same)} move by weight_decay={DECAY} as by 0."
        )
    samples = model()
    before = samples.state_dict()
    after = advance(maker(weight_decay=DECAY).attach(samples), range(STEPS), scale=0.0)
    if _loss(after, DECAYED) >= _loss(before, DECAYED):
        raise AssertionError(
            "weight decay does not shrink the weights where gradients are zero: is its sign right?"
        )


def flat_equals_single(maker: Maker) -> None:
    """Check that who says ``elementwise = True`` treats each entry alone."""
    flat, single = maker(), maker()
    if not flat.elementwise:
        raise Skip("elementwise = False, so it is called for each parameter as it is")
    single.elementwise = False
    flat.attach(model())
    single.attach(model())
    for step in range(STEPS):
        together, alone = advance(flat, [step]), advance(single, [step])
        different = [name for name in alone if not close(together[name], alone[name])]
        counted = list(lost(flat, single, "{} and {}"))
        if different and counted:
            raise AssertionError(
                f"{' and '.join(counted)} depend on how often update() is called: once for each "
                "flat buffer, or once for each parameter. To count updates use its argument step; "
                "what belongs to a parameter is a slot."
            )
        if different:
            raise AssertionError(
                f"declares elementwise=True but looks at more than one element: {listed(different)}"
                f" come out otherwise if update() is called for each parameter instead of once for "
                f"all, first in step {step + 1}. Set elementwise = False."
            )


def descends(maker: Maker) -> None:
    """Check that the distance to a target falls in 50 updates, at one rate at least."""
    target = {name: draw(shape, seed=1000) for name, (shape, _) in PARAMETERS.items()}
    losses, start = {}, math.nan
    for lr in RATES:
        optimizer, samples = maker(lr, 0.0), model()
        optimizer.attach(samples)
        start = _loss(_minus(samples.state_dict(), target))
        with np.errstate(all="ignore"):
            for _ in range(50):
                for name, parameter in samples.named_parameters():
                    parameter.grad[...] = parameter.value - target[name]
                optimizer.step()
        losses[lr] = _loss(_minus(samples.state_dict(), target))
    if not any(loss < start for loss in losses.values()):
        found = ", ".join(f"{loss:.4g} with lr={lr:g}" for lr, loss in losses.items())
        raise AssertionError(
            f"climbs: is the sign of the update right? The loss |w - target|^2 / 2 was {start:.4g}"
            f"; after 50 updates it is {found}."
        )


def close(actual: np.ndarray, expected: np.ndarray) -> bool:
    """Whether two arrays agree to the rounding of their dtype."""
    try:
        assert_close(actual, expected, reduction=LARGEST)
    except AssertionError:
        return False
    return True


def _minus(arrays: Arrays, others: Arrays) -> Arrays:
    return {name: array - others[name] for name, array in arrays.items()}


def _loss(arrays: Arrays, names: tuple[str, ...] = tuple(PARAMETERS)) -> float:
    return sum(float(np.square(arrays[name]).sum()) for name in names) / 2
