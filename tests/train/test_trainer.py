"""The loop: what fit does, what it calls and in which order, and what it does not depend on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitkit.backend import backend_of
from vitkit.data import ArrayDataset, Batch, Loader, digits
from vitkit.errors import VitkitError
from vitkit.models import ViT
from vitkit.ops import softmax_cross_entropy
from vitkit.optim import EMA, SGD, AdamW, Cosine
from vitkit.train import Preprocess, Trainer, TrainState
from vitkit.train.callbacks import (
    Average,
    Callback,
    Checkpointing,
    EarlyStopping,
    Recorder,
    TimeLimit,
    Validation,
)

MakeData = Callable[..., ArrayDataset]
MakeModel = Callable[..., ViT]


class Diary(Callback):
    """Writes down what it is called with."""

    def __init__(self, name: str, pages: list[Any]) -> None:
        self.name, self.pages = name, pages

    def on_start(self, state: TrainState) -> None:
        self.pages.append((self.name, "start", state.step))

    def on_step_end(self, state: TrainState, log: Any) -> None:
        self.pages.append((self.name, "step", state.step, state.position))

    def on_epoch_end(self, state: TrainState) -> None:
        self.pages.append((self.name, "epoch", state.epoch, state.position))

    def on_end(self, state: TrainState) -> None:
        self.pages.append((self.name, "end", state.step))

    def on_error(self, state: TrainState, error: BaseException) -> None:
        self.pages.append((self.name, "error", type(error)))


class StopAt(Callback):
    """Ends the run at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, state: TrainState, log: Any) -> None:
        if state.step == self.step:
            state.stop = "told to"


class Plateau(Callback):
    """Plays validation: gives the values of a list."""

    def __init__(self, values: list[float]) -> None:
        self.values = iter(values)

    def on_epoch_end(self, state: TrainState) -> None:
        state.metrics = {"val_loss": next(self.values)}


def shift(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.roll(image, rng.integers(0, 3), axis=2)


def fitted(
    make_model: MakeModel, data: ArrayDataset, *, workers: int = 0, seed: int = 0
) -> dict[str, np.ndarray]:
    model = make_model(dropout=0.2, drop_path=0.2, seed=seed)
    loader = Loader(data, 4, shuffle=True, seed=seed, transforms=(shift,), num_workers=workers)
    Trainer(model, grad_accum=2, seed=seed).fit(loader, epochs=2)
    return model.state_dict()


def test_it_learns(make_data: MakeData, make_model: MakeModel) -> None:
    data, model = make_data(96), make_model()
    trainer = Trainer(model, AdamW(5e-3))
    loader = Loader(data, 16, shuffle=True)
    trainer.fit(loader, epochs=15)
    assert trainer.evaluate(loader).accuracy > 0.9
    probabilities = trainer.predict(data.images(np.arange(5)))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)
    assert (probabilities.argmax(axis=1) == data.labels[:5]).mean() >= 0.8


def test_callbacks_are_called_in_list_order(make_data: MakeData, make_model: MakeModel) -> None:
    pages: list[Any] = []
    trainer = Trainer(make_model(), callbacks=[Diary("b", pages), Diary("a", pages)], grad_accum=2)
    state = trainer.fit(Loader(make_data(10), 4), epochs=2)
    by_a = [page[1:] for page in pages if page[0] == "a"]
    assert by_a == [
        ("start", 0),
        *(("step", 1, 2), ("step", 2, 3), ("epoch", 1, 0)),
        *(("step", 3, 2), ("step", 4, 3), ("epoch", 2, 0)),
        ("end", 4),
    ]
    assert [page[0] for page in pages] == ["b", "a"] * len(by_a)
    assert [page[1:] for page in pages[::2]] == by_a
    assert (state.step, state.epoch, state.total_steps) == (4, 2, 4)
    assert state.seconds > 0


def test_an_error_reaches_every_callback(make_data: MakeData, make_model: MakeModel) -> None:
    pages: list[Any] = []

    def loss(*args: Any, **kwargs: Any) -> Any:
        raise ZeroDivisionError

    trainer = Trainer(make_model(), loss=loss, callbacks=[Diary("a", pages)])
    with pytest.raises(ZeroDivisionError):
        trainer.fit(Loader(make_data(), 4))
    assert pages == [("a", "start", 0), ("a", "error", ZeroDivisionError)]


def test_an_error_at_the_end_reaches_every_callback_too(
    make_data: MakeData, make_model: MakeModel
) -> None:
    class Broken(Callback):
        def on_end(self, state: TrainState) -> None:
            raise OSError("disk full")

    pages: list[Any] = []
    trainer = Trainer(make_model(), callbacks=[Broken(), Diary("a", pages)])
    with pytest.raises(OSError, match="disk full"):
        trainer.fit(Loader(make_data(), 16))
    assert pages[-1] == ("a", "error", OSError)


