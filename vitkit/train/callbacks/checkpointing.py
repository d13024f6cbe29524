"""Checkpoints during a run: the latest few, the best one, and no others kept."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import vitkit.checkpoint.files as files
import vitkit.checkpoint.runs as runs
from vitkit.errors import CheckpointError
from vitkit.nn.module import Module
from vitkit.optim import EMA, Optimizer
from vitkit.signals import Terminated
from vitkit.train.callbacks.base import Callback
from vitkit.train.callbacks.content import Content, StateError
from vitkit.train.callbacks.evaluation import Best
from vitkit.train.loss_scale import LossScale
from vitkit.train.state import TrainState
from vitkit.train.step import StepLog


class Checkpointing(Callback):
    """Writes ``checkpoints/step-NNNNNNNN`` at the end of epochs, and when the run is stopped.

    ``last.json`` and ``best.json`` in the run folder name the latest and the best of them. These
    are kept, with those just before the latest, to go on from where it is damaged, that which the
    run was resumed from, and the best of each; the others are removed. A run that breaks is written
    too, as it was after its last finished step. Where that cannot be, since an update was half made
    or a state cannot be kept, the checkpoint is called ``step-NNNNNNNN-partial``, and becomes the
    last only where there is no other.

    Parameters
    ----------
    folder : Path
        The run folder.
    model : Module
        The model.
    optimizer : Optimizer
        The optimizer.
    callbacks : sequence of Callback
        The others, whose state a resumed run must find.
    documents : dict
        What else is kept with each checkpoint, such as the model's configuration.
    ema : EMA, optional
        The average of the weights.
    monitor, mode : str
        The metric that decides which is best, and whether less or more is better.
    every : int, default 1
        Epochs between checkpoints; the best and the last are always written.
    every_steps : int, optional
        Steps between further checkpoints, within epochs.
    keep : int, default 2
        How many of the latest checkpoints are kept.
    environment : mapping, optional
        What the run is computed with, for the manifests.
    command : str, default ""
        With what a person goes on with a run that broke.
    loss_scale : LossScale, optional
        What the loss is multiplied by for backward.
    """

    name = "checkpointing"

    def __init__(
        self,
        folder: Path,
        model: Module,
        optimizer: Optimizer,
        callbacks: Sequence[Callback],
        documents: dict[str, Any],
        *,
        ema: EMA | None = None,
        monitor: str = "val_loss",
        mode: str = "min",
        every: int = 1,
        every_steps: int | None = None,
        keep: int = 2,
        environment: Mapping[str, Any] | None = None,
        command: str = "",
        loss_scale: LossScale | None = None,
    ) -> None:
        self.folder, self.model, self.optimizer, self.ema = folder, model, optimizer, ema
        self.loss_scale = loss_scale
        self.callbacks, self.documents = callbacks, documents
        self.best, self.every, self.command = Best(monitor, mode), every, command
        self.every_steps, self.keep, self.environment = every_steps, keep, environment
        self.best_name = self.last_name = self.resumed_from = ""
        self._written: tuple[int, int] | None = None  # step and epoch of the last checkpoint
        self._before_end: Content | None = None
        self._was_there = False

    def on_start(self, state: TrainState) -> None:
        """Make the run folder, unless it is there; it is not made again if it goes."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._was_there = True
        if self._written is not None and self._path(self.last_name).is_dir():
            # A process that died after it had written this one has left the pointers of others.
            self._point(*self._written)

    def on_step_end(self, state: TrainState, log: StepLog) -> None:
        """Write a checkpoint if one is due within the epoch.

        At its end remember how all stand, since what follows may break half-way.
        """
        if _at_end(state):
            self._before_end = self._content(state)
            self._before_end.callbacks = copy.deepcopy(self._before_end.callbacks)
        elif self.every_steps is not None and state.step % self.every_steps == 0:
            self.save(state)

    def on_epoch_end(self, state: TrainState) -> None:
        """Write a checkpoint if it is the best so far or due."""
        improved = self.best.improved(state)
        if improved or state.epoch % self.every == 0 or state.epoch == state.epochs:
            self.save(state, best=improved)
        self._before_end = None

    def on_end(self, state: TrainState) -> None:
        """Write where the run was stopped, unless that has just been done."""
        if self._written == (state.step, state.epoch):
            return
        before = self._before_end
        if before is not None and _at_end(state) and before.state["step"] == state.step:
            self._save(self._name(state), before)  # the end of the epoch may have been begun
        else:
            self.save(state)

    def on_error(self, state: TrainState, error: BaseException) -> None:
        """Write what a run that breaks has reached, and add to the error where it is."""
        if isinstance(error, (KeyboardInterrupt, Terminated)):  # somebody is in a hurry
            return
        try:
            note = self._rescue(state, error)
        except Exception as failure:
            note = f"What the run had reached could not be saved: {failure}"
        if note:
            error.add_note(note)

    def save(self, state: TrainState, *, best: bool = False) -> None:
        """Write a checkpoint of now, point ``last.json`` (and ``best.json``) at it, and tidy up.

        Parameters
        ----------
        state : TrainState
            How far the run has come.
        best : bool, default False
            Whether it is the best so far.

        Raises
        ------
        CheckpointError
            If it cannot be written, or holds a state that cannot be kept; the one before is
            still the last then.
        """
        name = self._name(state)
        if best:
            self.best_name = name
        self._save(name, self._content(state))

    def _save(self, name: str, content: Content) -> None:
        content.add_arrays(self._sources)
        if content.problems:
            raise content.problems[0]
        self._write(name, content)

    def _rescue(self, state: TrainState, error: BaseException) -> str:
        """Save what a broken run has reached, if it has not been, and return what to say."""
        hopeless = isinstance(error, FloatingPointError) or (
            isinstance(error, CheckpointError) and not isinstance(error, StateError)
        )  # numbers that are not finite; a disk that has just refused to hold them
        if hopeless or self._written == (state.step, state.epoch):
            return self._go_on(f"The last checkpoint is {self._path(self.last_name)}.")
        content = self._content(state)
        if self._before_end is not None and self._before_end.state["step"] == state.step:
            content = self._before_end  # a resumed run comes to the end of the epoch again
            resumed_from = self.resumed_from
            self.load_state_dict(content.callbacks[self.name])
            self.resumed_from = resumed_from
        content.add_arrays(self._sources)
        if "model" not in content.arrays:
            raise content.problems[-1]
        lacks = [str(problem) for problem in content.problems]
        if state.updating:
            lacks.insert(0, "An update of the weights was half made.")
        name = self._name(TrainState.from_dict(content.state), partial=bool(lacks))
        before = self.last_name
        self._write(name, content, lacks)
        place = self._path(name)
        if not lacks:
            return self._go_on(f"All {state.step} finished steps are in {place}.")
        kept = f"{place} is not whole. {' '.join(lacks)}"
        return self._go_on(f"{kept} The last checkpoint is {self._path(before or name)}.")

    def _go_on(self, where: str) -> str:
        """Return where the last checkpoint is and how to go on; nothing where there is none."""
        if not self.last_name:
            return ""
        return f"{where} Once this is put right: {self.command}" if self.command else where

    @property
    def _sources(self) -> dict[str, tuple[str, Any]]:
        return {
            "model": ("model", self.model),
            "optim": ("optimizer", self.optimizer),
            "ema": ("average", self.ema),
            "loss_scale": ("loss scale", self.loss_scale),
        }

    def _content(self, state: TrainState) -> Content:
        return Content.of(state, (*self.callbacks, self))

    def _write(self, name: str, content: Content, lacks: Sequence[str] = ()) -> None:
        """Write a checkpoint; it becomes the last unless it lacks what the one before has."""
        last = self.last_name if lacks and self.last_name else name
        step, epoch = content.state["step"], content.state["epoch"]
        own = {**content.callbacks[self.name], "last_name": last}
        if last == name:
            own["written"] = [step, epoch]
        trainer = {
            **self.documents,
            "state": content.state,
            "callbacks": {**content.callbacks, self.name: own},
        }
        if lacks:
            trainer["lacks"] = list(lacks)
        self._refuse_lost_folder()
        files.save(self._path(name), content.arrays, {"trainer": trainer}, self.environment)
        if last == name:
            self._written = (step, epoch)
        self.last_name = last
        if self._written is not None:
            self._point(*self._written)
        named = {name, last, self.best_name, self.resumed_from}
        runs.tidy(self.folder, runs.to_keep(self.folder, self.keep, step, named))

    def _point(self, step: int, epoch: int) -> None:
        """Have ``last.json`` and ``best.json`` name what they should."""
        where = {"step": step, "epoch": epoch}
        files.write_pointer(self.folder / "last.json", self.last_name, **where)
        if self.best_name:
            value = {self.best.monitor: self.best.value}
            files.write_pointer(self.folder / "best.json", self.best_name, **value)
        else:
            (self.folder / "best.json").unlink(missing_ok=True)

    def _refuse_lost_folder(self) -> None:
        """Raise where the run folder has been removed: alone, a checkpoint could not be resumed."""
        if self._was_there and not self.folder.is_dir():
            raise CheckpointError(
                f"Cannot write a checkpoint into {self.folder}: the run folder is gone."
            )

    def state_dict(self) -> dict[str, Any]:
        """Return which checkpoint is the last, which is best, and how good that is."""
        kept: dict[str, Any] = {"last_name": self.last_name, "best_name": self.best_name}
        return {**kept, "best": self.best.value, "written": self._written and [*self._written]}

    def load_state_dict(self, values: dict[str, Any]) -> None:
        """Take up which checkpoint is the last, from which the run goes on, and which is best."""
        self.last_name = self.resumed_from = values["last_name"]
        written = values.get("written")
        self._written = (written[0], written[1]) if written else None
        self.best_name, self.best.value = values["best_name"], values["best"]
        if self.best_name and not self._is_whole(self.best_name):
            self.best_name, self.best.value = "", None  # lost; the next one is the best there is

    def _is_whole(self, name: str) -> bool:
        try:
            files.verify(self._path(name))
        except files.Unreadable:
            return True  # as far as can be told now
        except CheckpointError:
            return False
        return True

    def _name(self, state: TrainState, *, partial: bool = False) -> str:
        """Return a name that no other checkpoint has."""
        ended = not _at_end(state)
        return runs.free_name(self.folder, state.step, ended=ended, partial=partial)

    def _path(self, name: str) -> Path:
        return self.folder / runs.FOLDER / name


def _at_end(state: TrainState) -> bool:
    """Whether the last step of an epoch is made, and the epoch not ended yet."""
    return state.step == (state.epoch + 1) * state.steps_per_epoch
