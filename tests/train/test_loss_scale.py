"""Loss scaling: the law of the scale, and steps that are skipped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from spoiling import Spoiling, assert_same_bits, flag

from vitkit import ops
from vitkit.backend import Array, ArrayModule, to_numpy
from vitkit.data import ArrayDataset, Batch, Loader
from vitkit.models import ViT
from vitkit.ops import softmax_cross_entropy
from vitkit.optim import EMA, AdamW
from vitkit.testing import strict_device
from vitkit.train import LossScale, Preprocess, StepLog, Trainer, TrainState, train_step
from vitkit.train.callbacks import Average
from vitkit.train.loss_scale import FIRST, GROWS_AFTER, LEAST, MOST

MakeData = Callable[..., ArrayDataset]
MakeModel = Callable[..., ViT]
MODULES = pytest.mark.parametrize("module", [np, strict_device.xp], ids=["numpy", "strict_device"])


class Law:
    """The same in Python: x 2 after 2000 good steps in a row, x 0.5 at a bad one, 1 to 2**24."""

    def __init__(self) -> None:
        self.scale, self.good, self.skipped = 65536.0, 0, 0

    def step(self, finite: bool) -> None:
        if not finite:
            self.scale, self.good = max(self.scale / 2, 1.0), 0
            self.skipped += 1
            return
        self.good += 1
        if self.good == 2000:
            self.scale, self.good = min(self.scale * 2, 2.0**24), 0


class ScaleMachine(RuleBasedStateMachine):
    """Any sequence of steps, some taken up from a state."""

    module: ArrayModule = np

    @initialize()
    def begin(self) -> None:
        self.law, self.scale = Law(), LossScale(self.module)

    @rule(finite=st.booleans())
    def step(self, finite: bool) -> None:
        self.law.step(finite)
        self.scale.update(flag(finite, self.module))

    @rule(count=st.integers(1, 40), finite=st.booleans())
    def several(self, count: int, finite: bool) -> None:
        for _ in range(count):
            self.step(finite)

    @rule(good=st.integers(1980, 1999), exponent=st.integers(0, 24))
    def resume(self, good: int, exponent: int) -> None:
        self.law.good, self.law.scale = good, 2.0**exponent
        state = {"scale": 2.0**exponent, "good_steps": good, "skipped": self.law.skipped}
        self.scale.load_state_dict({name: np.asarray(value) for name, value in state.items()})

    @invariant()
    def follows_the_law(self) -> None:
        if not hasattr(self, "law"):
            return
        state = self.scale.state_dict()
        expected = (self.law.scale, self.law.good, self.law.skipped)
        assert (state["scale"], state["good_steps"], state["skipped"]) == expected
        assert LEAST <= state["scale"] <= MOST
        assert str(state["scale"].dtype) == "float32"


class ScaleMachineOnDevice(ScaleMachine):
    module = strict_device.xp


SHORT = settings(settings.default, max_examples=25, stateful_step_count=15)
TestLaw = ScaleMachine.TestCase
TestLaw.settings = SHORT
TestLawOnDevice = ScaleMachineOnDevice.TestCase
TestLawOnDevice.settings = SHORT


def test_the_scale_doubles_at_the_2000th_good_step_in_a_row() -> None:
    scale, yes = LossScale(np), flag(True, np)
    assert (FIRST, GROWS_AFTER) == (65536.0, 2000)
    for _ in range(1999):
        scale.update(yes)
    assert float(scale.scale) == 65536.0
    scale.update(yes)
    assert (float(scale.scale), int(scale.good_steps)) == (131072.0, 0)
    for _ in range(1999):
        scale.update(yes)
    scale.update(flag(False, np))
    for _ in range(1999):
        scale.update(yes)
    assert float(scale.scale) == 65536.0  # halved, and not yet doubled again


@MODULES
def test_the_scale_stays_between_its_bounds(module: ArrayModule) -> None:
    scale = LossScale(module)
    for start, finite, expected in ((24, True, 2**24), (23, True, 2**24), (0, False, 1)):
        state = {"scale": np.float32(2**start), "good_steps": np.int64(1999)}
        scale.load_state_dict({**state, "skipped": np.int64(0)})
        scale.update(flag(finite, module))
        assert float(scale.state_dict()["scale"]) == expected


def test_the_state_does_not_wait_and_stays_where_it_is() -> None:
    xp = strict_device.xp
    scale = LossScale(xp)
    places = scale.scale, scale.good_steps, scale.skipped
    yes, no = flag(True, xp), flag(False, xp)
    with strict_device.count_syncs() as syncs:
        for finite in (yes, no, yes):
            scale.update(finite)
    assert syncs == []
    again = scale.scale, scale.good_steps, scale.skipped
    assert all(one is other for one, other in zip(again, places, strict=True))
    assert {k: float(v) for k, v in scale.state_dict().items()} == {
        **{"scale": 32768.0, "good_steps": 1.0, "skipped": 1.0}
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": np.float32(0)}, r"scale: .* expected one number from 1\.0 to 16777216\.0"),
        ({"scale": np.float32(np.inf)}, "scale: .* expected one number"),
        ({"scale": np.float32(np.nan)}, "scale: .* expected one number"),
        ({"scale": np.ones(2)}, "scale: .* expected one number"),
        ({"good_steps": np.int64(2000)}, "good_steps: .* from 0 to 1999"),
        ({"skipped": np.int64(-1)}, "skipped: .* from 0"),
        ({"more": np.int64(1)}, "more: not expected"),
        ({"scale": None}, "scale: missing"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(
    change: dict[str, Any], message: str, xp: ArrayModule
) -> None:
    scale = LossScale(xp)
    scale.update(flag(False, xp))
    before = scale.state_dict()
    state = {name: value for name, value in {**before, **change}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        scale.load_state_dict(state)
    assert scale.state_dict() == before


@MODULES
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, 0.0])
def test_one_number_that_is_not_finite_is_found(
    value: float, module: ArrayModule, make_model: MakeModel
) -> None:
    model, scale = make_model(xp=module), LossScale(module)
    assert len(model.groups) == 2
    for name in ("head.bias", "blocks.0.mlp.fc1.weight"):
        model.zero_grad()
        dict(model.named_parameters())[name].grad.reshape(-1)[-1:].fill(value)
        with strict_device.count_syncs() as syncs:
            finite = scale.finite(model.groups)
        assert syncs == []
        assert (finite.shape, str(finite.dtype)) == ((), "bool")
        assert bool(finite) is bool(np.isfinite(value))


def test_scaling_there_and_back_changes_no_bit(make_model: MakeModel, xp: ArrayModule) -> None:
    model, scale = make_model(), LossScale(xp)
    numbers = [np.random.default_rng(0).normal(0, 1e-3, g.grads.shape) for g in model.groups]
    for group, drawn in zip(model.groups, numbers, strict=True):
        group.grads[...] = scale.scale_gradient(xp.asarray(drawn.astype("f4")))
        np.testing.assert_array_equal(to_numpy(group.grads), drawn.astype("f4") * np.float32(65536))
    scale.unscale_(model.groups)
    for group, drawn in zip(model.groups, numbers, strict=True):
        np.testing.assert_array_equal(to_numpy(group.grads), drawn.astype("f4"))


def batches(data: ArrayDataset, size: int = 8) -> list[list[Batch]]:
    return [[batch] for batch in Loader(data, size).batches(0)]


class Run:
    """A model in float16 with all that goes with it, step by step."""

    def __init__(self, model: ViT, data: ArrayDataset, loss: Any) -> None:
        self.model, self.data, self.loss = model, data, loss
        self.optimizer = AdamW(1e-2, weight_decay=0.1).attach(model)
        self.ema = EMA(model, 0.9)
        self.average = Average(self.ema)
        self.scale = LossScale(model.xp)
        self.preprocess = Preprocess.of(data)

    def step(self, step: int) -> StepLog:
        log = train_step(
            self.model,
            self.optimizer,
            batches(self.data)[step % 3],
            self.loss,
            self.preprocess,
            lr=1e-2,
            seed=0,
            step=step,
            max_grad_norm=1.0,
            loss_scale=self.scale,
        )
        self.average.on_step_end(TrainState(), log)
        return log

    def state(self) -> dict[str, np.ndarray]:
        parts = {"model": self.model, "optim": self.optimizer, "ema": self.ema}
        return {
            f"{stem} {name}": value
            for stem, part in parts.items()
            for name, value in part.state_dict().items()
        }


@MODULES
@pytest.mark.parametrize("gradient", [np.nan, np.inf, 1e6])
def test_a_skipped_step_touches_nothing_and_waits_for_nothing(
    gradient: float, module: ArrayModule, half: MakeModel, make_data: MakeData
) -> None:
    """1e6 times the gradient, and 65536 times that, are finite in float32 and not in float16."""
    run = Run(half(xp=module, drop_path=0.2), make_data(), Spoiling(2, gradient=gradient))
    for step in range(2):
        assert not bool(run.step(step).skipped)
    weights = run.model.state_dict()
    weights["pos_embed"][0, ::2] = -0.0
    run.model.load_state_dict(weights)
    before = run.state()
    with strict_device.count_syncs() as syncs:
        log = run.step(2)
    assert syncs == []
    assert bool(log.skipped)
    assert_same_bits(run.state(), before)
    assert before["optim step"] == before["ema updates"] == 2
    assert {k: float(v) for k, v in run.scale.state_dict().items()} == {
        **{"scale": 32768.0, "good_steps": 0.0, "skipped": 1.0}
    }
    assert not bool(run.step(3).skipped)
    assert run.state()["optim step"] == 3


@MODULES
def test_a_step_after_it_is_as_if_it_had_never_been(
    module: ArrayModule, half: MakeModel, make_data: MakeData
) -> None:
    ends = []
    for skips in ((0, 2), ()):
        run = Run(half(xp=module, drop_path=0.2), make_data(), Spoiling(*skips))
        for step in range(5):
            if step in (0, 2) and not skips:
                run.scale.update(flag(False, module))  # the scale alone remembers
                run.loss.seen += 1
            else:
                assert bool(run.step(step).skipped) is (step in skips)
        ends.append(run.state())
    assert ends[0]["optim step"] == 3
    assert_same_bits(*ends)


def test_a_step_without_a_scale_is_what_it_was(
    make_model: MakeModel, make_data: MakeData, xp: ArrayModule
) -> None:
    data = make_data()
    logs = []
    for loss_scale in (None, LossScale(xp)):
        model = make_model()
        model.head.weight.value[...] = xp.asarray(
            np.random.default_rng(0).normal(size=model.head.weight.shape), dtype="float32"
        )
        optimizer = AdamW(1e-2).attach(model)
        log = train_step(
            model,
            optimizer,
            batches(data)[0],
            softmax_cross_entropy,
            Preprocess.of(data),
            lr=1e-2,
            seed=0,
            step=0,
            loss_scale=loss_scale,
        )
        logs.append((log, model.state_dict()))
    (plain, weights), (scaled, others) = logs
    assert (plain.skipped, plain.counted) == (None, None)
    assert (bool(scaled.skipped), int(scaled.counted)) == (False, 8)
    assert float(plain.loss) == float(scaled.loss)
    assert str(scaled.loss.dtype) == "float32"
    assert_same_bits(others, weights)  # in float32 a power of two changes no bit


def test_scaling_saves_what_float16_would_lose(half: MakeModel, make_data: MakeData) -> None:
    """A gradient of 1e-8 is below the smallest float16, 6e-8, and 65536 times it is not."""

    def loss(logits: Array, labels: Array, *, xp: ArrayModule) -> tuple[Array, Array]:
        value, dlogits = softmax_cross_entropy(logits, labels, xp=xp)
        return value, dlogits * 1e-6

    found = []
    for precision, scaled in (("float32", False), ("float16", False), ("float16", True)):
        model = half()
        with ops.reference_only():
            model.place(model.xp, seed=1, precision=precision)
            model.head.weight.value[...] = model.xp.asarray(
                np.random.default_rng(0).normal(0, 0.1, model.head.weight.shape).astype("f4")
            )
        run = Run(model, make_data(), loss)
        if not scaled:
            run.scale.scale[...] = 1.0
        run.step(0)
        gradients = dict(model.named_parameters())
        found.append(to_numpy(gradients["blocks.0.mlp.fc1.weight"].grad).copy())
    truth, lost, kept = found
    size = np.linalg.norm(truth)
    assert size > 0
    assert np.linalg.norm(lost - truth) > 0.5 * size
    assert np.linalg.norm(kept - truth) < 0.01 * size


def test_a_trainer_scales_the_loss_in_float16_and_only_there(
    half: MakeModel, make_model: MakeModel, xp: ArrayModule
) -> None:
    assert Trainer(make_model()).loss_scale is None
    assert isinstance(Trainer(half()).loss_scale, LossScale)
    given = LossScale(xp)
    assert Trainer(half(), loss_scale=given).loss_scale is given
