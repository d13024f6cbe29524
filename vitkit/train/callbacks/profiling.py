"""Where the time of training steps goes, by operation."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from vitkit.ops import Profile, profiled
from vitkit.ops._profile import Spent
from vitkit.train.callbacks.base import Callback
from vitkit.train.state import TrainState
from vitkit.train.step import StepLog

REST = "everything else"
"""The row of what has no name."""


class Profiling(Callback):
    """Measures a few steps by operation, after others that are left out; changes no result.

    Stands first in the list of callbacks. What happens at the end of an epoch is no part of a step
    and is left out. A run that ends before tells of the steps that were measured, if there are any.

    Parameters
    ----------
    sink : callable
        Called once, with ``"steps"``; ``"seconds"``, the time of one; and ``"rows"``, each with
        ``"name"``, whether it is an ``"operation"``, and its ``"calls"``, ``"seconds"`` and
        ``"share"`` of one step. The last row is what has no name.
    steps : int, default 10
        How many steps to measure.
    warmup : int, default 3
        How many to leave out first: kernels are compiled in them, and memory is allocated.

    Attributes
    ----------
    measured : bool
        Whether the sink has been called.

    Raises
    ------
    ValueError
        If there would be no step to measure.
    """

    name = "profiling"

    def __init__(
        self, sink: Callable[[dict[str, Any]], None], *, steps: int = 10, warmup: int = 3
    ) -> None:
        if steps < 1 or warmup < 1:
            raise ValueError(f"steps and warmup must be 1 or more; got {steps} and {warmup}.")
        self.sink, self.steps, self.warmup = sink, steps, warmup
        self.measured = False
        self._seen = 0
        self._open = ExitStack()
        self._profile: Profile | None = None

    def on_step_end(self, state: TrainState, log: StepLog) -> None:
        """Begin, or end, what is measured."""
        self._seen += 1
        if self._seen == self.warmup:
            self._profile = self._open.enter_context(profiled())
        elif self._seen == self.warmup + self.steps:
            self._finish()

    def on_end(self, state: TrainState) -> None:
        """Tell of the steps there were, if there were fewer."""
        self._finish()

    def on_error(self, state: TrainState, error: BaseException) -> None:
        """Stop the clock."""
        self._open.close()

    def _finish(self) -> None:
        self._open.close()
        profile, self._profile = self._profile, None
        if profile is not None and self._seen > self.warmup:
            self.measured = True
            self.sink(table(profile, self._seen - self.warmup))


def table(profile: Profile, steps: int) -> dict[str, Any]:
    """Return what was measured in several steps as plain values of one; see :class:`Profiling`."""
    total = profile.seconds

    def row(name: str, spent: Spent, operation: bool) -> dict[str, Any]:
        return {
            "name": name,
            "operation": operation,
            "calls": spent.calls / steps,
            "seconds": spent.seconds / steps,
            "share": spent.seconds / total,
        }

    rows = [row(name, spent, True) for name, spent in profile.operations.items()]
    rows += [row(name, spent, False) for name, spent in profile.sections.items()]
    rows.sort(key=lambda each: -float(each["seconds"]))
    rest = Spent(steps, profile.rest.seconds)
    return {"steps": steps, "seconds": total / steps, "rows": [*rows, row(REST, rest, False)]}


def as_lines(found: dict[str, Any]) -> list[str]:
    """Return what :class:`Profiling` found as lines for people; what is no operation in brackets.

    Parameters
    ----------
    found : dict
        What the sink was called with.
    """
    names = [r["name"] if r["operation"] else f"({r['name']})" for r in found["rows"]]
    width = max(map(len, names))
    lines = [f"{'operation':<{width}}  calls/step  ms/step   share"]
    lines += [
        f"{name:<{width}}  {r['calls']:10.1f} {r['seconds'] * 1e3:8.2f} {r['share']:7.1%}"
        for name, r in zip(names, found["rows"], strict=True)
    ]
    whole = f"one step of {found['steps']}"
    return [*lines, f"{whole:<{width}}  {'':10} {found['seconds'] * 1e3:8.2f} {1:7.1%}"]
