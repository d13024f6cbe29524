"""What a person sees of a run: a progress bar on a terminal, plain lines elsewhere, on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from vitkit.train.callbacks import Callback, as_line
from vitkit.train.state import TrainState
from vitkit.train.step import StepLog

LINE_EVERY = 10.0  # seconds between plain lines inside an epoch


class Console(Callback):
    """Shows rows and steps of a run, and counts of anything else.

    Parameters
    ----------
    quiet : bool, default False
        Whether to show nothing but warnings.
    """

    name = "console"

    def __init__(self, *, quiet: bool = False) -> None:
        self.callback = self
        self.quiet = quiet
        self._console = RichConsole(stderr=True, highlight=False, soft_wrap=True)
        # FORCE_COLOR makes Rich believe in a terminal; a bar still needs a real one.
        self._has_bar = not quiet and self._console.is_interactive and sys.stderr.isatty()
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._last_line = time.monotonic()
        self._state = TrainState()

    def say(self, line: str) -> None:
        """Show a line, above the bar if there is one."""
        if not self.quiet:
            self.warn(line)

    def warn(self, line: str) -> None:
        """Show a line, even where nothing else is shown."""
        self._console.print(line, markup=False)

    def on_start(self, state: TrainState) -> None:
        """Start the bar, on a terminal."""
        self._state = state
        self._last_line = time.monotonic()
        if not self._has_bar:
            return
        self._bar = self._make_bar(MofNCompleteColumn())
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
        text = as_line(row, self._state)
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
        with self._make_bar(MofNCompleteColumn(), transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda more: bar.advance(task, more)

    @contextmanager
    def downloading(self, doing: str = "downloading") -> Iterator[Callable[[str, int, int], None]]:
        """Show how much of each file has come: its name, the bytes so far, the bytes in all."""
        tasks: dict[str, TaskID] = {}
        with self._make_bar(DownloadColumn()) as bar:

            def progress(file: str, done: int, total: int) -> None:
                if file not in tasks:
                    tasks[file] = bar.add_task(file, total=total)
                    if not self._has_bar:
                        self.say(f"{doing} {file}, {total / 1e6:.1f} MB")
                bar.update(tasks[file], completed=done)

            yield progress

    @contextmanager
    def compiling(self) -> Iterator[Callable[[str, int, int], None]]:
        """Show what is compiled: its name, how many are done, how many there are."""
        with self._make_bar(MofNCompleteColumn(), transient=True) as bar:
            task = bar.add_task("")

            def progress(name: str, done: int, total: int) -> None:
                bar.update(task, completed=done, total=total, description=name)
                if not self._has_bar:
                    self.say(f"compiling {name} ({done + 1} of {total})")

            yield progress

    def _make_bar(self, count: ProgressColumn, *, transient: bool = False) -> Progress:
        return Progress(
            BarColumn(bar_width=20),
            count,
            TimeRemainingColumn(compact=True),
            TextColumn("{task.description}"),
            console=self._console,
            transient=transient,
            disable=not self._has_bar,
        )


def _short(row: dict[str, Any]) -> str:
    return (
        f"epoch {row['epoch'] + 1}  loss {row['train_loss']:.4f}  "
        f"acc {row['train_accuracy']:.2%}  {row['images_per_second']:.0f} img/s"
    )
