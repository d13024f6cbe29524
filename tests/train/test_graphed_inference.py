"""Evaluating and predicting by graphs gives what doing without gives, to the bit."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from recordings import Recordings, made, no_room, pictures, waiting

import vitkit
from vitkit import ops, optim
from vitkit.backend import ArrayModule, to_numpy
from vitkit.data import ArrayDataset, Loader
from vitkit.errors import BackendError
from vitkit.ops import softmax_cross_entropy
from vitkit.testing import cuda_on_cpu, strict_device
from vitkit.train import Metrics, evaluate, predict, recorded
from vitkit.train.callbacks import Average, Callback, Validation
from vitkit.train.graph import GraphedForward
from vitkit.train.preprocess import Preprocess
from vitkit.train.state import TrainState

SIZE = 3  # images of a batch


@pytest.fixture(autouse=True)
def emulated() -> Iterator[None]:
    if reason := cuda_on_cpu.why_not():
        pytest.skip(reason)
    with cuda_on_cpu.emulated():
        yield


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let one replay pay for a recording, so that five batches will do."""
    monkeypatch.setattr(recorded, "REPAID", 1)


@pytest.fixture
def data(rng: np.random.Generator) -> ArrayDataset:
    """Return five batches, and a last one of two images."""
    return pictures(5 * SIZE + 2, rng)


def judged(
    model: vitkit.ViT, data: ArrayDataset, **options: Any
) -> tuple[list[np.ndarray], Metrics]:
    """Return the logits of each batch, and the metrics."""
    seen: list[np.ndarray] = []

    def loss(logits: Any, labels: Any, *, xp: ArrayModule) -> Any:
        seen.append(to_numpy(logits).copy())
        return softmax_cross_entropy(logits, labels, xp=xp)

    found = evaluate(model, Loader(data, SIZE), loss=loss, **options)
    return seen, found


