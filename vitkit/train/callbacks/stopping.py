"""Reasons from outside to end a run: the clock and signals. Both wait for the step to finish."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

from vitkit.train.callbacks.base import Callback
from vitkit.train.state import TrainState
from vitkit.train.step import StepLog

SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class SecondSignal(SystemExit):
    """Leaves at once, with the exit code of a second SIGTERM."""


class TimeLimit(Callback):
    """Ends the run at the first step past a time limit.

    Parameters
    ----------
    seconds : float
        How long this part of the run may take.
    """

    name = "time_limit"

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._start = 0.0

    def on_start(self, state: TrainState) -> None:
        """Start the clock."""
        self._start = time.monotonic()

    def on_step_end(self, state: TrainState, log: StepLog) -> None:
        """Look at the clock."""
        if time.monotonic() - self._start > self.seconds:
            state.stop = f"time limit of {self.seconds:g} s"


class StopOnSignal(Callback):
    """Ends the run at the step that a SIGINT (Ctrl-C) or SIGTERM finds it in.

    The handler only sets a flag; a second signal leaves at once. Earlier handlers are put back
    when ``fit`` ends, and signals are left alone outside the main thread. Stands last in the list
    of callbacks, so that a signal during validation or the last checkpoint is not missed.
    """

    name = "signals"

    def __init__(self) -> None:
        self.reason = ""
        self._before: dict[signal.Signals, Any] = {}

    def on_start(self, state: TrainState) -> None:
        """Take over the signals."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.reason:
            raise KeyboardInterrupt if number == signal.SIGINT else SecondSignal(128 + number)
        self.reason = SIGNALS[signal.Signals(number)]

    def on_step_end(self, state: TrainState, log: StepLog) -> None:
        """End the run if a signal has come."""
        state.stop = self.reason or state.stop

    def on_epoch_end(self, state: TrainState) -> None:
        """End the run if a signal has come during validation."""
        state.stop = self.reason or state.stop

    def on_end(self, state: TrainState) -> None:
        """Give the signals back."""
        state.stop = self.reason or state.stop
        self._give_back()

    def on_error(self, state: TrainState, error: BaseException) -> None:
        """Give the signals back."""
        self._give_back()

    def _give_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
