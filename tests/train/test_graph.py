"""A recorded step repeats an eager one to the bit, and waits for nothing."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from recordings import Recordings, made, no_room

import vitkit
from vitkit import optim
from vitkit.backend import ArrayModule, can_record, to_numpy
from vitkit.data import Batch
from vitkit.errors import BackendError
from vitkit.ops import softmax_cross_entropy
from vitkit.testing import cuda_on_cpu, strict_device
from vitkit.train import recorded, train_step
from vitkit.train.graph import GraphedForward, GraphedStep
from vitkit.train.loss_scale import loss_scale_for
from vitkit.train.preprocess import Preprocess
from vitkit.train.recorded import WARM_UP
from vitkit.train.step import StepLog

PREPROCESS = Preprocess(255.0, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
STEPS = WARM_UP + 3


@pytest.fixture(autouse=True)
def emulated() -> Iterator[None]:
    if reason := cuda_on_cpu.why_not():
        pytest.skip(reason)
    with cuda_on_cpu.emulated():
        yield


def batches(count: int, size: int, rng: np.random.Generator) -> list[list[Batch]]:
    return [
        [
            Batch(
                rng.integers(0, 256, (size, 3, 8, 8), dtype=np.uint8),
                rng.integers(0, 5, size),
                np.arange(size),
                0,
            )
        ]
        for _ in range(count)
    ]


OPTIMIZERS: dict[str, Callable[[], optim.Optimizer]] = {
    "adamw": lambda: optim.AdamW(1e-3, weight_decay=0.1),
    "sgd": lambda: optim.SGD(1e-2, momentum=0.9),
    "lion": lambda: optim.Lion(1e-4),
    "lamb": lambda: optim.LAMB(1e-3),
}


def run(graphed: bool, optimizer: optim.Optimizer, given: list[Any], **model: Any) -> Any:
    """Return the weights, the optimizer's state and the logs of a few steps."""
    vit = made(**model)
    optimizer.attach(vit)
    scale = loss_scale_for(vit)
    others: dict[str, Any] = {"max_grad_norm": 1.0, "loss_scale": scale}
    if graphed:
        step: Any = GraphedStep(vit, optimizer, softmax_cross_entropy, PREPROCESS, **others)
    else:
        parts = vit, optimizer
        others |= {"loss": softmax_cross_entropy, "preprocess": PREPROCESS}
        step = functools.partial(train_step, *parts, **others)
    logs: list[StepLog] = []
    for number, group in enumerate(given):
        logs.append(step(batches=group, lr=1e-3 * (1 + number), seed=3, step=number))
    return vit.state_dict(), optimizer.state_dict(), logs, vit


