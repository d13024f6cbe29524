"""What a trainer does about a step that is not finite: name where it began, and keep it."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import vitkit.checkpoint.files as files
from vitkit.data import Batch
from vitkit.errors import CheckpointError, first_line
from vitkit.nn.module import Module
from vitkit.optim import Optimizer
from vitkit.train.preprocess import Preprocess
from vitkit.train.replay import Finding, first_after_update, first_not_finite
from vitkit.train.step import Loss

KEPT = 3
"""How many bad steps a run folder keeps: each is as large as weights and optimizer together."""
_NAME = re.compile(r"bad-step-\d{8,18}", re.ASCII)
_PARTS = ("images", "labels", "indices")


@dataclass(frozen=True)
class BadStep:
    """A step that is not finite, and all that it takes to make it again.

    Attributes
    ----------
    model, optimizer : Module, Optimizer
        As they were before it, on the host.
    batches : sequence of Batch
        Its images.
    loss, preprocess : callable
        Those of the run.
    seed, step : int
        Where its random numbers come from; the first step of a run is 0.
    lr : float
        The learning rate of its update.
    max_grad_norm : float or None
        The norm that its gradients are clipped to.
    """

    model: Module
    optimizer: Optimizer
    batches: Sequence[Batch]
    loss: Loss
    preprocess: Preprocess
    seed: int
    step: int
    lr: float
    max_grad_norm: float | None

    def find(self) -> Finding | None:
        """Make forward and backward again, and name the first number that is not finite."""
        return first_not_finite(
            self.model, self.batches, self.loss, self.preprocess, seed=self.seed, step=self.step
        )

    def find_in_update(self) -> Finding | None:
        """Make the update by the gradients of :meth:`find`, and name the first such number."""
        return first_after_update(
            self.model, self.optimizer, lr=self.lr, max_grad_norm=self.max_grad_norm
        )

    def told(self, problem: str) -> tuple[str, Finding | None]:
        """Return what to say of it, and what is found."""
        found = None
        try:
            found = self.find()
            where = str(found or "made again, it was finite; it depends on more than its images")
        except Exception as error:  # of a layer or loss; what is known must be said all the same
            where = f"made again, it ended with {first_line(error)}"
        return f"{problem} in step {self.step + 1}: {where}", found

    def facts(self, found: Finding | None) -> dict[str, Any]:
        """Return what is kept of it besides arrays, as plain values."""
        kept = {name: getattr(self, name) for name in ("seed", "step", "max_grad_norm")}
        return {**kept, "lr": float(self.lr), "found": found.to_dict() if found else None}


@dataclass(frozen=True)
class BadSteps:
    """Writes bad steps to ``bad-step-NNNNNNNN`` in a run folder, the latest few of them.

    A bad step is weights and optimizer before it, its images, and where its random numbers come
    from: what ``vitkit doctor`` makes it again with. Nothing in it can run code.

    Parameters
    ----------
    folder : Path
        The run folder.
    documents : mapping
        What else is kept with each, such as the model's configuration.
    command : str, default ""
        With what a person looks at one; its path is put behind.
    """

    folder: Path
    documents: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    command: str = ""

    def write(self, step: BadStep, found: Finding | None) -> Path:
        """Write a bad step in place of one of the same step, and return where it is.

        Raises
        ------
        CheckpointError
            If it cannot be written.
        """
        path = self.folder / f"bad-step-{step.step + 1:08d}"
        arrays = {
            "model": step.model.state_dict(),
            "optim": step.optimizer.state_dict(),
            "batch": {
                f"{piece}.{part}": np.asarray(getattr(batch, part))
                for piece, batch in enumerate(step.batches)
                for part in _PARTS
            },
        }
        try:
            if path.exists():
                shutil.rmtree(path)
            files.save(path, arrays, {"step": step.facts(found), **self.documents})
            for old in bad_steps_of(self.folder)[:-KEPT]:
                shutil.rmtree(old)
        except OSError as error:
            raise CheckpointError(f"Cannot write the bad step {path}: {error}") from error
        return path

    def said(self, step: BadStep, found: Finding | None) -> str:
        """Write a bad step, and return how to look at it, or why it could not be written."""
        try:
            path = self.write(step, found)
        except CheckpointError as error:
            return str(error)
        return f"To look at it: {self.command}{shlex.quote(str(path))}"


def bad_steps_of(folder: Path) -> list[Path]:
    """Return the bad steps of a run folder, the one written last at the end."""
    paths = [path for path in folder.glob("bad-step-*") if _NAME.fullmatch(path.name)]
    return sorted(paths, key=lambda path: (path.stat().st_mtime_ns, path.name))


def batches_of(arrays: Mapping[str, np.ndarray]) -> list[Batch]:
    """Return the batches that a bad step holds.

    Raises
    ------
    KeyError, ValueError
        If it holds others than were written.
    """
    count = len(arrays) // len(_PARTS)
    batches = []
    for piece in range(count):
        images, labels, indices = (arrays[f"{piece}.{part}"] for part in _PARTS)
        if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
            raise ValueError(f"its images are {images.dtype} of shape {images.shape}")
        if any(a.dtype != np.int64 or a.shape != images.shape[:1] for a in (labels, indices)):
            raise ValueError("its labels or indices do not belong to its images")
        batches.append(Batch(images, labels, indices, piece))
    if not batches or len(arrays) != count * len(_PARTS):
        raise ValueError("it holds no batches")
    return batches


CURES = {
    "weights": "The weights were not finite before it: resume from an earlier checkpoint, with a "
    "lower learning rate.",
    "input": "Look at the mean and deviation that pixels are normalised with.",
    "loss": "Look at the loss and at the labels of this image.",
    "optimizer": "Lower the learning rate, or resume from an earlier checkpoint.",
}
CURE = "Lower the learning rate, clip gradients (max_grad_norm), or look at the data."


def cure_of(finding: Finding | None) -> str:
    """Return what to do about a finding."""
    return CURE if finding is None else CURES.get(finding.stage, CURE)
