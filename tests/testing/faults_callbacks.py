"""Callbacks that are wrong, each in one thing, and the right one that they were made from."""

from __future__ import annotations

import logging
import random
import signal
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from vitkit.backend import to_numpy
from vitkit.nn import Module
from vitkit.testing.callbacks import check_callback
from vitkit.train import StepLog, TrainState
from vitkit.train.callbacks import Callback


class Worst(Callback):
    """The right one: remembers the largest loss and where it was."""

    name = "worst"

    def __init__(self) -> None:
        self.loss, self.step = 0.0, 0

    def on_step_end(self, state: TrainState, log: StepLog) -> None:
        loss = float(log.loss)
        if loss > self.loss:
            self.loss, self.step = loss, state.step

    def on_epoch_end(self, state: TrainState) -> None:
        state.metrics["worst_loss"] = self.loss

    def state_dict(self) -> dict[str, Any]:
        return {"loss": self.loss, "step": self.step}

    def load_state_dict(self, values: dict[str, Any]) -> None:
        self.loss, self.step = values["loss"], values["step"]


class Shrinks(Callback):
    """Weight clipping: changes the training on purpose."""

    def __init__(self, model: Module) -> None:
        self.model = model

    def on_step_end(self, state: TrainState, log: StepLog) -> None:
        for group in self.model.groups:
            group.values.clip(-0.05, 0.05, out=group.values)


class Rounds(Shrinks):
    def on_step_end(self, state: TrainState, log: StepLog) -> None:
        pass

    def on_epoch_end(self, state: TrainState) -> None:
        for group in self.model.groups:
            group.values[...] = group.values.round(3)


class RoundsAtTheEnd(Shrinks):
    def on_step_end(self, state: TrainState, log: StepLog) -> None:
        pass

    def on_end(self, state: TrainState) -> None:
        for group in self.model.groups:
            group.values[...] = group.values.round(3)


class ScalesGradients(Shrinks):
    def __init__(self, model: Module, optimizer: Any) -> None:
        super().__init__(model)
        self.optimizer = optimizer

    def on_step_end(self, state: TrainState, log: StepLog) -> None:
        self.optimizer.weight_decay = 1.0


class Reseeds(Worst):
    def on_step_end(self, state: TrainState, log: StepLog) -> None:
        super().on_step_end(state, log)
        state.seed += 1


class NeverEnds(Worst):
    def on_epoch_end(self, state: TrainState) -> None:
        state.epoch -= 1


class KeepsASet(Worst):
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "seen": {"loss": {self.step}}}


class KeepsNumbersByStep(Worst):
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "losses": {self.step: self.loss}}


class KeepsAnArray(Worst):
    def on_step_end(self, state: TrainState, log: StepLog) -> None:
        if float(log.loss) > self.loss:
            self.loss, self.step = to_numpy(log.loss), state.step  # type: ignore[assignment]


class KeepsAList(Worst):
    def state_dict(self) -> Any:
        return [self.loss, self.step]


class MeasuresAnArray(Worst):
    def on_epoch_end(self, state: TrainState) -> None:
        state.metrics["worst_loss"] = np.float32(self.loss)  # type: ignore[assignment]


class ForgetsTheStep(Worst):
    def load_state_dict(self, values: dict[str, Any]) -> None:
        self.loss = values["loss"]


class Nameless(Worst):
    name = ""


class NamedAsVitkits(Worst):
    name = "early_stopping"


class TakesTheSignal(Worst):
    def on_start(self, state: TrainState) -> None:
        signal.signal(signal.SIGTERM, self.handle)

    def handle(self, number: int, frame: object) -> None:
        pass


class GivesTheSignalBackAtTheEnd(TakesTheSignal):
    def on_start(self, state: TrainState) -> None:
        self.before = signal.signal(signal.SIGTERM, self.handle)

    def on_end(self, state: TrainState) -> None:
        signal.signal(signal.SIGTERM, self.before)


class LogsEverything(Worst):
    def on_start(self, state: TrainState) -> None:
        logging.getLogger().addHandler(logging.NullHandler())


class StartsAThread(Worst):
    def on_start(self, state: TrainState) -> None:
        threading.Thread(target=threading.Event().wait, args=(2.0,), daemon=True).start()


class RaisesInOnError(Worst):
    def on_error(self, state: TrainState, error: BaseException) -> None:
        raise OSError("no connection")


class Misspells(Worst):
    def on_epoch_end(self, state: TrainState) -> None:
        state.metrics["best"] = state.best_loss  # type: ignore[attr-defined]


class RaisesInItsState(Worst):
    def state_dict(self) -> dict[str, Any]:
        return {"loss": self.losses}  # type: ignore[attr-defined]


class DrawsGlobally(Worst):
    def on_step_end(self, state: TrainState, log: StepLog) -> None:
        if random.random() < 0.5:  # noqa: S311 (the fault)
            super().on_step_end(state, log)


