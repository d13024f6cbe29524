"""How a step is judged, and what a run does about one that is not finite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vitkit.checkpoint.files as files
from vitkit import ops
from vitkit.backend import backend_of
from vitkit.checkpoint.contents import not_finite
from vitkit.data import ArrayDataset, Loader
from vitkit.errors import CheckpointError, ConfigError
from vitkit.models import ViT
from vitkit.ops import softmax_cross_entropy
from vitkit.optim import EMA, SGD, AdamW, clip_global_norm
from vitkit.train import Preprocess, Trainer, TrainState, train_step
from vitkit.train.bad_steps import BadSteps
from vitkit.train.callbacks import Average, Callback, Checkpointing, Recorder
from vitkit.train.nonfinite import NotFinite, judge
from vitkit.train.restore import find_checkpoint

MakeData = Callable[..., ArrayDataset]
MakeModel = Callable[..., ViT]


@pytest.fixture(autouse=True)
def on_host(xp: Any) -> None:
    if not backend_of(xp).on_host:
        pytest.skip("a device is not asked; rows F17 and test_skipped_steps have what it does")


@pytest.fixture(params=["reference", "kernels"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run everything by references, and by kernels where there are some."""
    with ops.reference_only() if request.param == "reference" else nullcontext():
        yield request.param


@pytest.mark.parametrize("clips", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["cls_token", "blocks.1.mlp.fc2.bias", "head.weight"])
def test_a_gradient_that_is_not_finite_is_named(
    name: str, value: float, clips: bool, make_model: MakeModel, way: str
) -> None:
    model = make_model()
    parameter = dict(model.named_parameters())[name]
    for group in model.groups:
        group.grads.fill(0.5)
    parameter.grad.reshape(-1)[1] = value
    with np.errstate(over="ignore", invalid="ignore"):
        problem, norm = judge(np.float32(1.0), model.groups, clips=clips, xp=np)
    assert problem == f"A gradient is not finite (that of {name} has {np.float32(value)})"
    assert norm is None


def test_a_loss_is_judged_first(make_model: MakeModel) -> None:
    model = make_model()
    for loss in (np.float32(np.inf), float("nan"), np.asarray(-np.inf)):
        problem, _ = judge(loss, model.groups, clips=True, xp=np)
        assert problem.startswith("The training loss is not finite (")


@pytest.mark.parametrize("large", [1e-3, 1e18, 1e25, 3e38])
def test_squares_that_overflow_are_no_gradients_that_do(
    large: float, make_model: MakeModel, way: str
) -> None:
    model = make_model()
    for group in model.groups:
        group.grads.fill(0)
    gradient = model.head.weight.grad
    gradient[0, :4] = np.float32(large) * np.float32([0.6, -0.8, 0, 0])
    with np.errstate(over="ignore"):
        problem, norm = judge(1.0, model.groups, clips=True, xp=np)
        assert problem == ""
        assert norm is not None
        assert float(norm) == pytest.approx(large, rel=1e-5)
        clip_global_norm(model.groups, 1e-4, xp=np, norm=norm)
    np.testing.assert_allclose(gradient[0, :2], [0.6e-4, -0.8e-4], rtol=2e-3)


def test_judging_changes_no_bit_of_a_sound_step(make_model: MakeModel, make_data: MakeData) -> None:
    data, ends = make_data(), []
    for nonfinite in (None, "raise", "skip", "stop"):
        model = make_model()
        optimizer = AdamW(1e-2).attach(model)
        for step, batch in enumerate(Loader(data, 8).batches(0)):
            log = train_step(
                model,
                optimizer,
                [batch],
                softmax_cross_entropy,
                Preprocess.of(data),
                lr=1e-2,
                seed=0,
                step=step,
                max_grad_norm=1.0,
                nonfinite=nonfinite,
            )
            assert (log.skipped is not None) is (nonfinite == "skip")
        ends.append(b"".join(value.tobytes() for value in model.state_dict().values()))
    assert len(set(ends)) == 1


def test_a_policy_that_is_none_is_refused(make_model: MakeModel) -> None:
    with pytest.raises(ConfigError, match="got 'rise', expected raise, skip or stop; did you mean"):
        Trainer(make_model(), nonfinite="rise")


def test_a_step_alone_raises_before_it_has_touched_anything(
    make_model: MakeModel, make_data: MakeData
) -> None:
    data, model = make_data(), make_model()
    optimizer = SGD(0.1, momentum=0.9).attach(model)

    def loss(logits: Any, labels: Any, *, xp: Any) -> Any:
        value, dlogits = softmax_cross_entropy(logits, labels, xp=xp)
        return value, dlogits * np.float32(np.inf)

    before = {**model.state_dict(), **optimizer.state_dict()}
    begun: list[int] = []
    with pytest.raises(NotFinite, match="A gradient is not finite"):
        train_step(
            model,
            optimizer,
            [next(Loader(data, 8).batches(0))],
            loss,
            Preprocess.of(data),
            lr=0.1,
            seed=0,
            step=0,
            before_update=lambda: begun.append(1),
            nonfinite="raise",
        )
    assert begun == []
    for name, value in {**model.state_dict(), **optimizer.state_dict()}.items():
        assert value.tobytes() == before[name].tobytes()


