"""A skipped update touches nothing, and nobody can tell later that it was asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vitkit.backend import Array, ArrayModule
from vitkit.nn.module import Module
from vitkit.optim import EMA, LAMB, SGD, Adam, AdamW, Lion, Optimizer
from vitkit.testing import assert_close, strict_device

MAKERS: dict[str, Any] = {
    "SGD": lambda: SGD(0.1),
    "SGD with momentum": lambda: SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.3),
    "Adam": lambda: Adam(0.03, weight_decay=0.3),
    "AdamW": lambda: AdamW(0.03, weight_decay=0.3),
    "LAMB": lambda: LAMB(0.03, weight_decay=0.3),
    "Lion": lambda: Lion(0.03, weight_decay=0.3),
}
BAD = [np.nan, np.inf, -np.inf]
State = dict[str, np.ndarray]


@pytest.fixture(params=["numpy", "strict_device"])
def module(request: pytest.FixtureRequest) -> ArrayModule:
    return np if request.param == "numpy" else strict_device.xp


@pytest.fixture(params=MAKERS)
def optimizer(request: pytest.FixtureRequest) -> Optimizer:
    made: Optimizer = MAKERS[request.param]()
    return made


def flag(value: bool, xp: ArrayModule) -> Array:
    return xp.full((), value, "bool")


def spoil(model: Module) -> None:
    """Give every parameter gradients that are not finite, and some that are."""
    for index, (_, parameter) in enumerate(model.named_parameters()):
        parameter.grad.reshape(-1)[index % 2 :].fill(BAD[index % 3])


def with_negative_zeros(arrays: State) -> State:
    """Return the arrays with -0.0 at every other place; counters are left alone."""
    changed = {name: array.copy() for name, array in arrays.items()}
    for array in changed.values():
        if array.ndim:
            array.reshape(-1)[::2] = -0.0
    return changed


def everything(model: Module, *kept: Any) -> State:
    """Return weights and states."""
    found = {f"weight {name}": value for name, value in model.state_dict().items()}
    for each in kept:
        found |= {f"{type(each).__name__} {k}": v for k, v in each.state_dict().items()}
    return found


def assert_same_bits(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        assert found[name].tobytes() == array.tobytes(), name


def test_touches_neither_weights_nor_slots_nor_counts(
    optimizer: Optimizer, module: ArrayModule, make_model: Any, set_gradients: Any
) -> None:
    model = make_model("float32", module)
    ema, good, bad = EMA(model, 0.9), flag(True, module), flag(False, module)
    optimizer.attach(model)
    for step in range(2):
        set_gradients(model, step)
        optimizer.step(where=good)
        ema.update(where=good)
    model.load_state_dict(with_negative_zeros(model.state_dict()))
    optimizer.load_state_dict(with_negative_zeros(optimizer.state_dict()))
    ema.load_state_dict(with_negative_zeros(ema.state_dict()))
    before = everything(model, optimizer, ema)
    spoil(model)
    with strict_device.count_syncs() as syncs, np.errstate(all="ignore"):
        for _ in range(3):
            optimizer.step(where=bad)
            ema.update(where=bad)
    assert syncs == []
    assert_same_bits(everything(model, optimizer, ema), before)
    assert before[f"{type(optimizer).__name__} step"] == before["EMA updates"] == 2
    negative = np.signbit(before["weight head.weight"]) & (before["weight head.weight"] == 0)
    assert negative.sum() == 6


def test_the_next_update_is_as_if_it_had_never_been(
    optimizer: Optimizer, module: ArrayModule, make_model: Any, set_gradients: Any
) -> None:
    ends = []
    for skips in ((0, 2, 3), ()):
        model = make_model("float32", module)
        optimizer.attach(model)
        ema = EMA(model, 0.9)
        for step in range(5):
            good = flag(True, module)
            if step in skips:
                spoil(model)
                with np.errstate(all="ignore"):
                    optimizer.step(where=flag(False, module))
                    ema.update(where=flag(False, module))
            set_gradients(model, step)
            with strict_device.count_syncs() as syncs:
                optimizer.step(where=good)
                ema.update(where=good)
            assert syncs == []
        ends.append(everything(model, optimizer, ema))
    assert_same_bits(*ends)


def test_updates_that_may_be_skipped_are_those_that_may_not(
    optimizer: Optimizer, module: ArrayModule, make_model: Any, set_gradients: Any
) -> None:
    ends = []
    for where in (flag(True, module), None):
        model = make_model("float32", module)
        optimizer.attach(model)
        ema = EMA(model, 0.9)
        for step in range(5):
            set_gradients(model, step)
            optimizer.step(where=where)
            ema.update(where=where)
        ends.append(everything(model, optimizer, ema))
    for name, array in ends[1].items():
        assert_close(ends[0][name], array)


def test_state_of_a_run_with_skips_continues_bit_for_bit(
    optimizer: Optimizer, module: ArrayModule, make_model: Any, set_gradients: Any
) -> None:
    model, resumed = make_model("float32", module), make_model("float32", module)
    good, bad = flag(True, module), flag(False, module)

    def go_on(each: Module, ema: EMA, steps: range) -> State:
        for step in steps:
            set_gradients(each, step)
            optimizer.step(where=bad if step % 3 == 1 else good)
            ema.update(where=bad if step % 3 == 1 else good)
        return everything(each, optimizer, ema)

    optimizer.attach(model)
    ema = EMA(model, 0.9)
    go_on(model, ema, range(4))
    weights, state, average = model.state_dict(), optimizer.state_dict(), ema.state_dict()
    assert (state["step"], average["updates"]) == (3, 3)
    straight = go_on(model, ema, range(4, 8))
    optimizer.attach(resumed)
    resumed.load_state_dict(weights)
    other = EMA(resumed, 0.9)
    optimizer.load_state_dict(state)
    other.load_state_dict(average)
    assert_same_bits(go_on(resumed, other, range(4, 8)), straight)
    assert (straight[f"{type(optimizer).__name__} step"], straight["EMA updates"]) == (5, 5)


def test_a_host_does_not_compute_what_it_skips(make_model: Any, set_gradients: Any) -> None:
    class Counting(SGD):
        calls = 0

        def update(self, *args: Any, **kwargs: Any) -> None:
            self.calls += 1
            super().update(*args, **kwargs)

    model = make_model("float32", np)
    optimizer = Counting(0.1).attach(model)
    set_gradients(model, 0)
    optimizer.step(where=np.zeros((), bool))
    assert (optimizer.calls, optimizer.steps) == (0, 0)
    optimizer.step(where=np.ones((), bool))
    assert (optimizer.calls, optimizer.steps) == (2, 1)


def test_an_optimizer_attached_again_forgets_what_it_skipped(
    make_model: Any, set_gradients: Any
) -> None:
    xp = strict_device.xp
    model = make_model("float32", xp)
    optimizer = Adam(0.1).attach(model)
    set_gradients(model, 0)
    optimizer.step(where=flag(False, xp))
    optimizer.attach(model).step()
    assert optimizer.state_dict()["step"] == 1