class SeedsGlobally(Worst):
    def on_start(self, state: TrainState) -> None:
        np.random.seed(0)  # noqa: NPY002 (the fault)


class ForTheHostOnly(Worst):
    def on_step_end(self, state: TrainState, log: StepLog) -> None:
        self.loss = float(np.maximum(self.loss, log.loss))


class Watcher:
    """No callback, though it could be one."""

    name = "watcher"


ONE = Worst()

# What is wrong: how it is made, the checks that fail and no others, what the message says.
FAULTY: dict[str, tuple[Callable[..., Any], set[str], str]] = {
    "clips the weights": (
        Shrinks,
        {"training unchanged"},
        "changes the training: after on_step_end of step 1 the weights are not those of a run",
    ),
    "rounds the weights after an epoch": (
        Rounds,
        {"training unchanged"},
        "changes the training: after on_epoch_end of step 3 the weights",
    ),
    "rounds the weights at the end": (
        RoundsAtTheEnd,
        {"training unchanged"},
        "changes the training: after on_end of step 6 the weights",
    ),
    "changes the optimizer": (
        ScalesGradients,
        {"training unchanged"},
        "changes the training: after on_step_end of step 2 .* leave gradients and the optimizer",
    ),
    "changes the seed of the run": (
        Reseeds,
        {"training unchanged"},
        "changes state.seed, which is 1 instead of 0: a resumed run would go on elsewhere",
    ),
    "makes the run endless": (
        NeverEnds,
        {"two epochs"},
        "the training raised RuntimeError: it does not end. Are state.epoch or state.position",
    ),
    "keeps a set": (
        KeepsASet,
        {"state"},
        r"its state cannot be written to a checkpoint: .* type set at 'seen.loss'",
    ),
    "keeps numbers by step": (
        KeepsNumbersByStep,
        {"state"},
        r"cannot be written to a checkpoint: .* the key 1 of type int at 'losses'",
    ),
    "keeps an array": (KeepsAnArray, {"state"}, r"of type numpy\.\w+ at 'loss'"),
    "keeps a list": (KeepsAList, {"state"}, r"state_dict\(\) returned list; a dict is due"),
    "puts an array among the metrics": (
        MeasuresAnArray,
        {"state"},
        "state.metrics cannot be written to a checkpoint: it holds an object of type "
        "numpy.float32 at 'worst_loss'",
    ),
    "forgets a part of its state": (
        ForgetsTheStep,
        {"state taken up"},
        "load_state_dict does not take up 'step': it was 1, and a new callback .* has 0",
    ),
    "has a state and no name": (Nameless, {"name"}, "has no name, and a state"),
    "has the name of one of vitkit's": (
        NamedAsVitkits,
        {"name"},
        "is named 'early_stopping', as vitkit's own EarlyStopping",
    ),
    "keeps a signal": (
        TakesTheSignal,
        {"surroundings"},
        "leaves the handler of SIGTERM behind after the run: put back, or end, in on_end what",
    ),
    "keeps a signal after an error": (
        GivesTheSignalBackAtTheEnd,
        {"surroundings"},
        "leaves the handler of SIGTERM behind after the run: put back, or end, in on_error what",
    ),
    "adds a handler to the root logger": (
        LogsEverything,
        {"surroundings"},
        "leaves the handlers of the root logger behind",
    ),
    "leaves a thread behind": (
        StartsAThread,
        {"surroundings"},
        "leaves the thread .* behind after the run",
    ),
    "raises in on_error": (
        RaisesInOnError,
        {"after an error"},
        "on_error raised OSError, when another callback had raised,: no connection",
    ),
    "raises at the end of an epoch": (
        Misspells,
        {"two epochs"},
        r"on_epoch_end raised AttributeError: .*best_loss.* \(faults_callbacks.py, line \d+\)",
    ),
    "raises in state_dict": (
        RaisesInItsState,
        {"two epochs"},
        "state_dict raised AttributeError: .*losses",
    ),
    "draws from random": (
        DrawsGlobally,
        {"global generators"},
        "draws from the global generator of random, or seeds it",
    ),
    "seeds np.random": (
        SeedsGlobally,
        {"global generators"},
        "draws from the global generator of np.random, or seeds it",
    ),
    "works on the host only": (
        ForTheHostOnly,
        {"on strict_device"},
        r"on_step_end raised TypeError on strict_device: .* read a number with float\(...\)",
    ),
    "is no Callback": (Watcher, {"a callback"}, r"make\(\) returned Watcher, expected a Callback"),
    "is one object for all runs": (lambda: ONE, {"a callback"}, "returned one callback twice"),
}

FAULTS = {
    name: (partial(check_callback, make), message) for name, (make, _, message) in FAULTY.items()
}
