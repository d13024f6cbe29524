"""Optimizers with one fault each, and the words by which the kit must name it.

Each is the right version, :class:`Sound`, but for the method that it overrides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from vitkit.backend import Array, ArrayModule
from vitkit.nn.module import Module
from vitkit.optim import Adam, Optimizer
from vitkit.testing.optimizers import check_optimizer

BETA = 0.9


class Sound(Optimizer):
    """A corrected running mean of the gradient, with decoupled decay."""

    slots: tuple[str, ...] = ("m",)

    def __init__(self, lr: float = 1e-2, *, weight_decay: float = 0.0) -> None:
        super().__init__(lr, weight_decay)

    def update(self, w: Any, g: Any, *slots: Any, **settings: Any) -> None:
        self.remember(g, slots[0])
        self.move(w, slots[0], **settings)

    def remember(self, g: Array, m: Array) -> None:
        m *= BETA
        m += (1 - BETA) * g

    def move(
        self, w: Array, m: Array, *, lr: float, step: int, weight_decay: float, xp: ArrayModule
    ) -> None:
        w -= lr * (m / (1 - BETA**step) + weight_decay * w)


def reference(
    w: np.ndarray,
    g: np.ndarray,
    state: dict[str, Any],
    *,
    lr: float,
    step: int,
    weight_decay: float,
) -> np.ndarray:
    """Return the weights after a step of the right version, by its formula."""
    m = state["m"] = BETA * state.get("m", 0.0) + (1 - BETA) * g
    return w - lr * (m / (1 - BETA**step) + weight_decay * w)


class FrozenStep(Sound):
    def move(self, w: Array, m: Array, **settings: Any) -> None:
        super().move(w, m, **settings | {"step": 1})


class StepAhead(Sound):
    def move(self, w: Array, m: Array, **settings: Any) -> None:
        super().move(w, m, **settings | {"step": settings["step"] + 1})


class StepBehind(Sound):
    def move(self, w: Array, m: Array, **settings: Any) -> None:
        super().move(w, m, **settings | {"step": settings["step"] - 1})


class DividesByZero(Sound):
    def move(self, w: Array, m: Array, *, lr: float, step: int, **settings: Any) -> None:
        super().move(w, m, lr=lr / (1 - BETA ** (step - 1)), step=10**9, **settings)


class NoCorrection(Sound):
    def move(
        self, w: Array, m: Array, *, lr: float, step: int, weight_decay: float, xp: ArrayModule
    ) -> None:
        w -= lr * (m + weight_decay * w)


class NeverCounts(Sound):
    def step(self, lr: float | None = None) -> None:
        super().step(lr)
        self.steps = 0


class NumpyRoot(Sound):
    def move(self, w: Array, m: Array, **settings: Any) -> None:
        super().move(w, m * np.sqrt(1.0), **settings)


class KeepsNumpyNumbers(Sound):
    def __init__(self, lr: float = 1e-2, *, weight_decay: float = 0.0) -> None:
        super().__init__(lr, weight_decay=weight_decay)
        self.strength = weight_decay

    def move(self, w: Array, m: Array, *, weight_decay: float, **settings: Any) -> None:
        super().move(w, m, weight_decay=weight_decay and self.strength, **settings)


class WidensSlots(Sound):
    def state_dict(self) -> dict[str, np.ndarray]:
        return {
            name: array.astype("float64") if array.ndim else array
            for name, array in super().state_dict().items()
        }


class CountsOnTheClass(Sound):
    updates = 0

    def step(self, lr: float | None = None) -> None:
        type(self).updates += 1
        super().step(lr)

    def move(self, w: Array, m: Array, *, step: int, **settings: Any) -> None:
        super().move(w, m, step=self.updates, **settings)


class SharedDefault(Sound):
    def __init__(
        self,
        lr: float = 1e-2,
        *,
        weight_decay: float = 0.0,
        sizes: list[float] = [1.0],  # noqa: B006 (the fault)
    ) -> None:
        super().__init__(lr, weight_decay=weight_decay)
        self.sizes = sizes

    def move(self, w: Array, m: Array, **settings: Any) -> None:
        self.sizes[0] *= 0.999
        super().move(w, self.sizes[0] * m, **settings)


class MomentsOnTheClass(Sound):
    moments: dict[int, Array] = {}  # noqa: RUF012 (the fault)

    def attach(self, model: Module, *, layer_decay: float = 1.0) -> MomentsOnTheClass:
        self.moments.clear()
        return super().attach(model, layer_decay=layer_decay)

    def update(self, w: Any, g: Any, *slots: Any, **settings: Any) -> None:
        super().update(w, g, self.moments.setdefault(w.size, 0 * w), **settings)
        slots[0][...] = self.moments[w.size]


class PrivateCounter(Sound):
    def __init__(self, lr: float = 1e-2, *, weight_decay: float = 0.0) -> None:
        super().__init__(lr, weight_decay=weight_decay)
        self.t = 0

    def attach(self, model: Module, *, layer_decay: float = 1.0) -> PrivateCounter:
        self.t = 0
        return super().attach(model, layer_decay=layer_decay)

    def step(self, lr: float | None = None) -> None:
        self.t += 1
        super().step(lr)

    def move(self, w: Array, m: Array, *, step: int, **settings: Any) -> None:
        super().move(w, m, step=self.t, **settings)


class CountsCalls(Sound):
    def __init__(self, lr: float = 1e-2, *, weight_decay: float = 0.0) -> None:
        super().__init__(lr, weight_decay=weight_decay)
        self.t = 0

    def move(self, w: Array, m: Array, *, step: int, **settings: Any) -> None:
        self.t += 1
        super().move(w, m, step=self.t, **settings)


class SavesTheCounterButKeepsIt(PrivateCounter):
    def attach(self, model: Module, *, layer_decay: float = 1.0) -> PrivateCounter:
        Sound.attach(self, model, layer_decay=layer_decay)
        return self

    def state_dict(self) -> dict[str, np.ndarray]:
        return {**super().state_dict(), "step": np.asarray(self.t)}

    def load_state_dict(self, arrays: Any) -> None:
        super().load_state_dict(arrays)
        self.t = self.steps


class SavesNoSlots(Sound):
    def state_dict(self) -> dict[str, np.ndarray]:
        return {"step": super().state_dict()["step"]}

    def load_state_dict(self, arrays: Any) -> None:
        self.steps = int(arrays["step"])


class HandsOutItsArrays(Sound):
    def state_dict(self) -> dict[str, np.ndarray]:
        state = self._attached()
        (buffers,) = state.buffers.values()
        return super().state_dict() | {
            f"{name}.m": buffer[part].reshape(state.shapes[name])
            for group, buffer in zip(state.groups, buffers, strict=True)
            for name, part in group.slices.items()
        }


class SavesANumber(Sound):
    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"step": self.steps}


class LoadsHalf(Sound):
    def load_state_dict(self, arrays: Any) -> None:
        self.steps = int(arrays.get("step", 0))
        super().load_state_dict(arrays)


class GlobalNorm(Sound):
    def update(self, w: Any, g: Any, *slots: Any, xp: Any, **settings: Any) -> None:
        super().update(w, g / (xp.sqrt(xp.square(g).sum()) + 1e-8), *slots, xp=xp, **settings)


class DecaysBiases(Sound):
    def move(self, w: Array, m: Array, *, weight_decay: float, **settings: Any) -> None:
        super().move(w, m, weight_decay=self.weight_decay, **settings)


class IgnoresDecay(Sound):
    def move(self, w: Array, m: Array, *, weight_decay: float, **settings: Any) -> None:
        super().move(w, m, weight_decay=0.0, **settings)


class GrowsByDecay(Sound):
    def move(self, w: Array, m: Array, *, weight_decay: float, **settings: Any) -> None:
        super().move(w, m, weight_decay=-weight_decay, **settings)


class AlwaysDecays(Sound):
    def move(self, w: Array, m: Array, *, weight_decay: float, **settings: Any) -> None:
        super().move(w, m, weight_decay=weight_decay + 1e-3, **settings)


class KeepsDecayForItself(Sound):
    def __init__(self, lr: float = 1e-2, *, weight_decay: float = 0.0) -> None:
        super().__init__(lr)


class WritesGradients(Sound):
    def update(self, w: Any, g: Any, *slots: Any, **settings: Any) -> None:
        super().update(w, g, *slots, **settings)
        g *= 0.5


class OwnRate(Sound):
    def move(self, w: Array, m: Array, *, lr: float, **settings: Any) -> None:
        super().move(w, m, lr=self.lr, **settings)


class Waits(Sound):
    def update(self, w: Any, g: Any, *slots: Any, xp: Any, **settings: Any) -> None:
        if float(xp.abs(g).max()) < 1e30:
            super().update(w, g, *slots, xp=xp, **settings)


class CallsNumpy(Sound):
    def move(self, w: Array, m: Array, **settings: Any) -> None:
        super().move(w, np.multiply(m, 1.0), **settings)


class ForgetsMoments(Sound):
    def remember(self, g: Array, m: Array) -> None:
        m.fill(0)
        super().remember(g, m)


class RebindsSlots(Sound):
    def update(self, w: Any, g: Any, *slots: Any, **settings: Any) -> None:
        (m,) = slots
        m = BETA * m + (1 - BETA) * g
        self.move(w, m, **settings)


class RebindsWeights(Sound):
    def move(
        self, w: Array, m: Array, *, lr: float, step: int, weight_decay: float, xp: ArrayModule
    ) -> None:
        w = w - lr * (m / (1 - BETA**step) + weight_decay * w)


class DropsTheTail(Sound):
    def move(self, w: Array, m: Array, **settings: Any) -> None:
        super().move(w[..., :-1], m[..., :-1], **settings)


class Climbs(Sound):
    def move(
        self, w: Array, m: Array, *, lr: float, step: int, weight_decay: float, xp: ArrayModule
    ) -> None:
        w += lr * (m / (1 - BETA**step) - weight_decay * w)


class DividesByItsNorm(Sound):
    elementwise = False

    def update(self, w: Any, g: Any, *slots: Any, xp: Any, **settings: Any) -> None:
        super().update(w, g / xp.sqrt(xp.square(g).sum()), *slots, xp=xp, **settings)


class Overflows(Sound):
    def remember(self, g: Array, m: Array) -> None:
        super().remember(g + 0 * g**4, m)


class Draws(Sound):
    def move(self, w: Array, m: Array, *, lr: float, **settings: Any) -> None:
        noise = float(np.random.default_rng().uniform(0.9, 1.1))
        super().move(w, m, lr=noise * lr, **settings)


class TakesAnyRate(Sound):
    def __init__(self, lr: float = 1e-2, *, weight_decay: float = 0.0) -> None:
        super().__init__(abs(lr), weight_decay=weight_decay)


class SlotsAreAWord(Sound):
    slots: Any = "mean"


class OneSlotTooMany(Sound):
    slots = ("m", "v")

    def update(self, w: Any, g: Any, m: Any, **settings: Any) -> None:  # type: ignore[override]
        super().update(w, g, m, **settings)


class AttachesNothing(Sound):
    def attach(self, model: Module, *, layer_decay: float = 1.0) -> Any:
        super().attach(model, layer_decay=layer_decay)


class OtherEpsilon(Adam):
    def __init__(self, lr: float = 1e-3, *, weight_decay: float = 0.0) -> None:
        super().__init__(lr, eps=1e-3, weight_decay=weight_decay)


ONLY_ONE = Sound()
FIRST, SECOND, THIRD = "is an Optimizer", "declares slots and update", "makes a step"
RESTS, FINITE, FLAT, DECAY = (
    "rests without rate or gradient",
    "finite for tiny and large gradients",
    "flat buffer equals single parameters",
    "weight decay",
)
SETTINGS = {"keeps lr and weight decay", "refuses hyper-parameters out of range"}
STORED, DTYPE, MISFIT = (
    "state can be stored",
    "keeps the dtype",
    "refuses a state that does not fit",
)
NUMBERS = {"three steps of the reference, float64", "three steps of the reference, float32"}
TORCH = {"three steps of PyTorch, float64", "three steps of PyTorch, float32"}


class Planted(NamedTuple):
    """A fault: who has it, what the kit says of it, and the checks that must fail, no others."""

    make: Callable[..., Any]
    message: str
    fails: set[str]
    torch: Any = None

    def check(self) -> None:
        given = {"torch": self.torch} if self.torch else {"reference": reference}
        check_optimizer(self.make, **given)


PLANTED = {
    "frozen step count": Planted(FrozenStep, "the step count is frozen at 1", NUMBERS),
    "step one too high": Planted(StepAhead, "off by one: it counts 2, 3, 4", NUMBERS),
    "step one too low": Planted(
        StepBehind, "the first update leaves .* not finite. Is the step off by one", {THIRD}
    ),
    "step one too low, and an exception": Planted(
        DividesByZero, "the first update raised ZeroDivisionError.* off by one", {THIRD}
    ),
    "no correction of young moments": Planted(
        NoCorrection, "correction for young moments is missing", NUMBERS
    ),
    "steps never counted": Planted(
        NeverCounts, "after 1 updates steps is 0 .*leave counting", {"counts steps", *NUMBERS}
    ),
    "float64 leak by a NumPy number": Planted(
        NumpyRoot,
        r"float64 leak: .* \(faults_optimizers.py, line \d+\)\. A NumPy number",
        {DTYPE},
    ),
    "float64 leak by a setting": Planted(
        KeepsNumpyNumbers,
        r"float64 leak: .* when lr and weight_decay are NumPy numbers",
        {DTYPE},
    ),
    "float64 slots": Planted(
        WidensSlots, "the model is float32, but after 3 updates .*m float64", {DTYPE}
    ),
    "counter on the class": Planted(
        CountsOnTheClass,
        "share state on the class, 'CountsOnTheClass.updates'",
        {"deterministic"},
    ),
    "moments on the class": Planted(
        MomentsOnTheClass,
        "beside another .* share state on the class, 'MomentsOnTheClass.moments'",
        {"shares no state"},
    ),
    "mutable default argument": Planted(
        SharedDefault, "share state, one and the same 'self.sizes'", {"deterministic"}
    ),
    "private counter": Planted(
        PrivateCounter,
        r"keeps something in 'self.t' \(3 when saved, 0 when loaded\) that state_dict does not",
        {"state round trip"},
    ),
    "counter of calls": Planted(
        CountsCalls,
        r"'self.t' \(2 and 7\) depend on how often update\(\) is called",
        {FLAT, "state round trip", "attach starts afresh", *NUMBERS},
    ),
    "counter that attach keeps": Planted(
        SavesTheCounterButKeepsIt,
        r"does not start afresh: 'self.t' \(3, and 0 in a new optimizer\) is kept",
        {"attach starts afresh"},
    ),
    "slots not saved": Planted(
        SavesNoSlots,
        r"state_dict\(\) lacks 'bias.m', .* start from super",
        {STORED},
    ),
    "state that lives on": Planted(
        HandsOutItsArrays, "as they live on in the optimizer.* return copies", {"state round trip"}
    ),
    "state that is no array": Planted(
        SavesANumber,
        r"state_dict\(\)\['step'\] is int, expected a NumPy array",
        {STORED},
    ),
    "state loaded by halves": Planted(
        LoadsHalf,
        "refused a state .*, but changed 'step' before",
        {MISFIT},
    ),
    "elementwise without being so": Planted(
        GlobalNorm,
        "declares elementwise=True but looks at more than one element",
        {FLAT, *NUMBERS},
    ),
    "decays biases": Planted(
        DecaysBiases, "decays 'bias', 'scale', 'position', declared", {DECAY, *NUMBERS}
    ),
    "decays biases, by the reference": Planted(
        DecaysBiases,
        "decays parameters declared with decay=False, which gives",
        {DECAY, *NUMBERS},
    ),
    "ignores weight decay": Planted(
        IgnoresDecay, "ignores weight_decay, which gives", {DECAY, *NUMBERS}
    ),
    "decay of the wrong sign": Planted(
        GrowsByDecay, "decay does not shrink the weights", {DECAY, *NUMBERS}
    ),
    "decay that cannot be switched off": Planted(
        AlwaysDecays,
        "is there a decay that cannot be switched off",
        {RESTS, *NUMBERS},
    ),
    "weight decay not handed on": Planted(
        KeepsDecayForItself,
        r"make\(weight_decay=0.1\) gave .* weight_decay=0.0: hand it on",
        {*SETTINGS, DECAY},
    ),
    "writes to gradients": Planted(
        WritesGradients, "changes the gradients of 'bias'.* g is read only", {"keeps gradients"}
    ),
    "a rate of its own": Planted(
        OwnRate, r"step\(lr=0.05\) of an optimizer .* not self.lr", {"lr of a step"}
    ),
    "hidden host sync": Planted(
        Waits, r"waits for the device 4 times in 2 updates \(float, float", {"no host sync"}
    ),
    "NumPy on device arrays": Planted(
        CallsNumpy,
        "works on NumPy, but on strict_device raised TypeError",
        {"strict_device equals NumPy"},
    ),
    "forgets its moments": Planted(
        ForgetsMoments, "forgets its moments between steps, which", NUMBERS
    ),
    "slots that stay zero": Planted(
        RebindsSlots,
        "slot 'm' is still zero after 20 updates: change it in place",
        {"uses every slot", *NUMBERS},
    ),
    "weights that stay": Planted(
        RebindsWeights, r"no weight moved in 20 updates: update\(\) must change w in place", {THIRD}
    ),
    "a dropped tail": Planted(
        DropsTheTail,
        r"did not move .* 1 of 5 elements of 'vector', the last at \(4,\)\. Does .* drop the tail",
        {"moves every weight", FLAT, *NUMBERS},
    ),
    "climbs": Planted(Climbs, "climbs: is the sign of the update right", {"descends", *NUMBERS}),
    "climbs, by the reference": Planted(
        Climbs, "wrong sign: the weights climb", {"descends", *NUMBERS}
    ),
    "NaN for a gradient of zero": Planted(
        DividesByItsNorm,
        "NaN .* where every gradient is 0: add an epsilon",
        {RESTS, FINITE, *NUMBERS},
    ),
    "overflow": Planted(
        Overflows,
        r"NaN .* for float32 gradients of size 1e\+10",
        {FINITE},
    ),
    "random numbers": Planted(Draws, "Does it draw random numbers", {"deterministic"}),
    "negative rate accepted": Planted(
        TakesAnyRate,
        r"make\(lr=-1.0\) was accepted; expected a ValueError",
        {"refuses hyper-parameters out of range"},
    ),
    "slots that are a word": Planted(
        SlotsAreAWord, r"slots is 'mean', .* write slots = \('mean',\)", {SECOND}
    ),
    "an update that takes too few": Planted(
        OneSlotTooMany, r"is called as update\(w, g, m, v, lr=", {SECOND}
    ),
    "attach that returns nothing": Planted(
        AttachesNothing, r"attach\(model\) returned None", {THIRD}
    ),
    "no optimizer": Planted(lambda lr: lr, "returned float, expected an Optimizer", {FIRST}),
    "no learning rate": Planted(lambda rate=0.1: Sound(rate), "make takes no lr", {FIRST}),
    "one optimizer for all": Planted(lambda lr: ONLY_ONE, "returned one optimizer twice", {FIRST}),
    "another epsilon than PyTorch": Planted(
        OtherEpsilon,
        "differs from PyTorch's Adam in update 1, 'bias'",
        TORCH,
        torch=lambda torch, params, lr: torch.optim.Adam(params, lr=lr),
    ),
    "a twin that takes nothing": Planted(
        Adam,
        "optimizer takes none of the parameters. 'bias' .4,.: TypeError",
        TORCH,
        torch=lambda torch, params, lr: torch.optim.Adam(params, rate=lr),
    ),
}
FAULTS = {name: (planted.check, planted.message) for name, planted in PLANTED.items()}
