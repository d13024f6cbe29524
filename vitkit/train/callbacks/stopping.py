"""Reasons from outside to end a run: the clock and signals. Both wait for the step to finish."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

from vitkit.signals import STOPPED, leave, leaves
from vitkit.train.callbacks.base import Callback
from vitkit.train.state import TrainState
from vitkit.train.step import StepLog


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

    The handler only sets a flag, after which a handler of your own is called; a second signal
    leaves at once. Earlier handlers are put back when ``fit`` ends, a signal that is ignored stays
    so, and signals are left alone outside the main thread. Stands last in the list of callbacks,
    so that a signal during validation or the last checkpoint is not missed.

    Attributes
    ----------
    reason : str
        ``"interrupted"`` or ``"terminated"`` once a signal has come; callbacks that take long may
        look at it.
    """

    name = "signals"

    def __init__(self) -> None:
        self.reason = ""
        self._before: dict[signal.Signals, Any] = {}

    def on_start(self, state: TrainState) -> None:
        """Take over the signals."""
        self.reason = ""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in STOPPED:
            # What is ignored stays so; a handler that is None could not be put back.
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._before[number] = signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        second = bool(self.reason)
        self.reason = self.reason or STOPPED[signal.Signals(number)]
        earlier = self._before.get(signal.Signals(number))
        if callable(earlier) and not leaves(earlier):
            earlier(number, frame)
        if second:
            leave(number, frame)

    def on_step_end(self, state: TrainState, log: StepLog) -> None:
        """End the run if a signal has come."""
        state.stop = self.reason or state.stop

    def on_epoch_end(self, state: TrainState) -> None:
        """End the run if a signal has come during validation."""
        state.stop = self.reason or state.stop

    def on_end(self, state: TrainState) -> None:
        """Give the signals back."""
        self._give_back()  # first, or a signal just before it would be missed
        state.stop = self.reason or state.stop

    def on_error(self, state: TrainState, error: BaseException) -> None:
        """Give the signals back."""
        self._give_back()

    def _give_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
