"""One optimizer step as a function of model, batches, loss and optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vitkit.backend import Array
from vitkit.data import Batch
from vitkit.errors import blaming
from vitkit.nn.context import Context
from vitkit.nn.module import Module
from vitkit.ops._profile import section
from vitkit.optim import Optimizer, clip_global_norm
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
        The mean over the step's images, before the update.
    correct : array, shape ()
        How many images were classified right.
    count : int
        How many images there were.
    grad_norm : array, shape (), or None
        The global norm before clipping, where clipping is on.
    lr : float
        The learning rate of the update.
    """

    loss: Array
    correct: Array
    count: int
    grad_norm: Array | None
    lr: float


def train_step(
    model: Module,
    optimizer: Optimizer,
    batches: Sequence[Batch],
    loss: Loss,
    preprocess: Preprocess,
    *,
    lr: float,
    seed: int,
    step: int,
    max_grad_norm: float | None = None,
    before_update: Callable[[], None] | None = None,
) -> StepLog:
    """Update the model once from one or several batches, without waiting for the device.

    The gradients of several batches add up to that of the one large batch they make together.

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
    lr : float
        The learning rate.
    seed, step : int
        Where dropout draws from.
    max_grad_norm : float, optional
        The global norm that gradients are clipped to.
    before_update : callable, optional
        Called when the gradients are there: what fails before has not touched the weights.

    Returns
    -------
    StepLog
        Loss and accuracy over the step's images, on the device.
    """
    xp = model.xp
    count = sum(len(batch) for batch in batches)
    total_loss: Array = 0.0
    correct: Array = 0
    with section("zeroing gradients"):
        model.zero_grad()
    for piece, batch in enumerate(batches):
        ctx = Context(train=True, seed=seed, step=step * MOST_PIECES + piece)
        labels = xp.asarray(batch.labels)
        with section(LAYERS):
            logits = model.forward(preprocess(batch.images, model), ctx)
        piece_loss, dlogits = _checked(loss(logits, labels, xp=xp), logits, loss)
        share = len(batch) / count
        with section(LAYERS):
            model.backward(dlogits * share, ctx)
        total_loss = total_loss + piece_loss * share
        correct = correct + (logits.argmax(axis=1) == labels).sum()
    norm = None
    if max_grad_norm is not None:
        with section("clipping"):
            norm = clip_global_norm(model.groups, max_grad_norm, xp=xp)
    if before_update is not None:
        before_update()
    with section("optimizer"):
        optimizer.step(lr)
    return StepLog(total_loss, correct, count, norm, lr)


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
