"""A run from its configuration to its folder.

::

    runs/<date>-<name>/
        config.toml      the resolved configuration
        env.json         versions, BLAS, CPU kernels, GPU, precision, arguments
        profile.json     the time of a step by operation, where it was asked for
        metrics.jsonl    a row every few steps and every epoch
        log.txt          the same as lines for people
        summary.json     the results
        checkpoints/     step-NNNNNNNN/, named by last.json and best.json
        bad-step-*/      steps that were not finite, for vitkit doctor
        plots/           learning curve, attention maps
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import vitkit.checkpoint.files as files
from vitkit.checkpoint import Checkpoint, latest, load_latest
from vitkit.config.callbacks import callbacks, refuse_same_names
from vitkit.config.fixed import changes
from vitkit.config.load import dumps, load
from vitkit.config.lock import locked
from vitkit.config.plugin_record import record_of, refuse_missing
from vitkit.config.prepare import Prepared, prepare, refuse
from vitkit.config.resolve import resolved, spelled_out, with_layers
from vitkit.config.run import RunConfig
from vitkit.config.summary import summary_of
from vitkit.errors import CheckpointError
from vitkit.kernels.state import describe as on_cpu
from vitkit.kernels.state import describe_gpu
from vitkit.optim import EMA
from vitkit.plugins import active
from vitkit.signals import Terminated
from vitkit.train.bad_steps import BadSteps
from vitkit.train.callbacks import (
    Average,
    Callback,
    Checkpointing,
    EarlyStopping,
    JsonLines,
    Profiling,
    Recorder,
    StopOnSignal,
    TimeLimit,
    Validation,
    as_line,
)
from vitkit.train.callbacks.profiling import as_lines
from vitkit.train.environment import describe, differences, numerics
from vitkit.train.loss_scale import LossScale, loss_scale_for
from vitkit.train.needed import needed
from vitkit.train.preprocess import Preprocess
from vitkit.train.restore import documents
from vitkit.train.state import TrainState
from vitkit.train.trainer import Trainer


class Display(Protocol):
    """What shows a run to a person: a sink for rows, a callback for steps, a voice for lines."""

    @property
    def callback(self) -> Callback:
        """What is called at each step."""

    def row(self, row: dict[str, Any]) -> None:
        """Show the numbers of a row."""

    def say(self, line: str) -> None:
        """Show a line."""

    def warn(self, line: str) -> None:
        """Show a line that must not be missed."""

    def counting(self, what: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """Show the progress of something that counts images."""


def folder_name(config: RunConfig) -> str:
    """Return ``<date>-<name>`` for a run that starts now."""
    name = config.name or f"{config.data.name}-{config.model.variant}"
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{name.replace('/', '-')}"


def run(
    config: RunConfig,
    folder: Path,
    display: Display,
    *,
    resume: bool = False,
    profile_steps: int = 0,
) -> dict[str, Any]:
    """Train what a configuration says, and leave everything in ``folder``.

    Parameters
    ----------
    config : RunConfig
        The run.
    folder : Path
        The run folder; made, unless a run is resumed.
    display : Display
        What shows the run to a person.
    resume : bool, default False
        Whether to go on from the folder's last checkpoint.
    profile_steps : int, default 0
        How many of the first steps to measure by operation; the table is shown, and written to
        ``profile.json``.

    Returns
    -------
    dict
        What ``summary.json`` holds.

    Raises
    ------
    ConfigError, DataError, BackendError, CheckpointError
        If the run cannot be; the message says why.
    """
    if resume:
        refuse_missing(config, needed(files.load_document(latest(folder), "trainer")), active())
    prepared = prepare(config)
    with locked(folder):
        if not resume and (folder / "config.toml").exists():
            raise CheckpointError(f"{folder} holds a run: resume it, or choose another folder.")
        checkpoint, refused = load_latest(folder) if resume else (None, [])
        whole = Run(prepared, folder, display, checkpoint)
        whole.doubts = [*refused, *whole.doubts]
        del checkpoint  # or its arrays would be held to the end of the run
        if profile_steps:
            whole.profile(profile_steps)
        return whole.finish()


class Run:
    """The objects of one run in its folder, put together."""

    def __init__(
        self, prepared: Prepared, folder: Path, display: Display, checkpoint: Checkpoint | None
    ) -> None:
        self.folder, self.display = folder, display
        self.asked, self.registries = prepared.config, prepared.registries
        self.config = resolved(self.asked, prepared.parts, self.registries)
        self.data, self.parts = prepared.data, prepared.parts
        self.plugins = record_of(self.config, active())
        self.command = f"vitkit train {self._options()}--resume {shlex.quote(str(folder))}"
        self.preprocess = Preprocess.of(self.data.train)
        decay = self.config.train.ema_decay
        self.ema = EMA(self.parts.model, decay) if decay is not None else None
        self.loss_scale = loss_scale_for(self.parts.model)
        self.signals = StopOnSignal()
        self.callbacks = self._callbacks()
        self.profiling: Profiling | None = None
        self.doubts: list[str] = []
        self.state = TrainState(seed=self.config.seed)
        if checkpoint is not None:
            self._resume(checkpoint)

    def _callbacks(self) -> list[Callback]:
        """Return the callbacks in the order they are called: numbers first, then decisions."""
        parts, train = self.parts, self.config.train
        called: list[Callback] = []
        if self.ema is not None:
            called.append(Average(self.ema))
        if parts.val is not None:
            called.append(
                Validation(
                    parts.model,
                    parts.val,
                    parts.loss,
                    self.preprocess,
                    every=train.eval_every,
                    ema=self.ema,
                    stopped=lambda: self.signals.reason,
                    graph=train.graph,
                )
            )
        self.recorder = Recorder([self.display.row], every=train.log_every)
        called.append(self.recorder)
        called += callbacks(
            self.config,
            self.registries,
            model=parts.model,
            optimizer=parts.optimizer,
            folder=self.folder,
        )
        if train.patience is not None:
            called.append(EarlyStopping(train.monitor, train.patience, train.mode))
        if train.max_time is not None:
            called.append(TimeLimit(train.max_time))
        called.append(self.display.callback)
        self.checkpointing = Checkpointing(
            self.folder,
            parts.model,
            parts.optimizer,
            called,
            documents(
                parts.model,
                self.preprocess,
                self.data.train.classes,
                self.plugins,
                precision=train.precision,
            ),
            ema=self.ema,
            monitor=train.monitor,
            mode=train.mode,
            command=self.command,
            loss_scale=self.loss_scale,
            every_steps=train.save_every,
            keep=train.keep,
            environment=numerics(parts.model.xp),
        )
        everything = [*called, self.checkpointing, self.signals]
        refuse_same_names(everything)
        return everything

    def _resume(self, checkpoint: Checkpoint) -> None:
        """Put everything where the checkpoint left it."""
        stored = load([self.folder / "config.toml"], environ={})
        before = with_layers(spelled_out(stored, self.registries))
        refuse(changes(before.model_dump(), self.config.model_dump()))
        try:
            trainer, arrays = checkpoint.documents["trainer"], checkpoint.arrays
            self.state = TrainState.from_dict(trainer["state"])
            self._refuse_other_data(trainer)
            self.parts.model.load_state_dict(arrays["model"])
            self.parts.optimizer.load_state_dict(arrays["optim"])
            if self.ema is not None:
                self.ema.load_state_dict(arrays["ema"])
            if "loss_scale" in arrays and self.config.train.precision == "float16":
                # Where that is not served it is only kept, for when the run is back where it is.
                scale = self.loss_scale or LossScale(self.parts.model.xp)
                scale.load_state_dict(arrays["loss_scale"])
                self.checkpointing.loss_scale = scale
            for callback in self.callbacks:
                if callback.name in trainer["callbacks"]:
                    callback.load_state_dict(trainer["callbacks"][callback.name])
            for line in trainer.get("lacks", ()):
                self.doubts.append(f"The checkpoint {checkpoint.path} is not whole. {line}")
            self.doubts += differences(checkpoint.environment, numerics(self.parts.model.xp))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"The checkpoint {checkpoint.path} does not fit this run: {error}. Resume with "
                "the run's own configuration, or start a new run."
            ) from error

    def _refuse_other_data(self, trainer: dict[str, Any]) -> None:
        """Raise if the data set has other classes, or another number of images, than before."""
        before, now = trainer["classes"], [*self.data.train.classes]
        if before != now:
            raise ValueError(f"the classes were {before}, and are {now}"[:500])
        steps = -(-len(self.parts.train) // self.config.train.grad_accum)
        if self.state.steps_per_epoch not in (0, steps):
            raise ValueError(
                f"an epoch had {self.state.steps_per_epoch} steps, and has {steps}: the data set "
                "has another number of images"
            )

    def profile(self, steps: int) -> None:
        """Measure some steps by operation."""
        self.profiling = Profiling(self._profiled, steps=steps)
        self.callbacks.insert(0, self.profiling)

    def _profiled(self, found: dict[str, Any]) -> None:
        self._write("profile.json", json.dumps(found, indent=1) + "\n")
        for line in as_lines(found):
            self.say(line)

    def finish(self) -> dict[str, Any]:
        """Train, evaluate, draw, and return the summary."""
        self._write("config.toml", dumps(self.config))
        self._write("env.json", json.dumps(self._environment(), indent=1) + "\n")
        self.recorder.sinks.append(JsonLines(self.folder / "metrics.jsonl", self.state))
        self.recorder.sinks.append(lambda row: self._log(as_line(row, self.state)))
        for line in self.doubts:
            self.display.warn(line)
            self._log(line)
        self.say(self._headline())
        self.train()
        if self.profiling is not None and not self.profiling.measured:
            left_out = self.profiling.warmup
            self.say(f"Too few steps for a profile: the first {left_out} are left out.")
        if self.state.stop:
            self.say(f"Stopped: {self.state.stop}.")
        try:
            summary = summary_of(self)
        except (Exception, KeyboardInterrupt, Terminated) as error:
            note = "The training is saved, and only its results are missing."
            cure = "Once this is put right" if isinstance(error, Exception) else "To have them"
            error.add_note(f"{note} {cure}: {self.command}")
            raise
        self._write("summary.json", json.dumps(summary, indent=1) + "\n")
        return summary

    def _environment(self) -> dict[str, Any]:
        """Return what ``env.json`` holds."""
        model = self.parts.model
        found = describe(cuda=self.asked.backend != "numpy")
        found["precision"] = {"asked": self.config.train.precision, "served": model.precision}
        if model.xp.__name__ == "numpy":
            found["kernels"] = on_cpu()
        else:
            found["gpu"] = describe_gpu()
        return found | {"plugins": self.plugins}

    def train(self) -> None:
        """Train to the end; a plugin that would end the program is an error."""
        trainer = Trainer(
            self.parts.model,
            self.parts.optimizer,
            loss=self.parts.loss,
            schedule=self.parts.schedule,
            callbacks=self.callbacks,
            grad_accum=self.config.train.grad_accum,
            max_grad_norm=self.config.train.max_grad_norm,
            seed=self.config.seed,
            loss_scale=self.loss_scale,
            graph=self.config.train.graph,
            nonfinite=self.config.train.nonfinite,
            bad_steps=self._bad_steps(),
        )
        try:
            trainer.fit(self.parts.train, epochs=self.config.train.epochs, state=self.state)
        except Terminated:
            raise
        except SystemExit as error:
            problem = RuntimeError(f"it tried to end the program (SystemExit: {error.code})")
            for note in getattr(error, "__notes__", ()):
                problem.add_note(note)
            raise problem from error

    def _bad_steps(self) -> BadSteps:
        """Return what keeps steps that are not finite, with all that it takes to repeat them."""
        kept = {**self.checkpointing.documents, "config": dumps(self.config)}
        command = f"vitkit doctor {self._options()}"
        return BadSteps(self.folder, {"trainer": kept}, command)

    def _options(self) -> str:
        """Return the options of the command line with which the plugins of the run are loaded."""
        used = [each for each in self.plugins if each["source"] == "file" and each["uses"]]
        return "".join(f"--plugin {shlex.quote(each['origin'])} " for each in used)

    def _headline(self) -> str:
        model, train = self.parts.model, self.config.train
        start = f", from step {self.state.step}" if self.state.step else ""
        rounded = model.precision != "float32"
        return (
            f"{self.config.data.name}: {len(self.parts.train.dataset)} images to train on, "
            f"{len(self.data.test)} to test on. ViT {model.config.variant}, "
            f"{model.num_parameters:,} parameters, {model.xp.__name__} {self.config.dtype}"
            f"{f', products of {model.precision}' if rounded else ''}; "
            f"{train.epochs} epochs of {len(self.parts.train)} batches{start}."
        )

    def _write(self, name: str, text: str) -> None:
        files.write_file(self.folder / name, text)

    def say(self, line: str) -> None:
        """Show a line, and write it to the log."""
        self.display.say(line)
        self._log(line)

    def _log(self, line: str) -> None:
        files.append_line(self.folder / "log.txt", line)
