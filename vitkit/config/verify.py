"""A part of a run, executed once more and compared bit for bit with what the run recorded."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import vitkit.checkpoint.files as files
from vitkit.checkpoint.runs import Entry, entries
from vitkit.config.load import load
from vitkit.config.prepare import prepare
from vitkit.config.runner import Display, Run
from vitkit.errors import CheckpointError, ConfigError
from vitkit.signals import Terminated
from vitkit.train.callbacks import Callback, Checkpointing, JsonLines, TimeLimit
from vitkit.train.callbacks.logging import Row
from vitkit.train.environment import differences, numerics
from vitkit.train.rows import read_rows
from vitkit.train.state import TrainState
from vitkit.train.step import StepLog

MOST = 100
"""Steps that are executed again where nobody says how many."""
CLOCK = ("seconds", "images_per_second")
"""What no two executions have alike."""


@dataclass
class Verified:
    """What came of executing steps again.

    Attributes
    ----------
    start : str
        The checkpoint they began at.
    steps : int
        How many were made.
    compared : list of dict
        For each checkpoint and for the rows of ``metrics.jsonl``: ``"what"``, ``"same"``, and
        ``"differs"``, a line for each difference.
    twice : bool
        Whether the run had recorded nothing in reach, so that two executions were compared.
    environment : list of str
        In what this process computes otherwise than the run did.
    """

    start: str
    steps: int
    compared: list[dict[str, Any]] = field(default_factory=list)
    twice: bool = False
    environment: list[str] = field(default_factory=list)

    @property
    def same(self) -> bool:
        """Whether everything was the same."""
        return all(each["same"] for each in self.compared)


class _Stop(Callback):
    """Writes the checkpoints that are to be compared, and ends the run."""

    name = "verify"

    def __init__(self, checkpointing: Checkpointing, steps: set[int], last: int) -> None:
        self.checkpointing, self.steps, self.last = checkpointing, steps, last

    def on_step_end(self, state: TrainState, log: StepLog) -> None:
        """Write and end where it is time."""
        if state.step in self.steps:
            self.checkpointing.save(state)
        ends = state.step == (state.epoch + 1) * state.steps_per_epoch
        if state.step >= self.last and not ends:
            state.stop = "verified"

    def on_epoch_end(self, state: TrainState) -> None:
        """End where the last step was that of an epoch, which has been ended too."""
        if state.step >= self.last:
            state.stop = "verified"


def verify(
    run: Path, display: Display, *, steps: int | None = None, start: str | None = None
) -> Verified:
    """Execute steps of a run again from a checkpoint, and compare what they leave.

    The hashes of weights, optimizer state and averaged weights are compared with those of each
    later checkpoint in reach, and the numbers with ``metrics.jsonl``; where the run has recorded
    nothing in reach, the steps are executed twice. The run folder is left as it is.

    Parameters
    ----------
    run : Path
        The run folder.
    display : Display
        What shows the progress.
    steps : int, optional
        How many; by default to the last thing recorded, and at most 100.
    start : str, optional
        The name of the checkpoint to begin at; by default the latest with another after it, or
        the latest.

    Returns
    -------
    Verified
        What was compared, and what differs.

    Raises
    ------
    ConfigError
        If there is no such checkpoint.
    CheckpointError
        If it cannot be trusted, or is that of a finished run and no other is there.
    """
    known = [entry for entry in entries(run) if entry.whole][::-1]
    first = _start(run, known, start)
    checkpoint = files.load(first.path)
    state = TrainState.from_dict(checkpoint.documents["trainer"]["state"])
    rows = _rows(run / "metrics.jsonl", state.step)
    recorded = [*(entry.step for entry in known), *(row["step"] for row in rows), state.step]
    last = state.step + (steps or min(MOST, max(recorded) - state.step) or MOST)
    later = [entry for entry in known if state.step < entry.step <= last]
    found = Verified(first.path.name, 0)
    with tempfile.TemporaryDirectory(prefix="vitkit-verify-") as folder:
        again = Path(folder) / "first"
        end, environment = _execute(run, checkpoint, again, display, later, last)
        found.steps, found.environment = end - state.step, environment
        if not found.steps:
            names = [each.path.name for each in known if each.step < state.step]
            raise CheckpointError(
                f"{first.path} is the end of its run: there is no step to execute. Name an earlier "
                f"one with --from: {', '.join(names) or 'there is none'}."
            )
        found.compared = [_compare(entry, again) for entry in later if entry.step <= end]
        made = _rows(again / "metrics.jsonl", state.step)
        if rows := [row for row in rows if row["step"] <= end]:
            found.compared.append(_compare_rows(rows, made))
        if not found.compared:
            found.twice, second = True, Path(folder) / "second"
            _execute(run, checkpoint, second, display, later, last)
            found.compared = [_compare(entry, again) for entry in entries(second)]
    return found


def _start(run: Path, known: list[Entry], name: str | None) -> Entry:
    """Return the checkpoint to begin at."""
    if not known:
        raise CheckpointError(f"{run} holds no checkpoint to begin at. Name a run folder.")
    if name is None:
        return known[-2] if len(known) > 1 else known[-1]
    for entry in known:
        if entry.path.name == name:
            return entry
    names = ", ".join(entry.path.name for entry in known)
    raise ConfigError(f"--from: got {name!r}, expected one of {names}.")


def _execute(
    run: Path,
    checkpoint: files.Checkpoint,
    folder: Path,
    display: Display,
    later: list[Entry],
    last: int,
) -> tuple[int, list[str]]:
    """Train in another folder; return the step reached, and what differs in the environment."""
    folder.mkdir()
    shutil.copyfile(run / "config.toml", folder / "config.toml")
    prepared = prepare(load([run / "config.toml"], environ={}))
    whole = Run(prepared, folder, display, checkpoint)
    whole.checkpointing.keep = 2 * last + 2  # whatever is written: that is what is compared
    whole.checkpointing.every_steps = None
    unended = {entry.step for entry in later if not entry.ended or not _ends(entry, checkpoint)}
    whole.callbacks = [each for each in whole.callbacks if not isinstance(each, TimeLimit)]
    whole.callbacks.append(_Stop(whole.checkpointing, unended, last))
    whole.recorder.sinks.append(JsonLines(folder / "metrics.jsonl", whole.state))
    whole.train()
    if whole.state.stop == "interrupted":
        raise KeyboardInterrupt
    if whole.state.stop == "terminated":
        raise Terminated
    now = numerics(prepared.parts.model.xp)
    return whole.state.step, differences(checkpoint.environment, now)


def _ends(entry: Entry, checkpoint: files.Checkpoint) -> bool:
    """Whether a checkpoint was written at the end of an epoch, where another will be."""
    per_epoch = int(checkpoint.documents["trainer"]["state"]["steps_per_epoch"])
    return entry.step % per_epoch == 0


def _compare(recorded: Entry, folder: Path) -> dict[str, Any]:
    """Compare a checkpoint with that of the same place in another run folder."""
    place = (recorded.step, recorded.ended)
    made = next((each for each in entries(folder) if (each.step, each.ended) == place), None)
    if made is None:
        lines = ["it was not reached again"]
        return {"what": recorded.path.name, "same": False, "equal": [], "differs": lines}
    ours, theirs = files.verify(recorded.path), files.verify(made.path)
    arrays = [name for name in ours if name.endswith(".safetensors")]
    differs = [name for name in arrays if theirs.get(name) != ours[name]]
    lines = []
    if differs:
        one, two = files.load(recorded.path).arrays, files.load(made.path).arrays
        for stem in (name.removesuffix(".safetensors") for name in differs):
            lines += _differences(stem, one[stem], two.get(stem, {}))
    same = [name.removesuffix(".safetensors") for name in arrays if name not in differs]
    return {"what": recorded.path.name, "same": not lines, "equal": same, "differs": lines}


def _differences(
    stem: str, ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]
) -> list[str]:
    """Return a line on the first array that differs, and how many do."""
    other = [
        name
        for name, array in ours.items()
        if name not in theirs or array.tobytes() != theirs[name].tobytes()
    ]
    if not other:
        return []
    name = other[0]
    if name not in theirs or theirs[name].shape != ours[name].shape:
        return [f"{stem}: {name} is missing or has another shape"]
    gap = np.abs(ours[name].astype("float64") - theirs[name].astype("float64")).max()
    return [f"{stem}: {len(other)} of {len(ours)} arrays differ, {name} by up to {gap:.3g}"]


def _rows(path: Path, after: int) -> list[Row]:
    """Return the rows of steps and epochs after a step, without what the clock says."""
    return [
        {key: value for key, value in row.items() if key not in CLOCK}
        for row in read_rows(path)[0]
        if row["step"] > after
    ]


def _compare_rows(recorded: list[Row], made: list[Row]) -> dict[str, Any]:
    """Compare rows with those that were made again at the same places."""
    by_place = {(row["event"], row["step"]): row for row in made}
    lines = []
    for row in recorded:
        other = by_place.get((row["event"], row["step"]))
        if other is None:
            continue  # an epoch that was not ended again, or logged more often than now
        wrong = [key for key, value in row.items() if other.get(key) != value]
        lines += [
            f"{row['event']} {row['step']}: {key} was {row[key]}, is {other.get(key)}"
            for key in wrong
        ]
    count = sum((row["event"], row["step"]) in by_place for row in recorded)
    return {"what": "metrics.jsonl", "rows": count, "same": not lines, "differs": lines}
