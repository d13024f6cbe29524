"""Validation during a run, and what follows from it."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from vitkit.data import Loader
from vitkit.nn.module import Module
from vitkit.optim import EMA
from vitkit.train.callbacks.base import Callback, LeaveOpen
from vitkit.train.evaluate import evaluate
from vitkit.train.graph import GraphedForward
from vitkit.train.recorded import wants_graphs
from vitkit.train.state import TrainState
from vitkit.train.step import Loss, StepLog


class Validation(Callback):
    """Puts ``val_loss`` and ``val_accuracy`` into ``state.metrics`` at the end of epochs.

    Parameters
    ----------
    model : Module
        The model.
    loader : Loader
        The validation images.
    loss : callable
        The training loss.
    preprocess : Preprocess
        How the model sees pixels.
    every : int, default 1
        Epochs between validations; the last epoch is always validated.
    ema : EMA, optional
        The averaged weights to validate instead of the model's own.
    on_batch : callable, optional
        Called with the number of images after each batch.
    stopped : callable, optional
        Asked after each batch why the run is to end now; the epoch is left open if it is, and
        validated again when the run goes on.
    graph : bool, optional
        As :class:`vitkit.Trainer` takes it, for the model's work on a batch. Between validations
        no graph is kept: training may need the memory, and a callback may change the model.
    """

    name = "validation"

    def __init__(
        self,
        model: Module,
        loader: Loader,
        loss: Loss,
        preprocess: Any,
        *,
        every: int = 1,
        ema: EMA | None = None,
        on_batch: Callable[[int], None] | None = None,
        stopped: Callable[[], str] | None = None,
        graph: bool | None = None,
    ) -> None:
        self.model, self.loader, self.loss = model, loader, loss
        self.preprocess, self.every, self.ema = preprocess, every, ema
        self.on_batch, self.stopped = on_batch, stopped
        self.graph = graph
        self._forward: GraphedForward | None = None  # so that what fails is tried and said once

    def on_start(self, state: TrainState) -> None:
        """Forget what a run before could record; refuse now what cannot be, not after an epoch."""
        self._forward = None
        wants_graphs(self.model.xp, self.graph)

    def on_epoch_end(self, state: TrainState) -> None:
        """Validate when it is due."""
        state.metrics = {}
        if state.epoch % self.every and state.epoch != state.epochs:
            return
        if self._forward is None:
            wanted = wants_graphs(self.model.xp, self.graph)
            self._forward = GraphedForward(
                self.model, records=wanted, falls_back=self.graph is None
            )
        with self.ema.applied() if self.ema else nullcontext():
            found = evaluate(
                self.model,
                self.loader,
                loss=self.loss,
                preprocess=self.preprocess,
                on_batch=self._count,
                graph=self._forward,
            )
        state.metrics = {"val_loss": found.loss, "val_accuracy": found.accuracy}

    def _count(self, images: int) -> None:
        """Say how far it is, and leave if the run is to end."""
        if self.on_batch is not None:
            self.on_batch(images)
        if self.stopped is not None and (reason := self.stopped()):
            raise LeaveOpen(reason)


class Average(Callback):
    """Moves an average of the weights along after each step that changed them.

    Parameters
    ----------
    ema : EMA
        The average.
    """

    name = "average"

    def __init__(self, ema: EMA) -> None:
        self.ema = ema

    def on_step_end(self, state: TrainState, log: StepLog) -> None:
        """Move the average, unless the step was skipped."""
        self.ema.update(where=None if log.skipped is None else ~log.skipped)


class Best:
    """Remembers the best value of a metric.

    Parameters
    ----------
    monitor : str
        A name in ``state.metrics``.
    mode : str
        ``"min"`` or ``"max"``.
    min_delta : float, default 0
        How much better a value must be to count.
    """

    def __init__(self, monitor: str, mode: str, min_delta: float = 0.0) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"mode must be 'min' or 'max'; got {mode!r}.")
        self.monitor, self.min_delta = monitor, min_delta
        self.sign = 1.0 if mode == "max" else -1.0
        self.value: float | None = None

    def improved(self, state: TrainState) -> bool:
        """Return whether the metric is there, finite, and better than any before; remember it."""
        value = state.metrics.get(self.monitor)
        if value is None or not math.isfinite(value):
            return False
        if self.value is not None and self.sign * (value - self.value) <= self.min_delta:
            return False
        self.value = float(value)
        return True


class EarlyStopping(Callback):
    """Ends the run when a metric has not improved for a while.

    Parameters
    ----------
    monitor : str, default "val_loss"
        A name in ``state.metrics``.
    patience : int, default 10
        Validations without improvement after which the run ends.
    mode : str, default "min"
        ``"min"`` or ``"max"``.
    min_delta : float, default 0
        How much better a value must be to count.
    """

    name = "early_stopping"

    def __init__(
        self,
        monitor: str = "val_loss",
        patience: int = 10,
        mode: str = "min",
        min_delta: float = 0.0,
    ) -> None:
        self.patience = patience
        self.best = Best(monitor, mode, min_delta)
        self.waited = 0

    def on_start(self, state: TrainState) -> None:
        """End a run that goes on where it was ended, unless patience has grown since."""
        self._judge(state)

    def on_epoch_end(self, state: TrainState) -> None:
        """Count, and end the run when patience is at its end."""
        if self.best.improved(state):
            self.waited = 0
        elif self.best.monitor in state.metrics:
            self.waited += 1
            self._judge(state)

    def _judge(self, state: TrainState) -> None:
        if self.waited >= self.patience:
            state.stop = (
                f"early stopping: {self.best.monitor} has not improved "
                f"for {self.patience} validations"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the best value and how long it has stood."""
        return {"best": self.best.value, "waited": self.waited}

    def load_state_dict(self, values: dict[str, Any]) -> None:
        """Take up the best value and how long it has stood."""
        self.best.value, self.waited = values["best"], values["waited"]