@pytest.mark.parametrize("workers", [1, 4])
def test_weights_do_not_depend_on_the_number_of_workers(
    workers: int, make_data: MakeData, make_model: MakeModel
) -> None:
    one, other = (fitted(make_model, make_data(), workers=w) for w in (0, workers))
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


def test_weights_depend_on_the_seed_and_on_nothing_else(
    make_data: MakeData, make_model: MakeModel
) -> None:
    first, again, other = (fitted(make_model, make_data(), seed=s) for s in (3, 3, 4))
    for name, value in first.items():
        np.testing.assert_array_equal(value, again[name], err_msg=name)
    assert not np.array_equal(first["blocks.0.attn.qkv.weight"], other["blocks.0.attn.qkv.weight"])


def test_the_schedule_is_asked_for_every_step(make_data: MakeData, make_model: MakeModel) -> None:
    seen = []

    class Rates(Callback):
        def on_step_end(self, state: TrainState, log: Any) -> None:
            seen.append(log.lr)

    schedule = Cosine(1e-2, 8, warmup_steps=2)
    Trainer(make_model(), schedule=schedule, callbacks=[Rates()]).fit(
        Loader(make_data(), 8), epochs=2
    )
    assert seen == [schedule(step) for step in range(8)]


def test_an_optimizer_of_the_same_model_keeps_its_state(
    make_data: MakeData, make_model: MakeModel
) -> None:
    model = make_model()
    optimizer = AdamW(1e-3).attach(model)
    trainer = Trainer(model, optimizer)
    trainer.fit(Loader(make_data(), 13))
    trainer.fit(Loader(make_data(), 13))
    assert optimizer.steps == 4
    Trainer(make_model(), optimizer)
    assert optimizer.steps == 0


def test_early_stopping_counts_validations_without_improvement(
    make_data: MakeData, make_model: MakeModel
) -> None:
    stopping = EarlyStopping(patience=2)
    values = [3.0, 2.0, 2.0, 1.5, float("nan"), 1.6, 1.0]
    state = Trainer(make_model(), callbacks=[Plateau(values), stopping]).fit(
        Loader(make_data(), 26), epochs=7
    )
    assert state.epoch == 6
    assert state.stop.startswith("early stopping: val_loss")
    again = EarlyStopping(patience=2)
    again.load_state_dict(stopping.state_dict())
    assert (again.best.value, again.waited) == (1.5, 2)


def test_early_stopping_waits_where_nothing_was_validated(
    make_data: MakeData, make_model: MakeModel
) -> None:
    state = Trainer(make_model(), callbacks=[EarlyStopping(patience=1)]).fit(
        Loader(make_data(), 26), epochs=3
    )
    assert (state.epoch, state.stop) == (3, "")


def test_a_time_limit_ends_the_run_at_a_step(make_data: MakeData, make_model: MakeModel) -> None:
    state = Trainer(make_model(), callbacks=[TimeLimit(1e-9)]).fit(Loader(make_data(), 4))
    assert (state.step, state.epoch, state.position) == (1, 0, 1)
    assert state.stop == "time limit of 1e-09 s"
    state = Trainer(make_model(), callbacks=[TimeLimit(1000)]).fit(Loader(make_data(), 4))
    assert state.stop == ""


@pytest.mark.parametrize("at", range(1, 8))
def test_resuming_from_a_state_gives_the_same_bits(
    at: int, make_data: MakeData, make_model: MakeModel
) -> None:
    """Without files: model, optimizer and average handed over by their state_dicts."""
    data = make_data()  # 26 images: 7 batches of 4, the last of 2; 4 steps of 2 batches

    def parts(*callbacks: Callback) -> tuple[ViT, AdamW, EMA, Trainer]:
        model = make_model(dropout=0.2, drop_path=0.2)
        optimizer = AdamW(1e-2, weight_decay=0.1).attach(model)
        ema = EMA(model, 0.9)
        trainer = Trainer(
            model,
            optimizer,
            schedule=Cosine(1e-2, 8, warmup_steps=1),
            callbacks=[Average(ema), *callbacks],
            grad_accum=2,
            max_grad_norm=1.0,
        )
        return model, optimizer, ema, trainer

    def loader() -> Loader:
        return Loader(data, 4, shuffle=True, transforms=(shift,))

    whole = parts()
    whole[3].fit(loader(), epochs=2)
    first = parts(StopAt(at))
    state = first[3].fit(loader(), epochs=2)
    assert state.step == at
    second = parts()
    for new, old in zip(second[:3], first[:3], strict=True):
        new.load_state_dict(old.state_dict())
    end = second[3].fit(loader(), epochs=2, state=TrainState.from_dict(state.to_dict()))
    assert (end.step, end.epoch, end.position, end.stop) == (8, 2, 0, "")
    for new, old in zip(second[:3], whole[:3], strict=True):
        expected = old.state_dict()
        for name, value in new.state_dict().items():
            np.testing.assert_array_equal(value, expected[name], err_msg=name)


def on_host(model: ViT) -> bool:
    return backend_of(model.xp).on_host


