"""Runs in float16 in which steps are skipped: what is told of them, and when they are too many."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from spoiling import Spoiling, assert_same_bits

from vitkit.data import ArrayDataset, Loader
from vitkit.models import ViT
from vitkit.ops import softmax_cross_entropy
from vitkit.train import StepLog, Trainer, TrainState
from vitkit.train.callbacks import Callback, JsonLines, Recorder, as_line
from vitkit.train.loss_scale import TOO_MANY

MakeData = Callable[..., ArrayDataset]
MakeModel = Callable[..., ViT]


def fit(
    model: ViT,
    data: ArrayDataset,
    *callbacks: Callback,
    loss: Any = softmax_cross_entropy,
    epochs: int = 1,
    **options: Any,
) -> tuple[Trainer, TrainState]:
    trainer = Trainer(model, loss=loss, callbacks=callbacks, **options)
    return trainer, trainer.fit(Loader(data, 4), epochs=epochs)


def test_rows_tell_of_skipped_steps(half: MakeModel, make_data: MakeData) -> None:
    rows: list[dict[str, Any]] = []
    loss = Spoiling(1, 4, loss=float("nan"))
    trainer, state = fit(half(), make_data(), Recorder([rows.append], every=2), loss=loss)
    assert (state.step, trainer.optimizer.state_dict()["step"]) == (7, 5)
    assert [(row["step"], row.get("skipped")) for row in rows] == [(2, 1), (4, 1), (6, 2), (7, 2)]
    assert all(np.isfinite(row["train_loss"]) and row["train_loss"] > 0 for row in rows)
    assert "grad_norm" not in rows[0]
    assert "  2 skipped  " in as_line(rows[-1], state)
    assert "skipped" not in as_line({k: v for k, v in rows[-1].items() if k != "skipped"}, state)


def test_means_are_over_the_images_whose_loss_is_finite(
    half: MakeModel, make_data: MakeData
) -> None:
    class Losses(Callback):
        def __init__(self) -> None:
            self.logs: list[StepLog] = []

        def on_step_end(self, state: TrainState, log: StepLog) -> None:
            self.logs.append(log)

    rows: list[dict[str, Any]] = []
    seen, loss = Losses(), Spoiling(0, 3, 6, loss=float("inf"))
    fit(half(), make_data(), seen, Recorder([rows.append]), loss=loss)
    kept = [log for log in seen.logs if not bool(log.skipped)]
    assert [int(log.counted) for log in seen.logs] == [0, 4, 4, 0, 4, 4, 0]
    images = sum(log.count for log in kept)
    mean = sum(float(log.loss) * log.count for log in kept) / images
    assert rows[-1]["train_loss"] == pytest.approx(mean, rel=1e-6)
    right = sum(int(log.correct) for log in kept) / images
    assert rows[-1]["train_accuracy"] == pytest.approx(right, rel=1e-12)


def test_a_skipped_step_whose_loss_is_finite_counts(half: MakeModel, make_data: MakeData) -> None:
    rows: list[dict[str, Any]] = []
    fit(half(), make_data(), Recorder([rows.append], every=1), loss=Spoiling(0))
    first = rows[0]
    assert (first["step"], first["skipped"]) == (1, 1)
    assert first["train_loss"] == pytest.approx(np.log(4), rel=1e-6)  # the head is zero


def test_steps_without_a_finite_loss_have_no_row(
    half: MakeModel, make_data: MakeData, tmp_path: Path
) -> None:
    path = tmp_path / "metrics.jsonl"
    loss = Spoiling(0, 1, 2, loss=float("nan"))
    fit(half(), make_data(), Recorder([JsonLines(path)], every=1), loss=loss)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(r["event"], r["step"], r["skipped"]) for r in rows] == [
        *(("step", step, 3) for step in (4, 5, 6, 7)),
        ("epoch", 7, 3),
    ]


def test_an_epoch_without_a_finite_loss_is_an_error(half: MakeModel, make_data: MakeData) -> None:
    loss = Spoiling(*range(99), loss=float("nan"))
    with pytest.raises(FloatingPointError, match="loss of no step was finite"):
        fit(half(), make_data(), Recorder([]), loss=loss)


@pytest.mark.parametrize(("every", "at"), [(1, 53), (7, 56), (10, 56), (500, 56)])
def test_a_run_that_only_skips_is_ended(
    every: int, at: int, half: MakeModel, make_data: MakeData
) -> None:
    """After three good steps; the numbers are read every few steps, and each 7, an epoch's end."""
    model, weights = half(), []

    class Watch(Callback):
        def on_step_end(self, state: TrainState, log: StepLog) -> None:
            weights.append(model.state_dict())

    trainer = Trainer(
        model, loss=Spoiling(*range(3, 999)), callbacks=[Watch(), Recorder([], every=every)]
    )
    with pytest.raises(FloatingPointError) as error:
        trainer.fit(Loader(make_data(), 4), epochs=20)
    assert TOO_MANY == 50
    assert len(weights) == at
    assert str(error.value) == (
        f"The last {at - 3} steps were skipped, since their gradients were not finite, in float16 "
        "even with a loss scale of 1. Lower the learning rate; in place of float16, train in "
        "bfloat16 or float32. The weights are those before them."
    )
    assert_same_bits(weights[-1], weights[2])


def test_skips_that_end_in_time_end_nothing(half: MakeModel, make_data: MakeData) -> None:
    loss = Spoiling(*range(1, 50), *range(51, 100))  # 49 in a row, twice
    trainer, state = fit(half(), make_data(), Recorder([], every=1), loss=loss, epochs=16)
    assert state.step == 16 * 7
    assert trainer.loss_scale is not None
    assert int(trainer.loss_scale.skipped) == 98
    assert float(trainer.loss_scale.scale) == 1.0