def assert_same(one: Any, other: Any) -> None:
    for mine, theirs in zip(one[:2], other[:2], strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine:
            np.testing.assert_array_equal(mine[name], theirs[name], err_msg=name)
    for mine, theirs in zip(one[2], other[2], strict=True):
        assert mine.lr == theirs.lr
        for name in ("loss", "correct", "grad_norm"):
            assert to_numpy(getattr(mine, name)) == to_numpy(getattr(theirs, name)), name


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_graph_repeats_eager_steps_to_the_bit(name: str, rng: np.random.Generator) -> None:
    given = batches(STEPS, 3, rng)
    assert_same(run(True, OPTIMIZERS[name](), given), run(False, OPTIMIZERS[name](), given))


@pytest.mark.parametrize("settings", [{"dropout": 0.3}, {"drop_path": 0.5}], ids=str)
def test_each_replay_draws_anew(settings: dict[str, float], rng: np.random.Generator) -> None:
    given = batches(1, 4, rng) * STEPS  # one batch again and again: only the draws differ
    graphed = run(True, optim.SGD(0.0), given, **settings)
    assert_same(graphed, run(False, optim.SGD(0.0), given, **settings))
    losses = [float(to_numpy(log.loss)) for log in graphed[2]]
    assert len(set(losses)) == STEPS


@pytest.mark.parametrize("precision", ["tf32", "bfloat16", "float16"])
def test_other_precisions(precision: str, rng: np.random.Generator) -> None:
    given = batches(STEPS, 2, rng)
    graphed = run(True, optim.AdamW(), given, precision=precision)
    assert graphed[3].precision == precision
    assert_same(graphed, run(False, optim.AdamW(), given, precision=precision))


def test_several_batches_and_a_last_one_that_is_smaller(rng: np.random.Generator) -> None:
    two = [
        [*one, *other] for one, other in zip(batches(9, 3, rng), batches(9, 2, rng), strict=True)
    ]
    given = [*two[:4], *batches(1, 2, rng), *two[4:8], *batches(1, 2, rng), *batches(3, 2, rng)]
    assert_same(run(True, optim.AdamW(), given), run(False, optim.AdamW(), given))


def test_no_step_waits_for_the_device(rng: np.random.Generator) -> None:
    model, optimizer = made("bfloat16"), optim.AdamW()
    step = GraphedStep(model, optimizer.attach(model), softmax_cross_entropy, PREPROCESS)
    for number, group in enumerate(batches(STEPS, 2, rng)):
        with strict_device.count_syncs() as syncs:
            step(group, lr=1e-3, seed=0, step=number)
        assert syncs == [], number


def test_what_cannot_be_recorded_is_said(rng: np.random.Generator) -> None:
    def waits(logits: Any, labels: Any, *, xp: ArrayModule) -> tuple[Any, Any]:
        loss, gradient = softmax_cross_entropy(logits, labels, xp=xp)
        assert float(loss) > 0
        return loss, gradient

    model, optimizer = made(), optim.AdamW()
    step = GraphedStep(model, optimizer.attach(model), waits, PREPROCESS)
    given = batches(WARM_UP + 1, 2, rng)
    for number, group in enumerate(given[:-1]):
        step(group, lr=1e-3, seed=0, step=number)
    with pytest.raises(RuntimeError, match="a wait for the device"):
        step(given[-1], lr=1e-3, seed=0, step=WARM_UP)


def test_training_goes_on_without_where_a_step_cannot_be_recorded(
    rng: np.random.Generator, caplog: pytest.LogCaptureFixture
) -> None:
    reads: list[float] = []

    def waits(logits: Any, labels: Any, *, xp: ArrayModule) -> tuple[Any, Any]:
        loss, gradient = softmax_cross_entropy(logits, labels, xp=xp)
        reads.append(float(loss))
        return loss, gradient

    given, updates = batches(WARM_UP + 2, 2, rng), []
    found = []
    for falls_back in (True, False):
        model, optimizer = made(), optim.SGD(1e-2, momentum=0.9)
        step = GraphedStep(
            model,
            optimizer.attach(model),
            waits,
            PREPROCESS,
            records=falls_back,
            falls_back=falls_back,
        )
        for number, group in enumerate(given):
            before = functools.partial(updates.append, number)
            step(group, lr=1e-2, seed=0, step=number, before_update=before)
        found.append((model.state_dict(), optimizer.state_dict(), []))
    assert_same(*found)
    assert updates == [0, 1, 2, 3] * 2  # once a step, and not where the recording failed
    assert caplog.text.count("cannot be recorded as a graph") == 1
    assert "a wait for the device" in caplog.text


def steps_of(given: list[list[Batch]], loss: Any = softmax_cross_entropy, **kwargs: Any) -> Any:
    """Return weights, the optimizer's state, logs, and what made the steps, which fall back."""
    model, optimizer = made(), optim.SGD(1e-2, momentum=0.9)
    step = GraphedStep(model, optimizer.attach(model), loss, PREPROCESS, falls_back=True, **kwargs)
    logs = [step(group, lr=1e-2, seed=0, step=number) for number, group in enumerate(given)]
    return model.state_dict(), optimizer.state_dict(), logs, step


def test_a_shape_that_cannot_be_recorded_leaves_the_others_their_graphs(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(count: int) -> None:
        if count:
            raise MemoryError("no second arena")

    given = [*batches(4, 3, rng), *batches(4, 2, rng), *batches(2, 3, rng), *batches(1, 2, rng)]
    expected = steps_of(given, records=False)
    recordings = Recordings(monkeypatch, refuse)
    assert_same(steps_of(given), expected)
    assert recordings.tried == 2  # the second shape is not tried again
    assert recordings.replays == 3  # one before, two after the shape that failed
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "A training step on images of shape (2, 3, 8, 8) cannot be recorded as a graph: "
        "MemoryError: no second arena."
    ]


def test_graphs_are_let_go_of_where_they_leave_no_memory_for_another_shape(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    epoch, released = [*batches(4, 3, rng), *batches(1, 2, rng)], []
    recordings = Recordings(monkeypatch)
    monkeypatch.setattr(recorded, "release_memory", released.append)
    found = steps_of(epoch * 2, no_room(recordings, 2))
    assert recordings.tried == 2  # once an epoch
    assert recordings.alive == 0
    assert len(released) == 2
    assert caplog.text.count("are let go of") == 1
    assert_same(found, steps_of(epoch * 2, records=False))


def test_graphs_that_must_make_room_time_and_again_are_given_up(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    given = [*batches(2, 3, rng), *[*batches(1, 3, rng), *batches(1, 2, rng)] * 6]
    recordings = Recordings(monkeypatch)
    found = steps_of(given, no_room(recordings, 2))
    assert recordings.tried == recorded.IN_VAIN + 1  # the other shape once
    assert recordings.alive == 0
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 3
    assert "are let go of for that and recorded again" in said[0]
    assert "cannot be recorded" in said[1]
    assert said[2] == (
        "A training step is no longer recorded: 3 times in a row its graphs had to make room "
        "before they had saved any time."
    )
    assert_same(found, steps_of(given, records=False))


def test_graphs_that_were_repaid_make_room_as_often_as_it_takes(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(recorded, "REPAID", 1)
    epoch = [*batches(2, 3, rng), *batches(1, 2, rng)]  # one recorded, one done again
    recordings = Recordings(monkeypatch)
    steps_of([*batches(2, 3, rng), *epoch * 4], no_room(recordings, 2))
    assert recordings.tried == 4 + 1  # the other shape once
    assert "no longer recorded" not in caplog.text


def test_graphs_go_with_what_made_them(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not when the garbage is collected, with a whole step's memory until then."""
    recordings = Recordings(monkeypatch)
    gc.disable()
    try:
        *_, step = steps_of(batches(WARM_UP + 1, 2, rng))
        assert recordings.alive == 1
        del step, _
        assert recordings.alive == 0
    finally:
        gc.enable()


def test_a_step_that_has_touched_the_weights_is_not_tried_again(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    recordings, tried = Recordings(monkeypatch), []
    *_, step = steps_of(batches(WARM_UP + 1, 3, rng))

    def fails(*args: Any, **kwargs: Any) -> None:
        tried.append(args)
        raise MemoryError("amidst the update")

    monkeypatch.setattr(step.optimizer, "step", fails)
    with pytest.raises(MemoryError, match="amidst the update"):
        step(batches(1, 2, rng)[0], lr=1e-2, seed=0, step=WARM_UP + 1)
    assert len(tried) == 1
    assert recordings.alive == 1


def test_what_a_callback_changes_is_recorded_anew(rng: np.random.Generator) -> None:
    def run_with_decay(records: bool) -> Any:
        model, optimizer = made(), optim.AdamW(weight_decay=0.5)
        step = GraphedStep(
            model,
            optimizer.attach(model),
            softmax_cross_entropy,
            PREPROCESS,
            records=records,
        )
        for number, group in enumerate(given):
            optimizer.weight_decay = 0.5 if number < STEPS else 0.0
            step(group, lr=1e-2, seed=0, step=number)
        return model.state_dict(), optimizer.state_dict(), []

    given = batches(STEPS + 2, 2, rng)
    assert_same(run_with_decay(True), run_with_decay(False))


def test_a_replay_checks_what_a_step_checks(rng: np.random.Generator) -> None:
    model, optimizer = made(), optim.SGD()
    step = GraphedStep(model, optimizer.attach(model), softmax_cross_entropy, PREPROCESS)
    given = batches(STEPS + 1, 2, rng)
    for number, group in enumerate(given[:-1]):
        step(group, lr=1e-2, seed=0, step=number)
    with pytest.raises(ValueError, match="lr must be"):
        step(given[-1], lr=float("nan"), seed=0, step=STEPS)
    model.place(model.xp)
    with pytest.raises(RuntimeError, match="has been placed or moved since"):
        step(given[-1], lr=1e-2, seed=0, step=STEPS)


def test_a_graph_that_cannot_be_is_refused_at_once() -> None:
    model = vitkit.ViT("Ti/4", image_size=8, num_classes=5, dim=32, depth=1, num_heads=1)
    with pytest.raises(BackendError, match="graph=True needs a GPU"):
        vitkit.Trainer(model, graph=True)


def test_inference(rng: np.random.Generator) -> None:
    xp, model = strict_device.xp, made()
    forward = GraphedForward(model)
    for size in (3, 3, 3, 2, 3, 2, 2, 2):
        images = xp.asarray(rng.standard_normal((size, 3, 8, 8), np.float32))
        with strict_device.count_syncs() as syncs:
            logits = forward(images)
        assert syncs == []
        np.testing.assert_array_equal(logits.get(), model(images).get())


def test_numpy_records_nothing() -> None:
    assert not can_record(np)
    with pytest.raises(BackendError, match="numpy cannot be recorded"):
        vitkit.backend.record(lambda: None, xp=np)
