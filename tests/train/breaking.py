"""Runs with everything on, and what breaks them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vitkit.checkpoint.files as files
from vitkit.data import ArrayDataset, Loader
from vitkit.models import ViT
from vitkit.ops import softmax_cross_entropy
from vitkit.optim import EMA, AdamW
from vitkit.train import Preprocess, Trainer, TrainState
from vitkit.train.callbacks import (
    Average,
    Callback,
    Checkpointing,
    EarlyStopping,
    Recorder,
    StopOnSignal,
    Validation,
)
from vitkit.train.restore import find_checkpoint

STEPS = 7  # an epoch: 26 images in batches of 4
KINDS = {"model", "optim", "ema"}


class Breaks(Callback):
    """Raises at an event, the given time that it comes."""

    name = "breaks"

    def __init__(self, event: str = "", at: int = 1, error: BaseException | None = None) -> None:
        self.event, self.left = event, at
        self.error = error or ZeroDivisionError("no luck")

    def _count(self, event: str) -> None:
        if event == self.event:
            self.left -= 1
            if self.left == 0:
                raise self.error

    def on_start(self, state: TrainState) -> None:
        self._count("on_start")

    def on_step_end(self, state: TrainState, log: Any) -> None:
        self._count("on_step_end")

    def on_epoch_end(self, state: TrainState) -> None:
        self._count("on_epoch_end")

    def on_end(self, state: TrainState) -> None:
        self._count("on_end")


class Keeps(Callback):
    """Has a state that a function gives."""

    name = "keeps"

    def __init__(self, state: Callable[[], Any]) -> None:
        self.state = state

    def state_dict(self) -> Any:
        return self.state()


class Clumsy(AdamW):
    """Stumbles in the middle of an update."""

    stumbles_at = 0

    def update(self, w: Any, g: Any, *args: Any, step: int, **given: Any) -> None:
        super().update(w, g, *args, step=step, **given)
        if step == self.stumbles_at:
            raise ZeroDivisionError("no luck")


class Parts:
    """A run with everything on, its weights averaged before or after ``extra`` is called."""

    def __init__(
        self,
        folder: Path,
        data: ArrayDataset,
        model: ViT,
        *extra: Callback,
        average_last: bool = False,
        epochs: int = 2,
    ) -> None:
        self.folder, self.model, self.epochs = folder, model, epochs
        self.optimizer = Clumsy(1e-2, weight_decay=0.1).attach(model)
        self.ema = EMA(model, 0.9)
        self.loader = Loader(data, 4, shuffle=True)
        validation = Validation(model, self.loader, softmax_cross_entropy, Preprocess.of(data))
        watching: list[Callback] = [validation, Recorder([]), *extra, EarlyStopping(patience=9)]
        watching.insert(len(watching) if average_last else 0, Average(self.ema))
        self.saving = Checkpointing(
            folder, model, self.optimizer, watching, {}, ema=self.ema, command="go on"
        )
        self.callbacks = [*watching, self.saving, StopOnSignal()]

    def fit(self, state: TrainState | None = None, loss: Any = softmax_cross_entropy) -> TrainState:
        trainer = Trainer(self.model, self.optimizer, loss=loss, callbacks=self.callbacks)
        return trainer.fit(self.loader, epochs=self.epochs, state=state)

    def resume(self) -> None:
        checkpoint = files.load(find_checkpoint(self.folder, "last"))
        trainer = checkpoint.documents["trainer"]
        self.model.load_state_dict(checkpoint.arrays["model"])
        self.optimizer.load_state_dict(checkpoint.arrays["optim"])
        self.ema.load_state_dict(checkpoint.arrays["ema"])
        for callback in self.callbacks:
            if callback.name in trainer["callbacks"]:
                callback.load_state_dict(trainer["callbacks"][callback.name])
        self.fit(TrainState.from_dict(trainer["state"]))


MakeParts = Callable[..., Parts]


def loss_that_breaks(at: int) -> Callable[..., Any]:
    """Return a training loss that raises the given time it is called in a training step."""
    calls = 0

    def loss(logits: Any, labels: Any, *, xp: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            raise ZeroDivisionError("no luck")
        return softmax_cross_entropy(logits, labels, xp=xp)

    return loss


def last(folder: Path) -> str:
    return str(files.read_pointer(folder / "last.json")["checkpoint"])


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoints/*"))


def notes(error: pytest.ExceptionInfo[BaseException]) -> list[str]:
    return list(getattr(error.value, "__notes__", []))


def assert_same_end(found: Path, expected: Path) -> None:
    """Compare the last checkpoints of two runs, bit by bit, but for the clock."""
    ours, theirs = (files.load(find_checkpoint(folder, "last")) for folder in (found, expected))
    assert ours.arrays.keys() == theirs.arrays.keys() == KINDS
    for stem, arrays in theirs.arrays.items():
        assert ours.arrays[stem].keys() == arrays.keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(ours.arrays[stem][name], array, err_msg=name)
    for document in (ours.documents["trainer"], theirs.documents["trainer"]):
        document["state"].pop("seconds")
    assert ours.documents == theirs.documents
    best = [files.read_pointer(folder / "best.json") for folder in (found, expected)]
    assert best[0] == best[1]