def test_callbacks_are_told_of_a_run_that_can_be_kept(
    make_model: MakeModel, make_data: MakeData
) -> None:
    """A FloatingPointError would tell them that it cannot."""

    class Hears(Callback):
        name = "hears"
        heard: BaseException | None = None

        def on_error(self, state: TrainState, error: BaseException) -> None:
            self.heard = error
            error.add_note("a note")

    def loss(logits: Any, labels: Any, *, xp: Any) -> Any:
        return float("nan"), logits * 0

    hears = Hears()
    with pytest.raises(FloatingPointError) as error:
        Trainer(make_model(), loss=loss, callbacks=[hears]).fit(Loader(make_data(), 8))
    assert isinstance(hears.heard, NotFinite)
    assert not isinstance(hears.heard, FloatingPointError)
    assert str(error.value) == str(hears.heard)
    assert error.value.__notes__ == ["a note"]


def test_a_loss_that_fails_when_a_step_is_made_again_hides_nothing(
    make_model: MakeModel, make_data: MakeData
) -> None:
    calls: list[int] = []

    def loss(logits: Any, labels: Any, *, xp: Any) -> Any:
        calls.append(1)
        if len(calls) > 1:
            raise ZeroDivisionError("once only")
        return float("nan"), logits * 0

    with pytest.raises(FloatingPointError) as error:
        Trainer(make_model(), loss=loss).fit(Loader(make_data(), 8))
    assert "in step 1: made again, it ended with ZeroDivisionError: once only." in str(error.value)


def test_skipping_is_given_up_where_weights_are_not_finite(
    make_model: MakeModel, make_data: MakeData, tmp_path: Path
) -> None:
    """Even if another step was skipped before."""
    model, calls = make_model(), []

    def loss(logits: Any, labels: Any, *, xp: Any) -> Any:
        calls.append(1)
        value, dlogits = softmax_cross_entropy(logits, labels, xp=xp)
        return (value * float("nan"), dlogits) if len(calls) == 1 else (value, dlogits)

    class Spoils(Callback):
        def on_step_end(self, state: TrainState, log: Any) -> None:
            if state.step == 3:
                model.head.bias.value[1] = np.nan

    trainer = Trainer(
        model, loss=loss, callbacks=[Spoils()], nonfinite="skip", bad_steps=BadSteps(tmp_path)
    )
    with pytest.raises(FloatingPointError, match=r"step 4: weights: the parameter head\.bias"):
        trainer.fit(Loader(make_data(), 4), epochs=3)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("bad-step-00000001", "bad-step-00000004")
    }


@pytest.mark.parametrize("spoiled", ["model", "optimizer", "average"])
def test_no_checkpoint_holds_a_number_that_is_not_finite(
    spoiled: str, make_model: MakeModel, make_data: MakeData, tmp_path: Path
) -> None:
    model = make_model()
    optimizer, ema = AdamW(1e-2).attach(model), EMA(model, 0.9)
    recorder = Recorder([])

    class Spoils(Callback):
        """After the last step of the second epoch, when the losses are known."""

        def on_epoch_end(self, state: TrainState) -> None:
            if state.epoch == 2:
                part = {"model": model, "optimizer": optimizer, "average": ema}[spoiled]
                arrays = part.state_dict()
                name = next(name for name in arrays if name.startswith("blocks.1.mlp.fc1.weight"))
                arrays[name][2, 3] = np.inf
                part.load_state_dict(arrays)

    watching = [Average(ema), recorder, Spoils()]
    saving = Checkpointing(tmp_path, model, optimizer, watching, {}, ema=ema)
    trainer = Trainer(model, optimizer, callbacks=[*watching, saving])
    with pytest.raises(CheckpointError) as error:
        trainer.fit(Loader(make_data(), 4), epochs=3)
    message = str(error.value)
    assert message.startswith(f"The state of {spoiled} ")
    assert "blocks.1.mlp.fc1.weight" in message
    assert "has inf at [2, 3] (1 of its 512 numbers are not finite); lower the" in message
    last = files.load(find_checkpoint(tmp_path, "last"))
    assert last.documents["trainer"]["state"]["step"] == 7
    for path in tmp_path.glob("checkpoints/*"):
        for arrays in files.load(path).arrays.values():
            assert not not_finite(arrays)


def test_what_is_finite_is_said_to_be() -> None:
    arrays = {"a": np.ones((2, 2)), "b": np.arange(3), "c": np.asarray(1.0)}
    assert not_finite(arrays) == ""
    assert not_finite({**arrays, "d": np.asarray(np.nan)}).startswith("d has nan at [] (1 of its 1")