@pytest.mark.parametrize(("every", "bad"), [(1, 3), (50, 3), (50, 9)])
def test_a_loss_that_is_not_finite_ends_the_run_before_any_checkpoint_of_it(
    every: int, bad: int, tmp_path: Path, make_data: MakeData, make_model: MakeModel
) -> None:
    """On the host before its step has changed anything, so what is there can be kept."""
    model, steps = make_model(), iter(range(1, 99))
    optimizer = SGD(0.1).attach(model)

    def loss(logits: Any, labels: Any, *, xp: Any) -> Any:
        value, gradient = softmax_cross_entropy(logits, labels, xp=xp)
        return (value * float("nan"), gradient) if next(steps) == bad else (value, gradient)

    recorder = Recorder([], every=every)
    saving = Checkpointing(tmp_path, model, optimizer, [recorder], {})
    trainer = Trainer(model, optimizer, loss=loss, callbacks=[recorder, saving])
    with pytest.raises(FloatingPointError, match="loss is not finite"):
        trainer.fit(Loader(make_data(), 4), epochs=2)  # 7 steps an epoch
    written = sorted(path.name for path in tmp_path.glob("checkpoints/*"))
    before = [f"step-{bad - 1:08d}"] if on_host(model) else []
    assert written == ["step-00000007"] * (bad > 7) + before


def test_a_run_that_is_stopped_writes_no_checkpoint_of_a_loss_that_is_not_finite(
    tmp_path: Path, make_data: MakeData, make_model: MakeModel
) -> None:
    model = make_model()
    optimizer = SGD(0.1).attach(model)

    def loss(logits: Any, labels: Any, *, xp: Any) -> Any:
        value, gradient = softmax_cross_entropy(logits, labels, xp=xp)
        return value * float("inf"), gradient

    recorder = Recorder([], every=50)
    saving = Checkpointing(tmp_path, model, optimizer, [recorder], {})
    trainer = Trainer(model, optimizer, loss=loss, callbacks=[recorder, StopAt(2), saving])
    with pytest.raises(FloatingPointError):
        trainer.fit(Loader(make_data(), 4))
    written = [path.name for path in tmp_path.glob("checkpoints/*")]
    assert written == (["step-00000000"] if on_host(model) else [])


def test_averaged_weights_are_validated_and_the_own_ones_trained_on(
    make_data: MakeData, make_model: MakeModel
) -> None:
    data, model = make_data(), make_model()
    optimizer, ema = AdamW(1e-2).attach(model), EMA(model, 0.99)
    loader = Loader(data, 8)
    validation = Validation(
        model, loader, softmax_cross_entropy, Preprocess.of(data), ema=ema, every=2
    )
    state = Trainer(model, optimizer, callbacks=[Average(ema), validation]).fit(loader, epochs=2)
    own = model.state_dict()
    averaged = make_model()
    averaged.load_state_dict(ema.weights())
    trainer = Trainer(averaged)
    trainer.preprocess = Preprocess.of(data)
    expected = trainer.evaluate(loader)
    assert state.metrics == {"val_loss": expected.loss, "val_accuracy": expected.accuracy}
    assert ema.updates == 8
    assert not np.array_equal(own["head.weight"], ema.weights()["head.weight"])


def test_validation_comes_when_due_and_after_the_last_epoch(
    make_data: MakeData, make_model: MakeModel
) -> None:
    data, model, seen = make_data(), make_model(), []
    loader = Loader(data, 26)
    validation = Validation(model, loader, softmax_cross_entropy, Preprocess.of(data), every=2)

    class Look(Callback):
        def on_epoch_end(self, state: TrainState) -> None:
            seen.append(sorted(state.metrics))

    Trainer(model, callbacks=[validation, Look()]).fit(loader, epochs=5)
    both = ["val_accuracy", "val_loss"]
    assert seen == [[], both, [], both, both]


def test_wrong_use_says_what_to_do(make_model: MakeModel) -> None:
    with pytest.raises(ValueError, match="grad_accum must be 1 or more; got 0"):
        Trainer(make_model(), grad_accum=0)
    with pytest.raises(RuntimeError, match="fit first"):
        Trainer(make_model()).predict(np.zeros((1, 1, 8, 8), np.uint8))


def test_an_unreadable_image_ends_the_run_with_its_own_error(
    make_data: MakeData, make_model: MakeModel
) -> None:
    class Damaged(Loader):
        def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
            yield from list(super().batches(epoch, start))[:2]
            raise VitkitError("cat.png: truncated")

    with pytest.raises(VitkitError, match=r"cat\.png"):
        Trainer(make_model()).fit(Damaged(make_data(), 4))


def test_the_example_of_the_docstring() -> None:
    model = ViT("Ti/4", image_size=8, in_channels=1, num_classes=10, dim=32, depth=1, num_heads=2)
    state = Trainer(model).fit(Loader(digits().train, 64, shuffle=True), epochs=1)
    assert state.step == 23
