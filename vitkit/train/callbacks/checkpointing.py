"""Checkpoints during a run: the last one, the best one, and no others kept."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import vitkit.checkpoint.files as files
from vitkit.nn.module import Module
from vitkit.optim import EMA, Optimizer
from vitkit.train.callbacks.base import Callback
from vitkit.train.callbacks.evaluation import Best
from vitkit.train.state import TrainState

OURS = ("step-", ".tmp-", ".old-")  # the latter two are left by processes that were killed


class Checkpointing(Callback):
    """Writes ``checkpoints/step-NNNNNNNN`` at the end of epochs, and when the run is stopped.

    ``last.json`` and ``best.json`` in the run folder name the latest and the best of them; the
    others are removed.

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
    ) -> None:
        self.folder, self.model, self.optimizer, self.ema = folder, model, optimizer, ema
        self.callbacks, self.documents = callbacks, documents
        self.best, self.every = Best(monitor, mode), every
        self.best_name = self.last_name = ""

    def on_epoch_end(self, state: TrainState) -> None:
        """Write a checkpoint if it is the best so far or due."""
        improved = self.best.improved(state)
        if improved:
            self.best_name = self._name(state)
        if improved or state.epoch % self.every == 0 or state.epoch == state.epochs:
            self.save(state)

    def on_end(self, state: TrainState) -> None:
        """Write where the run was stopped, unless that has just been done."""
        if self.last_name != self._name(state):
            self.save(state)

    def save(self, state: TrainState) -> None:
        """Write a checkpoint of now, point ``last.json`` (and ``best.json``) at it, and tidy up."""
        self.last_name = name = self._name(state)
        arrays = {"model": self.model.state_dict(), "optim": self.optimizer.state_dict()}
        if self.ema is not None:
            arrays["ema"] = self.ema.state_dict()
        states = {c.name: kept for c in (*self.callbacks, self) if (kept := c.state_dict())}
        trainer = {**self.documents, "state": state.to_dict(), "callbacks": states}
        files.save(self.folder / "checkpoints" / name, arrays, {"trainer": trainer})
        files.write_pointer(self.folder / "last.json", name, step=state.step, epoch=state.epoch)
        if self.best_name:
            # Each time, since a process that died just before this line has left the old one.
            value = {self.best.monitor: self.best.value}
            files.write_pointer(self.folder / "best.json", self.best_name, **value)
        for other in (self.folder / "checkpoints").iterdir():
            if other.name.startswith(OURS) and other.name not in (name, self.best_name):
                shutil.rmtree(other, ignore_errors=True)

    def state_dict(self) -> dict[str, Any]:
        """Return which checkpoint is the last, which is best, and how good that is."""
        return {"last_name": self.last_name, "best_name": self.best_name, "best": self.best.value}

    def load_state_dict(self, values: dict[str, Any]) -> None:
        """Take up which checkpoint is the last and which is best."""
        self.last_name, self.best_name = values["last_name"], values["best_name"]
        self.best.value = values["best"]

    @staticmethod
    def _name(state: TrainState) -> str:
        return f"step-{state.step:08d}"
