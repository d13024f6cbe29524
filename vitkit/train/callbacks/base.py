"""What a callback is: an object of one run, called in list order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitkit.train.state import TrainState
    from vitkit.train.step import StepLog


class LeaveOpen(Exception):
    """Raised by ``on_epoch_end`` to end the run before the end of the epoch is done with.

    The epoch counts as unfinished then, with all its steps made, and a run that goes on from there
    comes to its end again. The text says why, as ``state.stop`` does.
    """


class Callback:
    """Watches a run, and may end it by setting ``state.stop`` to a reason.

    A callback receives the state and what it was constructed with, not the trainer. All methods
    do nothing by default; ``state_dict`` is for callbacks that a resumed run must find as they
    were.
    """

    name: str = ""

    def on_start(self, state: TrainState) -> None:
        """Be called before the first step of ``fit``."""

    def on_step_end(self, state: TrainState, log: StepLog) -> None:
        """Be called after each step; reading an array of ``log`` waits for the device."""

    def on_epoch_end(self, state: TrainState) -> None:
        """Be called after the last step of each epoch, ``state.epoch`` being counted up."""

    def on_end(self, state: TrainState) -> None:
        """Be called when ``fit`` is about to return."""

    def on_error(self, state: TrainState, error: BaseException) -> None:
        """Be called when ``fit`` is about to raise."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run must know, as plain values."""
        return {}

    def load_state_dict(self, values: dict[str, Any]) -> None:
        """Take up what ``state_dict`` returned."""
