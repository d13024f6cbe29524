"""Numbers of a run as rows, and where the rows go."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import vitkit.checkpoint.files as files
from vitkit.backend import Array, to_numpy
from vitkit.train.callbacks.base import Callback
from vitkit.train.loss_scale import TOO_MANY
from vitkit.train.rows import read_rows
from vitkit.train.state import TrainState
from vitkit.train.step import StepLog

LOGGER = logging.getLogger("vitkit")
CURE = "Lower the learning rate; in place of float16, train in bfloat16 or float32."
Row = dict[str, Any]
Sink = Callable[[Row], None]


class Recorder(Callback):
    """Sums loss and accuracy on the device and hands a row to each sink now and then.

    Parameters
    ----------
    sinks : sequence of callable
        Each is called with every row: a dict with ``"event"`` being ``"step"`` or ``"epoch"``.
    every : int, default 50
        Steps between rows; reading the sums waits for the device.

    Raises
    ------
    FloatingPointError
        During training, if the loss of the steps since the last row is not finite, or if the last
        50 steps were all skipped, since their gradients were not finite.
    """

    name = "recorder"

    def __init__(self, sinks: Sequence[Sink], every: int = 50) -> None:
        self.sinks = list(sinks)
        self.every = every
        self._loss: Array = 0.0
        self._correct: Array = 0
        self._norm: Array = None
        self._count: Array = 0
        self._skipped: Array = 0
        self._in_a_row: Array = 0  # of the skipped, the latest
        self._lr = 0.0
        self._epoch_loss, self._epoch_correct, self._epoch_count = 0.0, 0, 0
        self._seen, self._since = 0, 0.0

    def on_start(self, state: TrainState) -> None:
        """Start the clock."""
        self._since = state.seconds

    def on_step_end(self, state: TrainState, log: StepLog) -> None:
        """Add the step up, and hand out a row when one is due."""
        self._loss = self._loss + log.loss * log.count
        self._correct = self._correct + log.correct
        self._norm = log.grad_norm
        self._count = self._count + (log.count if log.counted is None else log.counted)
        if log.skipped is not None:
            self._skipped = self._skipped + log.skipped
            self._in_a_row = (self._in_a_row + 1) * log.skipped
        self._seen += log.count
        self._lr = log.lr
        if state.step % self.every == 0 and (row := self._step_row(state)):
            self._emit(row)

    def on_epoch_end(self, state: TrainState) -> None:
        """Hand out the row of the whole epoch, with what validation has found."""
        self._read()
        if not self._epoch_count and int(self._skipped):
            raise FloatingPointError(f"The training loss of no step was finite. {CURE}")
        count = max(self._epoch_count, 1)
        trained = {
            "train_loss": self._epoch_loss / count,
            "train_accuracy": self._epoch_correct / count,
        }
        state.metrics |= trained
        row = {
            "event": "epoch",
            "step": state.step,
            "epoch": state.epoch,
            "lr": self._lr,
            **trained,
            **state.metrics,
            **self._skips(),
            "seconds": round(state.seconds, 3),
        }
        self._epoch_loss, self._epoch_correct, self._epoch_count = 0.0, 0, 0
        self._emit(row)

    def _step_row(self, state: TrainState) -> Row:
        """Return the row, or an empty one where no loss since the last was finite."""
        loss, correct, count = self._read()
        if not count:
            return {}
        rate = self._seen / max(state.seconds - self._since, 1e-9)
        self._seen, self._since = 0, state.seconds
        skips = self._skips()
        norm = {} if self._norm is None else {"grad_norm": float(to_numpy(self._norm))}
        if skips and not math.isfinite(norm.get("grad_norm", 0.0)):
            norm = {}  # that of a skipped step
        return {
            "event": "step",
            "step": state.step,
            "epoch": state.epoch,
            "lr": self._lr,
            "train_loss": loss / count,
            "train_accuracy": correct / count,
            **norm,
            **skips,
            "images_per_second": round(rate, 1),
            "seconds": round(state.seconds, 3),
        }

    def _read(self) -> tuple[float, int, int]:
        """Return the sums since the last reading; this waits for the device."""
        loss, correct, count = self._finite_loss(), int(self._correct), int(self._count)
        self._epoch_loss += loss
        self._epoch_correct += correct
        self._epoch_count += count
        self._loss, self._correct, self._count = 0.0, 0, 0
        return loss, correct, count

    def _skips(self) -> dict[str, int]:
        """Return how many steps of the run were skipped, if there were any."""
        skipped = int(self._skipped)
        return {"skipped": skipped} if skipped else {}

    def _finite_loss(self) -> float:
        """Return the summed loss; this waits for the device."""
        in_a_row = int(self._in_a_row)
        if in_a_row >= TOO_MANY:
            raise FloatingPointError(
                f"The last {in_a_row} steps were skipped, since their gradients were not finite, "
                f"in float16 even with a loss scale of 1. {CURE} The weights are those before them."
            )
        loss = float(self._loss)
        if not math.isfinite(loss):
            raise FloatingPointError(
                "The training loss is not finite. Lower the learning rate, clip gradients "
                "(max_grad_norm), or look at the data; no checkpoint was written after it."
            )
        return loss

    def _emit(self, row: Row) -> None:
        for sink in self.sinks:
            sink(row)

    def state_dict(self) -> dict[str, Any]:
        """Return the sums of the unfinished epoch, so that its row is right after a resume.

        Checkpoints hold it, so none is written of a run whose loss is not finite.
        """
        return {
            "loss": self._finite_loss(),
            "correct": int(self._correct),
            "count": int(self._count),
            "skipped": int(self._skipped),
            "in_a_row": int(self._in_a_row),
            "lr": self._lr,
            "epoch_loss": self._epoch_loss,
            "epoch_correct": self._epoch_correct,
            "epoch_count": self._epoch_count,
        }

    def load_state_dict(self, values: dict[str, Any]) -> None:
        """Take up the sums of the unfinished epoch."""
        self._loss, self._correct = values["loss"], values["correct"]
        self._count, self._lr = values["count"], values["lr"]
        self._skipped, self._in_a_row = values.get("skipped", 0), values.get("in_a_row", 0)
        self._epoch_loss = values["epoch_loss"]
        self._epoch_correct = values["epoch_correct"]
        self._epoch_count = values["epoch_count"]


def as_line(row: Row, state: TrainState) -> str:
    """Return a row as a line for people: where, loss, accuracy, speed, time left."""
    done, total = row["step"], state.total_steps
    left = row["seconds"] / done * (total - done) if done else 0.0
    width = len(str(state.epochs))
    epoch = row["epoch"] + (row["event"] == "step")
    parts = [
        f"epoch {epoch:>{width}}/{state.epochs}",
        f"loss {row['train_loss']:.4f}",
        f"acc {row['train_accuracy']:.2%}",
    ]
    if "val_loss" in row:
        parts.append(f"val loss {row['val_loss']:.4f}  val acc {row['val_accuracy']:.2%}")
    if "skipped" in row:
        parts.append(f"{row['skipped']} skipped")
    if "images_per_second" in row:
        parts.append(f"{row['images_per_second']:.0f} img/s")
    parts.append(f"{_clock(row['seconds'])} done, {_clock(left)} left")
    return "  ".join(parts)


def _clock(seconds: float) -> str:
    """Return seconds as ``12s``, ``3m05s`` or ``2h07m``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02}m"


class JsonLines:
    """A sink that appends each row to a file, one JSON object a line.

    Parameters
    ----------
    path : Path
        The file.
    state : TrainState, optional
        Where a run goes on: rows of later steps and epochs, which are about to be made again, are
        dropped.
    """

    def __init__(self, path: Path, state: TrainState | None = None) -> None:
        self.path = path
        start = state or TrainState()
        rows, spoiled = read_rows(path)
        if spoiled:
            LOGGER.warning(f"{path} has {spoiled} lines that are no rows: they are left out.")
        kept = [json.dumps(row) for row in rows if _is_before(row, start)]
        files.write_file(path, "".join(f"{line}\n" for line in kept))

    def __call__(self, row: Row) -> None:
        """Append ``row``."""
        files.append_line(self.path, json.dumps(row))


def _is_before(row: Row, state: TrainState) -> bool:
    done = state.step if row["event"] == "step" else state.epoch
    return bool(row[row["event"]] <= done)