def assert_same(one: Any, other: Any) -> None:
    assert len(one[0]) == len(other[0])
    for mine, theirs in zip(one[0], other[0], strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert one[1].loss == other[1].loss
    np.testing.assert_array_equal(one[1].confusion, other[1].confusion)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_evaluation_repeats_its_bits_and_leaves_no_graph(
    precision: str, data: ArrayDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, recordings = made(precision), Recordings(monkeypatch)
    graphed = judged(model, data)
    assert (recordings.tried, recordings.replays, recordings.alive) == (1, 2, 0)
    assert_same(graphed, judged(model, data, graph=False))
    assert recordings.tried == 1


@pytest.mark.usefixtures("soon")
def test_prediction_repeats_its_bits_and_leaves_no_graph(
    data: ArrayDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, recordings = made(), Recordings(monkeypatch)
    images = data.images(np.arange(len(data)))
    preprocess = Preprocess.of(data)
    graphed = predict(model, images, preprocess, batch_size=SIZE)
    assert (recordings.tried, recordings.replays, recordings.alive) == (1, 2, 0)
    expected = predict(model, images, preprocess, batch_size=SIZE, graph=False)
    np.testing.assert_array_equal(graphed, expected)
    assert recordings.tried == 1
    softmax = ops.softmax

    def crowded(logits: Any, *, xp: ArrayModule) -> Any:
        if len(logits) == 2 and recordings.alive:
            raise MemoryError("graphs are in the way")
        return softmax(logits, xp=xp)

    monkeypatch.setattr(import_module("vitkit.train.evaluate"), "softmax", crowded)
    alone = predict(model, images, preprocess, batch_size=SIZE)
    assert recordings.tried == 2
    np.testing.assert_array_equal(alone, expected)


def test_few_batches_are_not_worth_a_graph(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, recordings = made(depth=1), Recordings(monkeypatch)
    enough = recorded.WARM_UP + 1 + recorded.REPAID
    judged(model, pictures(enough * SIZE - 1, rng))
    assert recordings.tried == 0
    judged(model, pictures(enough * SIZE, rng))
    assert (recordings.tried, recordings.replays) == (1, recorded.REPAID)


@pytest.mark.usefixtures("soon")
def test_what_cannot_be_recorded_is_said_once_in_a_run(
    data: ArrayDataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, recordings = waiting(made()), Recordings(monkeypatch)
    assert_same(judged(model, data), judged(model, data, graph=False))
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert said[0].startswith(
        "Inference on images of shape (3, 3, 8, 8) cannot be recorded as a graph: RuntimeError: "
    )
    assert "a wait for the device" in said[0]
    assert recordings.tried == 1
    caplog.clear()
    validation = Validation(model, Loader(data, SIZE), softmax_cross_entropy, Preprocess.of(data))
    for epoch in (1, 2, 3):
        validation.on_epoch_end(TrainState(epoch=epoch, epochs=3))
    assert caplog.text.count("cannot be recorded") == 1
    assert recordings.tried == 2
    with pytest.raises(RuntimeError, match="a wait for the device"):
        judged(model, data, graph=True)


def test_a_graph_that_cannot_be_is_refused(data: ArrayDataset) -> None:
    model = vitkit.ViT(
        "Ti/4", image_size=8, num_classes=5, dim=32, depth=1, num_heads=1, backend="numpy"
    )
    images = data.images(np.arange(2))
    with pytest.raises(BackendError, match="graph=True needs a GPU"):
        judged(model, data, graph=True)
    with pytest.raises(BackendError, match="graph=True needs a GPU"):
        predict(model, images, Preprocess.of(data), graph=True)
    with pytest.raises(BackendError, match="graph=True needs a GPU"):
        GraphedForward(model)
    given = Loader(data, SIZE), softmax_cross_entropy, Preprocess.of(data)
    with pytest.raises(BackendError, match="graph=True needs a GPU"):
        Validation(model, *given, graph=True).on_start(TrainState())  # and not after an epoch
    with pytest.raises(ValueError, match="a GraphedForward of the model that is evaluated"):
        judged(model, data, graph=GraphedForward(made()))


@pytest.mark.usefixtures("soon")
def test_a_profile_and_references_are_of_passes_without_a_graph(
    data: ArrayDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, recordings = made(), Recordings(monkeypatch)
    with ops.profiled() as profile:
        judged(model, data)
    assert profile.operations["normalize_images"].calls == 6
    with ops.reference_only():
        judged(model, data)
    assert recordings.tried == 0


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_averaged_weights_and_then_the_own_ones_are_seen(
    precision: str, data: ArrayDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, recordings = made(precision), Recordings(monkeypatch)
    ema = optim.EMA(model)
    model.load_state_dict(made(seed=7).state_dict())
    forward = GraphedForward(model)
    own = judged(model, data, graph=forward)
    with ema.applied():
        averaged = judged(model, data, graph=forward)
        assert_same(averaged, judged(model, data, graph=False))
    assert_same(judged(model, data, graph=forward), own)
    assert_same(judged(model, data, graph=False), own)
    assert own[1].loss != averaged[1].loss
    assert recordings.tried == 3
    assert recordings.replays == 2 + 4 + 4  # what a shape needs is known from the second time on


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_graph_reads_the_weights_of_the_moment(
    precision: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that an optimizer, an average or a checkpoint writes where the model lies."""
    xp, model, recordings = strict_device.xp, made(precision), Recordings(monkeypatch)
    ema, forward = optim.EMA(model), GraphedForward(model)
    images = xp.asarray(rng.standard_normal((SIZE, 3, 8, 8), np.float32))
    for _ in range(recorded.WARM_UP + 1):
        first = forward(images)
    model.load_state_dict(made(seed=7).state_dict())
    np.testing.assert_array_equal(forward(images).get(), model(images).get())
    assert not np.array_equal(first.get(), model(images).get())
    with ema.applied():
        np.testing.assert_array_equal(forward(images).get(), first.get())
    np.testing.assert_array_equal(forward(images).get(), model(images).get())
    assert (recordings.tried, recordings.replays) == (1, 3)


def placed(model: vitkit.ViT, **options: Any) -> None:
    """Place a model anew, with the weights it had but one."""
    weights = model.state_dict()
    model.place(model.xp, seed=9, **options)
    model.load_state_dict({**weights, "head.bias": weights["head.bias"] + 1})


@pytest.mark.parametrize(
    "moved",
    [
        placed,
        functools.partial(placed, precision="bfloat16"),
        lambda model: model.replace("head", made(seed=8).head),
    ],
    ids=["anew", "in another precision", "with another layer"],
)
def test_a_model_that_is_placed_anew_is_recorded_anew(
    moved: Callable[[Any], Any], rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    xp, model, recordings = strict_device.xp, made(), Recordings(monkeypatch)
    forward = GraphedForward(model)
    images = xp.asarray(rng.standard_normal((SIZE, 3, 8, 8), np.float32))
    for _ in range(recorded.WARM_UP + 2):
        before = forward(images)
    moved(model)
    for _ in range(recorded.WARM_UP + 2):
        logits = forward(images)
        np.testing.assert_array_equal(logits.get(), model(images).get())
    assert not np.array_equal(before.get(), logits.get())
    assert (recordings.tried, recordings.replays, recordings.alive) == (2, 2, 1)


class Seen(Callback):
    """Notes what validations found, and how many graphs they left."""

    def __init__(self, recordings: Recordings) -> None:
        self.recordings = recordings
        self.found: list[dict[str, float]] = []
        self.left: list[int] = []

    def on_epoch_end(self, state: TrainState) -> None:
        self.found.append(dict(state.metrics))
        self.left.append(self.recordings.alive)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("averaged", [False, True], ids=["own weights", "averaged weights"])
def test_validations_see_what_was_learned_between_them(
    averaged: bool, data: ArrayDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    recordings = Recordings(monkeypatch)

    def fit(graph: bool | None) -> Seen:
        model, seen = made("bfloat16"), Seen(recordings)
        ema = optim.EMA(model, 0.5) if averaged else None
        validation = Validation(
            model,
            Loader(data, SIZE),
            softmax_cross_entropy,
            Preprocess.of(data),
            ema=ema,
            graph=graph,
        )
        first: list[Callback] = [Average(ema)] if ema is not None else []
        trainer = vitkit.Trainer(
            model,
            optim.AdamW(1e-2).attach(model),
            callbacks=[*first, validation, seen],
            graph=False,
        )
        trainer.fit(Loader(data, 2 * SIZE), epochs=3)
        return seen

    graphed = fit(None)
    assert recordings.tried == 3  # once a validation
    assert graphed.left == [0, 0, 0]
    assert graphed.found == fit(False).found
    assert len({found["val_loss"] for found in graphed.found}) == 3
    assert recordings.tried == 3


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize(("size", "tried"), [(2, 1), (SIZE, 2)], ids=["last", "all"])
def test_batches_without_room_beside_a_graph_are_evaluated_alone(
    size: int,
    tried: int,
    data: ArrayDataset,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, recordings = made(), Recordings(monkeypatch)
    found = evaluate(model, Loader(data, SIZE), loss=no_room(recordings, size))
    assert recordings.tried == tried
    assert found.loss == evaluate(model, Loader(data, SIZE), graph=False).loss
    assert caplog.text.count("MemoryError: graphs are in the way): they are let go of") == 1


@pytest.mark.usefixtures("soon")
def test_too_little_memory_is_said_when_all_room_was_made(
    data: ArrayDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, recordings = made(), Recordings(monkeypatch)
    alive: list[int] = []

    def loss(logits: Any, labels: Any, *, xp: ArrayModule) -> Any:
        if len(logits) == 2:
            alive.append(recordings.alive)
            raise MemoryError("never enough")
        return softmax_cross_entropy(logits, labels, xp=xp)

    with pytest.raises(BackendError, match=r"Out of memory evaluating 2 images at once: .*never"):
        evaluate(model, Loader(data, SIZE), loss=loss)
    assert alive == [1, 0]


@pytest.mark.usefixtures("soon")
def test_a_recording_without_room_is_said_and_done_without(
    data: ArrayDataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(count: int) -> None:
        raise MemoryError("no arena")

    recordings = Recordings(monkeypatch, refuse)
    model = made()
    assert_same(judged(model, data), judged(model, data, graph=False))
    assert recordings.tried == 1
    assert "cannot be recorded as a graph: MemoryError: no arena." in caplog.text
    with pytest.raises(BackendError, match=r"Out of memory evaluating 3 images at once: .*arena"):
        judged(model, data, graph=True)


@pytest.mark.usefixtures("soon")
def test_graphs_of_training_make_room_for_a_validation(
    data: ArrayDataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recordings = Recordings(monkeypatch)
    loader, of_validation = Loader(pictures(8 * SIZE, np.random.default_rng(0)), SIZE), data

    def fit(graph: bool | None) -> Any:
        model = made()
        validation = Validation(
            model,
            Loader(of_validation, 2),
            no_room(recordings, 2),
            Preprocess.of(data),
            graph=False,
        )
        trainer = vitkit.Trainer(
            model, optim.SGD(1e-2).attach(model), callbacks=[validation], graph=graph
        )
        return trainer.fit(loader, epochs=2).metrics, model.state_dict()

    metrics, weights = fit(None)
    assert recordings.tried == 2  # once an epoch
    assert recordings.replays == 5 + 7
    expected, others = fit(False)
    assert metrics == expected
    for name in weights:
        np.testing.assert_array_equal(weights[name], others[name])
    assert caplog.text.count("are let go of") == 1


@pytest.mark.usefixtures("soon")
def test_an_evaluation_that_is_left_leaves_no_graph(
    data: ArrayDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    recordings, alive = Recordings(monkeypatch), []

    def on_batch(images: int) -> None:
        alive.append(recordings.alive)
        if len(alive) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as kept:  # as a notebook keeps the last error
        judged(made(), data, on_batch=on_batch)
    assert alive == [0, 0, 1, 1, 1]
    assert recordings.alive == 0
    assert kept.value


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("graph", [None, False])
def test_a_trainer_evaluates_and_predicts_as_it_trains(
    graph: bool | None, data: ArrayDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        vitkit.train.trainer, "predict", functools.partial(predict, batch_size=SIZE)
    )
    trainer, recordings = vitkit.Trainer(made(), graph=graph), Recordings(monkeypatch)
    trainer.preprocess = Preprocess.of(data)
    trainer.evaluate(Loader(data, SIZE))
    trainer.predict(data.images(np.arange(len(data))))
    assert recordings.tried == (2 if graph is None else 0)
