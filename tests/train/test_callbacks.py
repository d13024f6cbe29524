"""Rows and where they go, best values, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vitkit
from vitkit.backend import ArrayModule
from vitkit.data import ArrayDataset, Loader
from vitkit.models import ViT
from vitkit.train import StepLog, Trainer, TrainState
from vitkit.train.callbacks import JsonLines, Recorder, StopOnSignal, as_line
from vitkit.train.callbacks.evaluation import Best

MakeData = Callable[..., ArrayDataset]
MakeModel = Callable[..., ViT]


def steps(recorder: Recorder, state: TrainState, xp: ArrayModule, *numbers: int) -> None:
    """Let the recorder see steps whose mean loss is the number of the step."""
    for number in numbers:
        state.step, state.seconds = number, float(number)
        recorder.on_step_end(state, StepLog(xp.asarray(float(number)), xp.asarray(2), 4, None, 0.1))


def test_rows_hold_means_over_the_images_since_the_row_before(xp: ArrayModule) -> None:
    rows: list[dict[str, Any]] = []
    recorder, state = Recorder([rows.append], every=3), TrainState(steps_per_epoch=5, epochs=1)
    recorder.on_start(state)
    steps(recorder, state, xp, 1, 2, 3, 4, 5)
    state.epoch = 1
    state.metrics = {"val_loss": 0.5, "val_accuracy": 0.25}
    recorder.on_epoch_end(state)
    step, epoch = rows
    assert step == {
        **{"event": "step", "step": 3, "epoch": 0, "lr": 0.1, "train_loss": 2.0},
        **{"train_accuracy": 0.5, "images_per_second": 4.0, "seconds": 3.0},
    }
    assert epoch == {
        **{"event": "epoch", "step": 5, "epoch": 1, "lr": 0.1, "train_loss": 3.0},
        **{"train_accuracy": 0.5, "val_loss": 0.5, "val_accuracy": 0.25, "seconds": 5.0},
    }
    assert state.metrics["train_loss"] == 3.0  # so that it can be monitored


@pytest.mark.parametrize("at", [1, 2, 3, 4, 5])
def test_the_row_of_an_epoch_is_right_after_a_resume_within_it(at: int, xp: ArrayModule) -> None:
    rows: list[dict[str, Any]] = []
    first, state = Recorder([rows.append], every=3), TrainState()
    first.on_start(state)
    steps(first, state, xp, *range(1, at + 1))
    second = Recorder([rows.append], every=3)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    second.on_start(state)
    steps(second, state, xp, *range(at + 1, 6))
    state.epoch = 1
    second.on_epoch_end(state)
    whole: list[dict[str, Any]] = []
    straight, state = Recorder([whole.append], every=3), TrainState()
    straight.on_start(state)
    steps(straight, state, xp, 1, 2, 3, 4, 5)
    state.epoch = 1
    straight.on_epoch_end(state)
    assert rows[-1] == whole[-1]
    rate = "images_per_second"
    assert [{**r, rate: 0} for r in rows[:-1]] == [{**r, rate: 0} for r in whole[:-1]]


def row(event: str, step: int, epoch: int) -> dict[str, Any]:
    return {"event": event, "step": step, "epoch": epoch}


def test_rows_that_will_be_made_again_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    before = [row("step", 5, 0), row("step", 10, 0), row("epoch", 10, 1), row("step", 15, 1)]
    after = [row("step", 20, 1), row("epoch", 20, 2)]
    path.write_text("".join(json.dumps(r) + "\n" for r in before + after) + '{"event": "st')
    JsonLines(path, TrainState(step=17, epoch=1))({"new": True})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [*before, {"new": True}]


def test_the_row_of_an_epoch_whose_end_is_to_come_again_is_dropped(tmp_path: Path) -> None:
    """Stopped at the last step, resumed, and killed between the row and the next checkpoint."""
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(row("step", 10, 0)) + "\n" + json.dumps(row("epoch", 10, 1)) + "\n")
    JsonLines(path, TrainState(step=10, epoch=0))
    assert [json.loads(line) for line in path.read_text().splitlines()] == [row("step", 10, 0)]


def test_a_run_from_the_start_begins_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(row("step", 1, 0)) + "\n")
    JsonLines(path)
    assert path.read_text() == ""


def test_a_line_says_where_a_run_is() -> None:
    state = TrainState(epochs=10, steps_per_epoch=100)
    step = {"event": "step", "step": 250, "epoch": 2, "train_loss": 0.5, "train_accuracy": 0.875}
    assert as_line({**step, "images_per_second": 12.3, "seconds": 100.0}, state) == (
        "epoch  3/10  loss 0.5000  acc 87.50%  12 img/s  1m40s done, 5m00s left"
    )
    end = {**step, "event": "epoch", "step": 300, "epoch": 3, "val_loss": 1.0, "val_accuracy": 1.0}
    assert as_line({**end, "seconds": 3600.0}, state) == (
        "epoch  3/10  loss 0.5000  acc 87.50%  val loss 1.0000  val acc 100.00%  "
        "1h00m done, 2h20m left"
    )


@pytest.mark.parametrize(
    ("mode", "values", "improved"),
    [
        ("min", [2.0, 2.0, 1.0, float("nan"), 1.5, 0.95, 0.5], [1, 0, 1, 0, 0, 0, 1]),
        ("max", [0.5, 0.4, 0.55, 0.7, float("inf")], [1, 0, 0, 1, 0]),
    ],
)
def test_best_is_finite_and_better_by_min_delta(
    mode: str, values: list[float], improved: list[int]
) -> None:
    best = Best("x", mode, min_delta=0.1)
    assert [best.improved(TrainState(metrics={"x": value})) for value in values] == improved
    assert not best.improved(TrainState())
    with pytest.raises(ValueError, match="'min' or 'max'; got 'most'"):
        Best("x", "most")


@pytest.fixture
def handled() -> StopOnSignal:
    return StopOnSignal()


@pytest.mark.parametrize(
    ("number", "reason", "leaves_by"),
    [
        (signal.SIGINT, "interrupted", KeyboardInterrupt),
        (signal.SIGTERM, "terminated", SystemExit),
    ],
)
def test_the_first_signal_ends_at_the_step_and_the_second_at_once(
    number: signal.Signals,
    reason: str,
    leaves_by: type[BaseException],
    make_data: MakeData,
    make_model: MakeModel,
    handled: StopOnSignal,
) -> None:
    class Press(StopOnSignal):
        def on_step_end(self, state: TrainState, log: Any) -> None:
            if state.step == 3:
                os.kill(os.getpid(), number)
            super().on_step_end(state, log)

    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    state = Trainer(make_model(), callbacks=[Press()]).fit(Loader(make_data(), 4), epochs=2)
    assert (state.step, state.stop) == (3, reason)
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before

    handled.on_start(state)
    os.kill(os.getpid(), number)
    with pytest.raises(leaves_by) as left:
        os.kill(os.getpid(), number)
    if leaves_by is SystemExit:
        assert left.value.code == 143
    handled.on_error(state, left.value)
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("event", ["on_epoch_end", "on_end"])
def test_a_signal_during_validation_or_the_last_checkpoint_is_not_missed(
    event: str, handled: StopOnSignal
) -> None:
    state = TrainState()
    handled.on_start(state)
    os.kill(os.getpid(), signal.SIGINT)
    getattr(handled, event)(state)
    assert state.stop == "interrupted"
    handled.on_end(state)


def test_other_reasons_to_stop_stay(handled: StopOnSignal) -> None:
    state = TrainState(stop="time limit")
    handled.on_epoch_end(state)
    handled.on_end(state)
    assert state.stop == "time limit"


def test_signals_are_left_alone_outside_the_main_thread(handled: StopOnSignal) -> None:
    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=handled.on_start, args=(TrainState(),))
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) is before


STUCK = """
import sys, time
from vitkit import ViT, Trainer
from vitkit.data import Loader, digits
from vitkit.train.callbacks import StopOnSignal

def loss(logits, labels, *, xp):
    print("stuck", flush=True)
    time.sleep(60)

model = ViT("Ti/4", image_size=8, in_channels=1, num_classes=10, dim=8, depth=1, num_heads=1)
Trainer(model, loss=loss, callbacks=[StopOnSignal()]).fit(Loader(digits().test, 8))
"""


def test_a_second_signal_leaves_a_step_that_does_not_end() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(vitkit.__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "stuck\n"
    process.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.terminate()
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 143, errors
