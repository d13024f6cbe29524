"""What a person sees of a run: a progress bar on a terminal, plain lines elsewhere, on stderr."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from vitkit.train.callbacks import Callback
from vitkit.train.state import TrainState
from vitkit.train.step import StepLog

LINE_EVERY = 10.0  # seconds between plain lines inside an epoch


class Console(Callback):
    """Shows rows and steps of a run, and counts of anything else.

    Parameters
    ----------
    quiet : bool, default False
        Whether to show nothing.
    """

    name = "console"

    def __init__(self, *, quiet: bool = False) -> None:
        self.callback = self
        self.quiet = quiet
        self._console = RichConsole(stderr=True, highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._last_line = time.monotonic()
        self._state = TrainState()
        self._text = ""

    def say(self, line: str) -> None:
        """Show a line, above the bar if there is one."""
        if not self.quiet:
            self._console.print(line, markup=False)

    def on_start(self, state: TrainState) -> None:
        """Start the bar, on a terminal."""
        self._state = state
        self._last_line = time.monotonic()
        if self.quiet or not self._console.is_terminal:
            return
        self._bar = self._make_bar()
        self._bar.start()
        self._task = self._bar.add_task("", total=state.total_steps, completed=state.step)

    def on_step_end(self, state: TrainState, log: StepLog) -> None:
        """Move the bar; nothing is read from the device."""
        if self._bar is not None:
            self._bar.update(self._task, completed=state.step)

    def on_end(self, state: TrainState) -> None:
        """Put the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def on_error(self, state: TrainState, error: BaseException) -> None:
        """Put the bar away."""
        self.on_end(state)

    def row(self, row: dict[str, Any]) -> None:
        """Show a row: on the bar while steps go by, as a line at the end of an epoch."""
        if self.quiet:
            return
        text = _describe(row, self._state)
        if row["event"] == "epoch":
            self.say(text)
            self._last_line = time.monotonic()
        elif self._bar is not None:
            self._bar.update(self._task, description=_short(row))
        elif time.monotonic() - self._last_line > LINE_EVERY:
            self.say(text)
            self._last_line = time.monotonic()

    @contextmanager
    def counting(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show how far something that counts to ``total`` has come."""
        if self.quiet or not self._console.is_terminal:
            yield lambda more: None
            return
        with self._make_bar(transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda more: bar.advance(task, more)

    def _make_bar(self, *, transient: bool = False) -> Progress:
        return Progress(
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.description}"),
            console=self._console,
            transient=transient,
        )


def _short(row: dict[str, Any]) -> str:
    return (
        f"epoch {row['epoch'] + 1}  loss {row['train_loss']:.4f}  "
        f"acc {row['train_accuracy']:.2%}  {row['images_per_second']:.0f} img/s"
    )


def _describe(row: dict[str, Any], state: TrainState) -> str:
    """Return a row as a line: where, loss, accuracy, speed, time left."""
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
