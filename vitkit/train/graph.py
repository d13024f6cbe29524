"""A training step, or inference, recorded once and asked of the device as one graph.

Asking a GPU for one of a small model's kernels takes Python longer than the kernel; a graph asks
for hundreds at once. What changes from step to step (pixels, labels, learning rate, count of steps)
is written to arrays that stay where they are; all else is as it was when it was recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from vitkit.backend import Array, ArrayModule, Recording, record, uploader
from vitkit.data import Batch
from vitkit.nn.module import Module
from vitkit.optim import Optimizer
from vitkit.train.loss_scale import LossScale
from vitkit.train.preprocess import Preprocess
from vitkit.train.recorded import REPAID, Graphs, wants_graphs
from vitkit.train.step import Loss, StepLog, train_step
from vitkit.validate import number

T = TypeVar("T")
Key = tuple[tuple[tuple[tuple[int, ...], str], ...], int, float]
"""Shapes and dtypes of a step's images, the seed and the weight decay."""


class GraphedStep:
    """:func:`vitkit.train.train_step`, one graph for each shape of batches.

    The first step of a shape runs as it would without, the second in the form that is recorded, so
    that all is compiled, loaded and chosen by then, and the third is recorded. The model, its
    optimizer and what they keep must stay where they are: a model that is placed anew needs a new
    ``GraphedStep``. Numbers that Python knows, such as betas and rates of dropout, are those of
    the step that was recorded: where a callback or a plugin changes them, do without.

    Each graph keeps the memory of a whole step. Where a step without a graph, an evaluation or a
    prediction finds too little beside them, they are let go of, to be recorded anew, and it is
    tried again. If that happens three times in a row before eight replays, which is what a
    recording costs, there are no more graphs.

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
        line and run without a graph, as are those of its shape after it; otherwise it raises. What
        fails amid the update of the second step raises in any case.
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
        self._graphs: Graphs[_Recorded] = Graphs(
            model.xp, "A training step", records=records, falls_back=falls_back
        )
        settings: dict[str, Any] = {
            "max_grad_norm": max_grad_norm,
            "loss_scale": loss_scale,
            "nonfinite": nonfinite,
        }

        def run(batches: Sequence[Batch], **others: Any) -> StepLog:
            return train_step(model, optimizer, batches, loss, preprocess, **settings, **others)

        self._run = run  # graphs keep it, and not this object, which keeps them

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
        others: dict[str, Any] = {"lr": lr, "seed": seed, "step": step}
        begun = False

        def begin() -> None:
            nonlocal begun
            begun = True
            if before_update is not None:
                before_update()

        def plain() -> StepLog:
            nonlocal begun
            begun = False
            return self._run(batches, **others, before_update=begin)

        def rehearse() -> StepLog:
            return made().rehearse(**others, before_update=begin)

        def replay(recorded: _Recorded) -> StepLog:
            begin()
            return recorded.replay(batches, lr, step)

        def record() -> tuple[_Recorded, StepLog]:
            recorded = made()
            return recorded, recorded.record(**others, before_update=begin)

        def made() -> _Recorded:
            return _Recorded(self.optimizer, self._run, batches, self.model.xp)

        # What a step reads on the host is as it was when it was recorded.
        shapes = tuple((batch.images.shape, batch.images.dtype.name) for batch in batches)
        key: Key = shapes, seed, self.optimizer.weight_decay
        return self._graphs.run(
            key,
            shapes,
            " + ".join(str(batch.images.shape) for batch in batches),
            plain=plain,
            rehearse=rehearse,
            record=record,
            replay=replay,
            # Until it begins to update it has written nothing but gradients, which begin anew.
            may_repeat=lambda: not begun,
        )


class _Recorded:
    """A step of one shape: its graph, if there is one, and the arrays that it reads."""

    def __init__(
        self,
        optimizer: Optimizer,
        run: Callable[..., StepLog],
        batches: Sequence[Batch],
        xp: ArrayModule,
    ) -> None:
        self._optimizer, self._run, self._xp = optimizer, run, xp
        self._batches = [_on_device(batch, xp) for batch in batches]
        self._uploads: list[Callable[[Any], None]] = []
        self._lr, self._step, self._count = (  # as Python has them, for the bits of an eager step
            xp.zeros((), kind) for kind in ("float64", "int64", "int64")
        )
        self._graph: Recording | None = None
        self._log: StepLog | None = None

    def rehearse(
        self, lr: float, step: int, before_update: Callable[[], None], **others: Any
    ) -> StepLog:
        """Do the step as it will be recorded, and return what it left.

        It has no stream or pool of its own: what is loaded and chosen depends on neither, and CuPy
        would keep the memory of one more step for them.
        """

        def begin() -> None:  # counted when a step counts itself: before it changes anything
            before_update()
            self._optimizer.check()
            self._optimizer.steps += 1

        self._write(lr, step)
        return replace(self._made(before_update=begin, **others), lr=lr)

    def record(self, lr: float, step: int, **others: Any) -> StepLog:
        """Record the step, which does it, and return what it left."""
        xp, given = self._xp, self._batches
        self._uploads = [uploader(x, xp=xp) for each in given for x in (each.images, each.labels)]
        self._write(lr, step)
        self._graph, self._log = record(lambda: self._made(**others), xp=xp)
        self._optimizer.steps += 1
        return self._copied(lr)

    def replay(self, batches: Sequence[Batch], lr: float, step: int) -> StepLog:
        """Do the step again with other images, and return what it left."""
        assert self._graph is not None  # noqa: S101
        self._optimizer.check()
        given = [array for batch in batches for array in (batch.images, batch.labels)]
        for upload, array in zip(self._uploads, given, strict=True):
            upload(array)
        self._write(lr, step)
        self._graph.replay()
        self._optimizer.steps += 1
        return self._copied(lr)

    def _made(self, **others: Any) -> StepLog:
        with self._optimizer.counting(self._count):
            return self._run(self._batches, lr=self._lr, step=self._step, **others)

    def _write(self, lr: float, step: int) -> None:
        self._lr.fill(number("lr", lr, at_least=0))
        self._step.fill(step)
        self._count.fill(self._optimizer.steps + 1)

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

    The first pass of a shape runs as it would without, the second in the form that is recorded, and
    the third is recorded. Weights are read at each pass, wherever they come from, and a model that
    is placed anew is recorded anew; what layers keep in Python is as it was in the pass that was
    recorded. Memory is shared out as by :class:`GraphedStep`.

    Parameters
    ----------
    model : Module
        The model, placed where work can be recorded (:func:`vitkit.backend.can_record`).
    records : bool, default True
        Whether passes are recorded at all. While a profile is taken none is.
    falls_back : bool, default False
        Whether a pass that cannot be recorded, as one that waits for the device, is said in one
        line and run without a graph, as are those of its shape after it; otherwise it raises.
    """

    def __init__(self, model: Module, *, records: bool = True, falls_back: bool = False) -> None:
        self.model = model
        self._settings = {"records": records, "falls_back": falls_back}
        self._begin()

    def _begin(self) -> None:
        self._groups = self.model.groups
        if self._settings["records"] and not self._settings["falls_back"]:
            wants_graphs(self.model.xp, True)  # an error now, and not at the third pass
        self._graphs: Graphs[tuple[Recording, Array, Array]] = Graphs(
            self.model.xp, "Inference", **self._settings
        )

    def __call__(self, images: Array, *, left: int = REPAID) -> Array:
        """Return the logits (B, K) of normalised images (B, C, H, W) on the device.

        Parameters
        ----------
        images : array, shape (B, C, H, W)
            In the model's dtype.
        left : int, optional
            How many passes of this shape follow this one, where it is known: few do not pay for a
            graph.
        """
        if self.model.groups is not self._groups:  # graphs read weights where they were
            self.clear()
            self._begin()
        shape, xp = (images.shape, images.dtype.name), self.model.xp

        def recorded() -> tuple[tuple[Recording, Array, Array], Array]:
            kept = xp.array(images)
            graph, logits = record(lambda: self.model(kept), xp=xp)
            return (graph, kept, logits), logits.copy()

        def replay(recorded: tuple[Recording, Array, Array]) -> Array:
            graph, kept, logits = recorded
            kept[...] = images
            graph.replay()
            return logits.copy()

        return self._graphs.run(
            shape,
            shape,
            str(images.shape),
            plain=lambda: self.model(images),
            rehearse=lambda: self.model(xp.array(images)),
            record=recorded,
            replay=replay,
            left=left,
        )

    def beside(self, function: Callable[[], T]) -> T:
        """Call a function that may be called twice: where it finds no memory, without graphs."""
        return self._graphs.beside(function)

    def clear(self) -> None:
        """Free the graphs; what is known of shapes stays, so that the next pass is recorded."""
        self._graphs.clear()
