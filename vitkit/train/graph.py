"""A training step, or inference, recorded once and asked of the device as one graph.

Asking a GPU for one of a small model's kernels takes Python longer than the kernel; a graph asks
for hundreds at once. What changes from step to step (pixels, labels, learning rate, count of steps)
is written to arrays that stay where they are; all else is as it was when it was recorded.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from vitkit.backend import Array, Recording, record, release_memory, synchronize, uploader
from vitkit.data import Batch
from vitkit.errors import first_line
from vitkit.nn.module import Module
from vitkit.ops._op import watch
from vitkit.optim import Optimizer
from vitkit.train.loss_scale import LossScale
from vitkit.train.preprocess import Preprocess
from vitkit.train.step import Loss, StepLog, train_step
from vitkit.validate import number

LOGGER = logging.getLogger("vitkit")
WARM_UP = 2  # steps of a shape before it is recorded: they compile kernels and time products

Key = tuple[tuple[tuple[tuple[int, ...], str], ...], int, float]
"""Shapes and dtypes of a step's images, the seed and the weight decay."""


class GraphedStep:
    """:func:`vitkit.train.train_step`, one graph for each shape of batches.

    The first two steps of a shape run as they would without, and the third is recorded. The model,
    its optimizer and what they keep must stay where they are: a model that is placed anew needs a
    new ``GraphedStep``. Numbers that Python knows, such as betas and rates of dropout, are those of
    the step that was recorded: where a callback or a plugin changes them, do without.

    Each graph keeps the memory of a whole step. Where a step without a graph finds too little
    beside them, they are let go of, to be recorded anew, and the step is tried again.

    Parameters
    ----------
    model : Module
        The model, placed where work can be recorded (:func:`vitkit.backend.can_record`).
    optimizer : Optimizer
        The optimizer, attached to the model.
    loss : callable
        ``loss(logits, labels, *, xp)`` returns the batch's mean and its gradient.
    preprocess : Preprocess
        How pixels become input.
    max_grad_norm : float, optional
        The global norm that gradients are clipped to.
    loss_scale : LossScale, optional
        As :func:`vitkit.train.train_step` takes it.
    nonfinite : str, optional
        Likewise.
    records : bool, default True
        Whether steps are recorded at all. While a profile is taken none is.
    falls_back : bool, default False
        Whether a step that cannot be recorded, as one that waits for the device, is said in one
        line and run without a graph, as are those of its shape after it; otherwise it raises.
    """

    def __init__(
        self,
        model: Module,
        optimizer: Optimizer,
        loss: Loss,
        preprocess: Preprocess,
        *,
        max_grad_norm: float | None = None,
        loss_scale: LossScale | None = None,
        nonfinite: str | None = None,
        records: bool = True,
        falls_back: bool = False,
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self._records, self._falls_back = records, falls_back
        self._settings: dict[str, Any] = {
            "max_grad_norm": max_grad_norm,
            "loss_scale": loss_scale,
            "nonfinite": nonfinite,
        }
        self._loss, self._preprocess = loss, preprocess
        self._seen: dict[Key, int] = {}
        self._recorded: dict[Key, _Recorded] = {}
        self._unrecordable: set[Any] = set()  # shapes, as a key has them
        self._told = False  # of graphs that were let go of

    def __call__(
        self,
        batches: Sequence[Batch],
        *,
        lr: float,
        seed: int,
        step: int,
        before_update: Callable[[], None] | None = None,
    ) -> StepLog:
        """Update the model once, as ``train_step`` does.

        Where a recorded step is done again, ``before_update`` is called before it begins.
        """
        others = {"lr": lr, "seed": seed, "step": step, "before_update": before_update}
        if not self._records or watch.get() is not None:
            return self._run_beside_graphs(batches, others)
        # What a step reads on the host is as it was when it was recorded.
        key: Key = (
            tuple((batch.images.shape, batch.images.dtype.name) for batch in batches),
            seed,
            self.optimizer.weight_decay,
        )
        recorded = self._recorded.get(key)
        if recorded is not None:
            if before_update is not None:
                before_update()
            return recorded.replay(batches, lr, step)
        seen = self._seen[key] = self._seen.get(key, 0) + 1
        if seen <= WARM_UP or key[0] in self._unrecordable:
            return self._run_beside_graphs(batches, others)
        try:
            return self._record(key, batches, others)
        except Exception as error:
            if not self._falls_back:
                raise
            LOGGER.warning(
                "Steps of images of shape %s are not recorded as graphs: %s.",
                " + ".join(str(batch.images.shape) for batch in batches),
                first_line(error),
            )
            traceback.clear_frames(error.__traceback__)  # they hold what the recording took
        self._unrecordable.add(key[0])
        release_memory(self.model.xp)
        return self._run_beside_graphs(batches, others)

    def _run_beside_graphs(self, batches: Sequence[Batch], others: dict[str, Any]) -> StepLog:
        """Run a step without a graph; where it finds no memory beside those there are, do so alone.

        Until ``before_update`` the step has written nothing but gradients, which begin anew.
        """
        begun = False

        def before_update() -> None:
            nonlocal begun
            begun = True
            if others["before_update"] is not None:
                others["before_update"]()

        try:
            return self.run(batches, **{**others, "before_update": before_update})
        except MemoryError as error:
            if begun or not self._recorded:
                raise
            self._let_go(error)
        return self.run(batches, **others)

    def _let_go(self, error: MemoryError) -> None:
        """Free what the graphs and the frames of an error hold."""
        if not self._told:
            LOGGER.warning(
                "Graphs of recorded steps leave too little memory for a step without (%s): they "
                "are let go of for it and recorded again, each time.",
                first_line(error),
            )
        self._told = True
        traceback.clear_frames(error.__traceback__)
        synchronize(self.model.xp)  # sync: the last replay may still use what is freed
        self._recorded.clear()
        release_memory(self.model.xp)

    def _record(self, key: Key, batches: Sequence[Batch], others: dict[str, Any]) -> StepLog:
        recorded = _Recorded(self, batches, self.model.xp)
        log = recorded.record(**others)
        self._recorded[key] = recorded
        return log

    def run(self, batches: Sequence[Batch], **others: Any) -> StepLog:
        """Run a step without a graph."""
        return train_step(
            self.model,
            self.optimizer,
            batches,
            self._loss,
            self._preprocess,
            **self._settings,
            **others,
        )


class _Recorded:
    """A step of one shape: its graph, and the arrays that it reads."""

    def __init__(self, owner: GraphedStep, batches: Sequence[Batch], xp: Any) -> None:
        self._owner, self._xp = owner, xp
        self._batches = [_on_device(batch, xp) for batch in batches]
        self._uploads = [
            uploader(array, xp=xp) for each in self._batches for array in (each.images, each.labels)
        ]
        self._lr, self._step, self._count = (  # as Python has them, for the bits of an eager step
            xp.zeros((), kind) for kind in ("float64", "int64", "int64")
        )
        self._graph: Recording | None = None
        self._log: StepLog | None = None

    def record(self, lr: float, step: int, **others: Any) -> StepLog:
        """Record the step, which does it, and return what it left."""
        optimizer = self._owner.optimizer
        self._write(lr, step)

        def run() -> StepLog:
            with optimizer.counting(self._count):
                return self._owner.run(self._batches, lr=self._lr, step=self._step, **others)

        self._graph, self._log = record(run, xp=self._xp)
        optimizer.steps += 1
        return self._copied(lr)

    def replay(self, batches: Sequence[Batch], lr: float, step: int) -> StepLog:
        """Do the step again with other images, and return what it left."""
        assert self._graph is not None  # noqa: S101
        self._owner.optimizer.check()
        given = [array for batch in batches for array in (batch.images, batch.labels)]
        for upload, array in zip(self._uploads, given, strict=True):
            upload(array)
        self._write(lr, step)
        self._graph.replay()
        self._owner.optimizer.steps += 1
        return self._copied(lr)

    def _write(self, lr: float, step: int) -> None:
        self._lr.fill(number("lr", lr, at_least=0))
        self._step.fill(step)
        self._count.fill(self._owner.optimizer.steps + 1)

    def _copied(self, lr: float) -> StepLog:
        """Return the log in arrays of its own: the next replay writes these."""
        log = self._log
        assert log is not None  # noqa: S101
        arrays = {
            name: value.copy()
            for name, value in vars(log).items()
            if hasattr(value, "dtype") and value is not self._lr
        }
        return replace(log, **arrays, lr=lr)


def _on_device(batch: Batch, xp: Any) -> Batch:
    """Return a batch whose images and labels are arrays of the device."""
    images, labels = xp.array(batch.images), xp.array(batch.labels)
    return replace(batch, images=images, labels=labels)


class GraphedForward:
    """A model's inference, one graph for each shape of images.

    Parameters
    ----------
    model : Module
        The model, placed where work can be recorded.
    """

    def __init__(self, model: Module) -> None:
        self.model = model
        self._seen: dict[tuple[int, ...], int] = {}
        self._recorded: dict[tuple[int, ...], tuple[Recording, Array, Array]] = {}

    def __call__(self, images: Array) -> Array:
        """Return the logits (B, K) of normalised images (B, C, H, W) on the device."""
        shape, xp = images.shape, self.model.xp
        if shape not in self._recorded:
            seen = self._seen[shape] = self._seen.get(shape, 0) + 1
            if seen <= WARM_UP:
                return self.model(images)
            kept = xp.array(images)
            graph, logits = record(lambda: self.model(kept), xp=xp)
            self._recorded[shape] = graph, kept, logits
            return logits.copy()
        graph, kept, logits = self._recorded[shape]
        kept[...] = images
        graph.replay()
        return logits.copy()
