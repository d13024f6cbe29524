"""What a checkpoint of a run is about to hold, and what of it cannot be kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vitkit.checkpoint.contents import ARRAYS, PLAIN, not_finite, unplain, unwritable
from vitkit.errors import CheckpointError, blaming
from vitkit.train.callbacks.base import Callback
from vitkit.train.state import TrainState

CURE = "lower the learning rate, and go on from the last checkpoint"


class StateError(CheckpointError):
    """The state of a part of a run cannot be kept; the message names the part and says why."""


@dataclass
class Content:
    """The states of a run's parts.

    Attributes
    ----------
    state : dict
        How far the run has come.
    callbacks : dict of str to dict
        What callbacks keep, by name.
    arrays : dict of str to dict of str to array
        What model, optimizer and average keep, by file.
    problems : list of StateError
        One for each state that is missing, since it cannot be kept.
    """

    state: dict[str, Any]
    callbacks: dict[str, dict[str, Any]] = field(default_factory=dict)
    arrays: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: list[StateError] = field(default_factory=list)

    @classmethod
    def of(cls, state: TrainState, callbacks: Sequence[Callback]) -> Content:
        """Return the states as they are now, but for the arrays.

        Raises
        ------
        FloatingPointError
            If a callback says that the run's numbers are not finite.
        """
        content = cls(state.to_dict())
        wrong = unplain(state.metrics)
        if wrong:
            content.state["metrics"] = {}
            content.problems.append(_unkept("state.metrics", f"got {wrong}; expected {PLAIN}"))
        for callback in callbacks:
            who = f"The state of callback {callback.name!r} ({type(callback).__qualname__})"
            kept = content._taken(callback, who, unplain, PLAIN)
            if kept:
                content.callbacks[callback.name] = kept
        return content

    def add_arrays(self, sources: Mapping[str, tuple[str, Any]]) -> None:
        """Take the arrays as they are now.

        Parameters
        ----------
        sources : mapping of str to tuple of str and object
            By file, what messages call the object, and the object, or None.
        """
        for stem, (word, source) in sources.items():
            if source is not None:
                who = f"The state of {word} {type(source).__qualname__}"
                kept = self._taken(source, who, unwritable, ARRAYS)
                wrong = "" if kept is None else not_finite(kept)
                if wrong:
                    self.problems.append(_unkept(who, f"{wrong}; {CURE}"))
                elif kept is not None:
                    self.arrays[stem] = kept

    def _taken(
        self, source: Any, who: str, wrong_in: Callable[[Any], str], expected: str
    ) -> dict[str, Any] | None:
        """Return what ``source.state_dict()`` returns, if a checkpoint can hold it."""
        try:
            kept: dict[str, Any] = source.state_dict()
        except FloatingPointError:  # which is how a run says that it must not be kept
            raise
        except Exception as error:
            problem = _unkept(who, f"state_dict() raised {type(error).__name__}: {error}")
            problem.__cause__ = error
        else:
            wrong = wrong_in(kept)
            if not wrong:
                return kept
            problem = _unkept(who, f"state_dict() returned {wrong}; expected {expected}")
        self.problems.append(blaming(problem, source))
        return None


def _unkept(who: str, what: str) -> StateError:
    return StateError(f"{who} cannot be saved: {what}.")
