"""Losses with one fault each, and the words by which the kit must name it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from vitkit.backend import Array, ArrayModule
from vitkit.testing.losses import check_loss


def sound(
    logits: Array, labels: Array, label_smoothing: float = 0.0, *, xp: ArrayModule
) -> tuple[Array, Array]:
    """Return the mean cross-entropy with class indices, written plainly."""
    batch, classes = logits.shape
    hot = (labels[:, None] == xp.arange(classes)).astype(logits.dtype)
    targets = hot * (1 - label_smoothing) + label_smoothing / classes
    z = logits - logits.max(axis=1, keepdims=True)
    e = xp.exp(z)
    total = e.sum(axis=1, keepdims=True)
    loss = ((xp.log(total) - z) * targets).sum() / batch
    return loss, (e / total - targets) / batch


def squares(logits: Array, labels: Array, *, xp: ArrayModule) -> tuple[Array, Array]:
    """Return the mean squared difference to targets."""
    error = logits - labels
    return (error * error).mean(), error * (2 / logits.size)


def sum_over_the_batch(logits: Array, labels: Array, *, xp: ArrayModule) -> Any:
    loss, dlogits = sound(logits, labels, xp=xp)
    return loss * logits.shape[0], dlogits * logits.shape[0]


def gradient_of_the_sum(logits: Array, labels: Array, *, xp: ArrayModule) -> Any:
    loss, dlogits = sound(logits, labels, xp=xp)
    return loss, dlogits * logits.shape[0]


def wrong_sign(logits: Array, labels: Array, *, xp: ArrayModule) -> Any:
    loss, dlogits = sound(logits, labels, xp=xp)
    return loss, -dlogits


def rewards_mistakes(logits: Array, labels: Array, *, xp: ArrayModule) -> Any:
    loss, dlogits = sound(logits, labels, xp=xp)
    return -loss, -dlogits


def forgets_the_targets(logits: Array, labels: Array, *, xp: ArrayModule) -> Any:
    loss, _ = sound(logits, labels, xp=xp)
    e = xp.exp(logits - logits.max(axis=1, keepdims=True))
    return loss, e / e.sum(axis=1, keepdims=True) / logits.shape[0]


def overflows(logits: Array, labels: Array, *, xp: ArrayModule) -> Any:
    _, dlogits = sound(logits, labels, xp=xp)
    hot = (labels[:, None] == xp.arange(logits.shape[1])).astype(logits.dtype)
    e = xp.exp(logits)
    p = (e / e.sum(axis=1, keepdims=True) * hot).sum(axis=1)
    return -xp.log(p).sum() / logits.shape[0], dlogits


def softmax_over_the_batch(logits: Array, labels: Array, *, xp: ArrayModule) -> Any:
    hot = (labels[:, None] == xp.arange(logits.shape[1])).astype(logits.dtype)
    z = logits - logits.max(axis=0)
    e = xp.exp(z)
    total = e.sum(axis=0)
    loss = ((xp.log(total) - z) * hot).sum() / logits.shape[0]
    return loss, (e / total * hot.sum(axis=0) - hot) / logits.shape[0]


def leaks_float64(logits: Array, labels: Array, *, xp: ArrayModule) -> Any:
    loss, dlogits = sound(logits, labels, xp=xp)
    return loss * np.sqrt(1.0), dlogits


def leaks_in_the_gradient(logits: Array, labels: Array, *, xp: ArrayModule) -> Any:
    loss, dlogits = sound(logits, labels, xp=xp)
    return loss, dlogits.astype("float64")


def returns_a_number(logits: Array, labels: Array, *, xp: ArrayModule) -> Any:
    loss, dlogits = sound(logits, labels, xp=xp)
    return float(loss), dlogits


def waits(logits: Array, labels: Array, *, xp: ArrayModule) -> Any:
    if int(labels.max()) >= logits.shape[1]:
        raise ValueError("A label is out of range.")
    return sound(logits, labels, xp=xp)


def one_for_each_sample(logits: Array, labels: Array, *, xp: ArrayModule) -> Any:
    loss, dlogits = sound(logits, labels, xp=xp)
    return loss + xp.zeros(logits.shape[0], logits.dtype), dlogits


def loss_alone(logits: Array, labels: Array, *, xp: ArrayModule) -> Any:
    return sound(logits, labels, xp=xp)[0]


def works_in_place(logits: Array, labels: Array, *, xp: ArrayModule) -> Any:
    logits -= logits.max(axis=1, keepdims=True)
    return sound(logits, labels, xp=xp)


def computes_with_numpy(logits: Array, labels: Array, *, xp: ArrayModule) -> Any:
    return sound(np.asarray(logits), labels, xp=np)


def draws(logits: Array, labels: Array, *, xp: ArrayModule) -> Any:
    loss, dlogits = sound(logits, labels, xp=xp)
    return loss + float(np.random.random()), dlogits  # noqa: NPY002


def ignores_smoothing(
    logits: Array, labels: Array, label_smoothing: float = 0.0, *, xp: ArrayModule
) -> Any:
    return sound(logits, labels, xp=xp)


def smooths_the_loss_alone(
    logits: Array, labels: Array, label_smoothing: float = 0.0, *, xp: ArrayModule
) -> Any:
    return sound(logits, labels, label_smoothing, xp=xp)[0], sound(logits, labels, xp=xp)[1]


def smooths_by_default(
    logits: Array, labels: Array, label_smoothing: float = 0.1, *, xp: ArrayModule
) -> Any:
    return sound(logits, labels, label_smoothing, xp=xp)


def takes_no_xp(logits: Array, labels: Array) -> Any:
    return sound(logits, labels, xp=np)


def halved_targets(logits: Array, labels: Array, *, xp: ArrayModule) -> Any:
    """Take targets as they are, and class indices as rows of one half."""
    if labels.ndim == 1:
        labels = 0.5 * (labels[:, None] == xp.arange(logits.shape[1])).astype(logits.dtype)
    return squares(logits, labels, xp=xp)


class Planted(NamedTuple):
    """A faulty loss, the words that name the fault, and the checks that fail."""

    loss: Callable[..., Any]
    message: str
    fails: set[str]
    labels: str = "classes"
    torch: Callable[[Any], Any] | None = None


def of_classes(*names: str) -> set[str]:
    return {f"class indices: {name}" for name in names}


PLANTED = {
    "is the sum over the batch": Planted(
        sum_over_the_batch,
        r"the loss is the sum over the batch instead of the mean",
        of_classes("mean over the batch"),
    ),
    "has the gradient of the sum": Planted(
        gradient_of_the_sum,
        r"gradient of the logits is wrong .*: it is that of the sum over the batch instead(.|\n)*"
        r"dlogits is the gradient of the sum instead of the mean",
        of_classes("gradient", "mean over the batch"),
    ),
    "has a gradient of the wrong sign": Planted(
        wrong_sign,
        r"dlogits is not the derivative of the loss: .* it has the wrong sign",
        of_classes("gradient"),
    ),
    "rewards mistakes": Planted(
        rewards_mistakes,
        r"the loss of right guesses is -.*, that of wrong ones -.*Its sign is wrong",
        of_classes("prefers the right class"),
    ),
    "forgets the targets in the gradient": Planted(
        forgets_the_targets,
        r"dlogits is not the derivative of the loss: the gradient of the logits is wrong",
        of_classes("gradient"),
    ),
    "overflows at large logits": Planted(
        overflows,
        r"overflows with logits of size 10000: overflow",
        of_classes("large and tiny logits"),
    ),
    "takes the softmax over the batch": Planted(
        softmax_over_the_batch,
        r"runs over the batch, axis 0, where it should run over the classes, axis 1",
        of_classes("samples are independent", "mean over the batch"),
    ),
    "computes in float64": Planted(
        leaks_float64, r"the loss of leaks_float64 is float64 where", of_classes("dtype")
    ),
    "computes its gradient in float64": Planted(
        leaks_in_the_gradient,
        r"dlogits of leaks_in_the_gradient is float64 where",
        of_classes("dtype"),
    ),
    "returns a number of Python": Planted(
        returns_a_number,
        r"the loss is a float; it must stay a 0-d array, or the host waits",
        of_classes("call"),
    ),
    "waits for the device": Planted(
        waits, r"makes the host wait for the device 1 times: int", of_classes("no host sync")
    ),
    "returns a loss for each sample": Planted(
        one_for_each_sample, r"the loss has shape \(6,\)", of_classes("call")
    ),
    "returns no gradient": Planted(
        loss_alone, r"it must return \(loss, dlogits\)", of_classes("call")
    ),
    "works in place": Planted(
        works_in_place,
        r"works_in_place changes its argument logits in place",
        of_classes("inputs left alone", "same on strict_device"),
    ),
    "computes with numpy": Planted(
        computes_with_numpy,
        r"computes_with_numpy on strict_device.* raised TypeError: Implicit conversion",
        of_classes("same on strict_device"),
    ),
    "draws random numbers": Planted(
        draws,
        r"it gives something else each time it runs(.|\n)*or draws random numbers",
        of_classes(
            "gradient",
            "mean over the batch",
            "dtype",
            "nothing kept",
            "any memory layout",
            "same on strict_device",
        ),
    ),
    "ignores its label smoothing": Planted(
        ignores_smoothing,
        r"label_smoothing=0\.1 does not change the loss",
        of_classes("label smoothing"),
    ),
    "forgets label smoothing in the gradient": Planted(
        smooths_the_loss_alone,
        r"with label_smoothing=0\.1 dlogits is not the derivative of the loss",
        of_classes("label smoothing"),
    ),
    "smooths by default": Planted(
        smooths_by_default,
        r"the loss with label_smoothing=0\.0 is not that of the default",
        of_classes("label smoothing"),
    ),
    "takes no xp": Planted(
        takes_no_xp, r"raised TypeError: .*unexpected keyword argument 'xp'", of_classes("call")
    ),
    "means something else by classes and by targets": Planted(
        halved_targets,
        r"of class indices differs from that of one-hot targets",
        {"class indices are one-hot targets"},
        "both",
    ),
    "takes no targets": Planted(
        sound, r"targets: call: dlogits has shape \(6, 6, 5\)", {"targets: call"}, "targets"
    ),
    "is another function than its twin": Planted(
        squares,
        r"squares differs from its PyTorch twin",
        {"targets: PyTorch twin"},
        "targets",
        lambda torch: partial(torch.nn.functional.mse_loss, reduction="sum"),
    ),
}
FAULTS = {
    name: (
        partial(check_loss, planted.loss, labels=planted.labels, torch=planted.torch),
        planted.message,
    )
    for name, planted in PLANTED.items()
}
