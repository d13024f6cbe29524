"""One optimizer step as a function of model, batches, loss and optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from vitkit.backend import Array, ArrayModule, backend_of
from vitkit.data import Batch
from vitkit.errors import blaming
from vitkit.nn.context import Context
from vitkit.nn.module import Module
from vitkit.ops._profile import section
from vitkit.optim import Optimizer, clip_global_norm
from vitkit.train.loss_scale import LossScale, overflow_expected
from vitkit.train.nonfinite import NotFinite, finite_gradients, judge
from vitkit.train.preprocess import Preprocess

Loss = Callable[..., tuple[Array, Array]]
"""``loss(logits, labels, *, xp)`` returns the mean over the batch and its gradient."""


LAYERS = "layers, between operations"
"""What a profile calls the code of layers."""

MOST_PIECES = 2**20  # so that no two passes of a run share a dropout key


@dataclass(frozen=True)
class StepLog:
    """What one step leaves to look at; arrays are on the device, and reading one waits for it.

    Attributes
    ----------
    loss : array, shape ()
        The mean over the step's images, before the update; 0 where none of them counts.
    correct : array, shape ()
        How many images were classified right; likewise.
    count : int
        How many images there were.
    grad_norm : array, shape (), or None
        The global norm before clipping, where clipping is on.
    lr : float
        The learning rate of the update.
    skipped : array, shape (), or None
        Whether the update was skipped, since a gradient was not finite; where steps may be.
    counted : array, shape (), or None
        How many images count in means, where steps may be skipped: all of them, but for a
        skipped step whose loss is not finite.
    """

    loss: Array
    correct: Array
    count: int
    grad_norm: Array | None
    lr: float
    skipped: Array | None = None
    counted: Array | None = None


def train_step(
    model: Module,
    optimizer: Optimizer,
    batches: Sequence[Batch],
    loss: Loss,
    preprocess: Preprocess,
    *,
    lr: float | Array,
    seed: int,
    step: int | Array,
    max_grad_norm: float | None = None,
    before_update: Callable[[], None] | None = None,
    loss_scale: LossScale | None = None,
    nonfinite: str | None = None,
) -> StepLog:
    """Update the model once from one or several batches, without waiting for the device.

    The gradients of several batches add up to that of the one large batch they make together.
    With a loss scale, a step whose gradient is not finite leaves weights and optimizer untouched.

    Parameters
    ----------
    model : Module
        The model, placed.
    optimizer : Optimizer
        The optimizer, attached to the model.
    batches : sequence of Batch
        The images to learn from, in pieces that fit in memory.
    loss : callable
        ``loss(logits, labels, *, xp)`` returns the batch's mean and its gradient.
    preprocess : Preprocess
        How pixels become input.
    lr : float, or array of shape ()
        The learning rate.
    seed, step : int
        Where dropout draws from; the step may be an array of shape (), as may the learning rate,
        for a step that is recorded as a graph.
    max_grad_norm : float, optional
        The global norm that gradients are clipped to.
    before_update : callable, optional
        Called when the gradients are there: what fails before has not touched the weights.
    loss_scale : LossScale, optional
        What the loss is multiplied by for backward; updated with the weights.
    nonfinite : str, optional
        What to do about a loss or gradient that is not finite, where no loss is scaled. With
        ``"skip"`` the step leaves weights and optimizer untouched; with ``"raise"`` or ``"stop"``
        it raises before it has touched them, on the host alone. By default nothing is looked at.

    Returns
    -------
    StepLog
        Loss and accuracy over the step's images, on the device.

    Raises
    ------
    NotFinite
        As ``nonfinite`` says.
    """
    on_host = backend_of(model.xp).on_host
    judged = nonfinite is not None and loss_scale is None
    expected = loss_scale is not None or (judged and on_host)
    with overflow_expected() if expected else nullcontext():
        total_loss, correct = add_gradients(
            model, batches, loss, preprocess, seed, step * MOST_PIECES, loss_scale
        )
        norm = finite = None
        if loss_scale is not None:
            with section("loss scaling"):
                loss_scale.unscale_(model.groups)
                finite = loss_scale.finite(model.groups)
        elif judged and (on_host or nonfinite == "skip"):
            with section("looking for numbers that are not finite"):
                clips = max_grad_norm is not None
                finite, norm = _judged(total_loss, model, clips, skips=nonfinite == "skip")
        if max_grad_norm is not None:
            with section("clipping"):
                norm = clip_global_norm(model.groups, max_grad_norm, xp=model.xp, norm=norm)
        if before_update is not None:
            before_update()
        with section("optimizer"):
            optimizer.step(lr) if finite is None else optimizer.step(lr, where=finite)
    count = sum(len(batch) for batch in batches)
    log = StepLog(total_loss, correct, count, norm, lr)
    if finite is None:
        return log
    if loss_scale is None:
        return _log_of_one_that_may_be_skipped(log, finite, model.xp)
    with section("loss scaling"):
        loss_scale.update(finite)
        return _log_of_one_that_may_be_skipped(log, finite, model.xp)


def _judged(
    loss: Array, model: Module, clips: bool, *, skips: bool
) -> tuple[Array | None, Array | None]:
    """Return whether a step is finite, if it may be skipped, and the norm if it is known."""
    xp = model.xp
    if not backend_of(xp).on_host:
        return finite_gradients(model.groups, xp=xp) & xp.isfinite(loss), None
    problem, norm = judge(loss, model.groups, clips=clips, xp=xp)
    if problem and not skips:
        raise NotFinite(problem)
    return xp.asarray(not problem) if skips else None, norm


def _log_of_one_that_may_be_skipped(log: StepLog, finite: Array, xp: ArrayModule) -> StepLog:
    """Return the log of a step that may be skipped, which must not spoil the means then."""
    usable = finite | xp.isfinite(log.loss)
    return replace(
        log,
        loss=xp.where(usable, log.loss, 0.0),
        correct=xp.where(usable, log.correct, 0),
        skipped=xp.logical_not(finite),
        counted=usable * log.count,
    )


def add_gradients(
    model: Module,
    batches: Sequence[Batch],
    loss: Loss,
    preprocess: Callable[[Any, Module], Array],
    seed: int,
    first_pass: int | Array,
    loss_scale: LossScale | None,
) -> tuple[Array, Array]:
    """Set the gradients to those of some batches; return mean loss and how many were right."""
    xp, count = model.xp, sum(len(batch) for batch in batches)
    total_loss: Array = 0.0
    correct: Array = 0
    with section("zeroing gradients"):
        model.zero_grad()
    with model.rounded_once():
        for piece, batch in enumerate(batches):
            ctx = Context(train=True, seed=seed, step=first_pass + piece, input_gradient=False)
            labels = xp.asarray(batch.labels)
            with section(LAYERS):
                logits = model.forward(preprocess(batch.images, model), ctx)
            piece_loss, dlogits = _checked(loss(logits, labels, xp=xp), logits, loss)
            share = len(batch) / count
            with section(LAYERS):
                dlogits = dlogits * share
                if loss_scale is not None:
                    dlogits = loss_scale.scale_gradient(dlogits)
                model.backward(dlogits, ctx)
            total_loss = total_loss + piece_loss * share
            correct = correct + (logits.argmax(axis=1) == labels).sum()
    return total_loss, correct


def _checked(found: Any, logits: Array, loss: Loss) -> tuple[Array, Array]:
    """Return what a loss returned, if it is a number and a gradient; asks no device."""
    pair = found if isinstance(found, (tuple, list)) else ()
    shapes = [getattr(each, "shape", ()) for each in pair]  # a number of Python has none
    if shapes == [(), logits.shape]:
        return found[0], found[1]
    came = f"arrays of shapes {shapes}" if shapes else f"an object of type {type(found).__name__}"
    name = getattr(getattr(loss, "func", loss), "__qualname__", repr(loss))
    raise blaming(
        ValueError(
            f"The loss {name} returned {came}; expected (loss, dlogits) of shapes () and "
            f"{logits.shape}. vitkit.testing.check_loss shows what else is due."
        ),
        loss,
    )
