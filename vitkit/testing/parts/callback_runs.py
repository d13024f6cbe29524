"""Short trainings with a callback, and what they leave."""

from __future__ import annotations

import functools
import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vitkit.backend import ArrayModule, to_numpy
from vitkit.data.dataset import Subset
from vitkit.data.digits import digits
from vitkit.data.loader import Loader
from vitkit.models import ViT
from vitkit.nn.module import Module
from vitkit.optim import AdamW
from vitkit.testing.parts.making import made
from vitkit.testing.parts.surroundings import surroundings_kept
from vitkit.train.callbacks.base import Callback
from vitkit.train.state import TrainState
from vitkit.train.step import StepLog
from vitkit.train.trainer import Trainer

EPOCHS, IMAGES, BATCH = 2, 40, 16
MOST_MOMENTS = 20
MODEL = {"image_size": 8, "in_channels": 1, "num_classes": 10}
MODEL |= {"dim": 8, "depth": 1, "num_heads": 2, "mlp_dim": 16}

Make = Callable[..., Callback]


class Planted(Exception):
    """What the training is made to raise."""


class Moment(NamedTuple):
    """Where a run was after the callbacks had been called, and what its weights were."""

    event: str
    place: dict[str, int]
    weights: str


@dataclass
class Run:
    """A training that is over.

    Attributes
    ----------
    callback : object
        What ``make`` made.
    moments : list of Moment
        After each step and epoch, and at the end.
    states : list of object
        What ``state_dict`` returned at those moments.
    metrics : dict of str to object
        Those of the last epoch.
    raised : dict of str to Exception
        What the callback's methods raised, by their names.
    error : BaseException or None
        What ``fit`` raised.
    left : list of str
        What of the process was changed and not put back, until the kit did.
    """

    callback: Any
    moments: list[Moment] = field(default_factory=list)
    states: list[Any] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    raised: dict[str, Exception] = field(default_factory=dict)
    error: BaseException | None = None
    left: list[str] = field(default_factory=list)


class _Watched(Callback):
    """Hands every call on, and notes what is raised."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def _hand_on(self, event: str, *arguments: Any) -> None:
        try:
            getattr(self.run.callback, event)(*arguments)
        except Exception as error:
            self.run.raised.setdefault(event, error)
            raise

    def on_start(self, state: TrainState) -> None:
        self._hand_on("on_start", state)

    def on_step_end(self, state: TrainState, log: StepLog) -> None:
        self._hand_on("on_step_end", state, log)

    def on_epoch_end(self, state: TrainState) -> None:
        self._hand_on("on_epoch_end", state)

    def on_end(self, state: TrainState) -> None:
        self._hand_on("on_end", state)

    def on_error(self, state: TrainState, error: BaseException) -> None:
        self._hand_on("on_error", state, error)


class _Notes(Callback):
    """Notes where the run is after the callback has been called, and raises on demand."""

    def __init__(self, run: Run, model: Module, fail: bool) -> None:
        self.run, self.model, self.fail = run, model, fail

    def _note(self, event: str, state: TrainState) -> None:
        names = ("step", "epoch", "position", "seed", "epochs", "steps_per_epoch")
        place = {name: getattr(state, name) for name in names}
        weights = b"".join(to_numpy(group.values).tobytes() for group in self.model.groups)
        self.run.moments.append(Moment(event, place, hashlib.sha256(weights).hexdigest()))
        self.run.metrics = state.metrics
        if len(self.run.moments) > MOST_MOMENTS:
            raise RuntimeError("it does not end. Are state.epoch or state.position changed?")
        try:
            self.run.states.append(self.run.callback.state_dict())
        except Exception as error:
            self.run.raised.setdefault("state_dict", error)

    def on_step_end(self, state: TrainState, log: StepLog) -> None:
        self._note("on_step_end", state)
        if self.fail:
            raise Planted("the second callback raises in on_step_end")

    def on_epoch_end(self, state: TrainState) -> None:
        self._note("on_epoch_end", state)

    def on_end(self, state: TrainState) -> None:
        self._note("on_end", state)


def offered(model: Module, optimizer: object, folder: Path) -> dict[str, Any]:
    """Return what a run gives to callbacks whose parameters name it."""
    return {"model": model, "optimizer": optimizer, "folder": folder}


def train(make: Make, *, xp: ArrayModule = np, fail: bool = False) -> Run:
    """Train a tiny model for two epochs of three steps, with the callback and without others.

    Parameters
    ----------
    make : callable
        Makes the callback; it gets those of ``model``, ``optimizer`` and ``folder`` that its
        parameters name.
    xp : module, default numpy
        Where the model is placed.
    fail : bool, default False
        Whether the training raises :class:`Planted` after the first step.

    Returns
    -------
    Run
        What was seen on the way. What the training raised is in it, and not raised.
    """
    options: dict[str, Any] = {**MODEL, "dropout": 0.1}
    model = ViT("Ti/4", **options, xp=xp)
    optimizer = AdamW(lr=1e-3, weight_decay=0.05)
    optimizer.attach(model)
    with tempfile.TemporaryDirectory() as folder, surroundings_kept() as left:
        run = Run(made(make, offered(model, optimizer, Path(folder))))
        callbacks = [_Watched(run), _Notes(run, model, fail)]
        trainer = Trainer(model, optimizer, callbacks=callbacks, max_grad_norm=1.0)
        try:
            trainer.fit(_loader(), epochs=EPOCHS)
        except Exception as error:
            run.error = error
    run.left = left
    return run


@functools.cache
def _loader() -> Loader:
    return Loader(Subset(digits().train, np.arange(IMAGES)), BATCH, shuffle=True)


@functools.cache
def moments_without() -> tuple[Moment, ...]:
    """Return the moments of a training with a callback that does nothing."""
    return tuple(train(Callback).moments)
