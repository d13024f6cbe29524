"""Whether a loss is what training may use: the mean over a batch, and its gradient."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from vitkit.backend import Array, philox
from vitkit.testing.check import Check, run_checks
from vitkit.testing.gradients import assert_close
from vitkit.testing.parts.array_modules import draw, torch_or_skip
from vitkit.testing.parts.blame import Claim, fail_if
from vitkit.testing.parts.function_checks import finite, function_checks
from vitkit.testing.parts.functions import Function, cast, doing, name_of
from vitkit.testing.parts.staged import staged

BATCH = 6
SCALES = (1e4, 1e-30, 0.0)
"""Of logits: large ones, those whose square is zero in float32, and zero."""
KINDS: dict[str, tuple[str, ...]] = {
    "classes": ("class indices",),
    "targets": ("targets",),
    "both": ("class indices", "targets"),
}
"""What a loss may be given as labels, by what is said of it."""


def check_loss(
    loss: Callable[..., tuple[Array, Array]],
    *,
    num_classes: int = 5,
    torch: Callable[[Any], Callable[..., Any]] | None = None,
    labels: str = "classes",
) -> None:
    """Raise unless a loss is the mean over the batch, and its gradient right, on every device.

    Parameters
    ----------
    loss : callable
        ``loss(logits, labels, *, xp)`` returns ``(loss, dlogits)``: a 0-d array and the gradient
        of it with respect to the logits (B, K). A parameter ``label_smoothing`` is checked too.
    num_classes : int, default 5
        K.
    torch : callable, optional
        ``torch(torch)`` returns PyTorch's spelling, to be compared where PyTorch is installed:
        ``torch=lambda torch: torch.nn.functional.cross_entropy``.
    labels : str, default "classes"
        What the loss takes: ``"classes"``, indices (B,) of int64; ``"targets"``, floats (B, K);
        or ``"both"``.

    Raises
    ------
    ConformanceError
        Naming what is wrong, all of it at once.
    """
    checks = loss_checks(loss, num_classes=num_classes, torch=torch, labels=labels)
    run_checks(f"loss {name_of(loss, 'loss')!r}", checks)


def loss_checks(
    loss: Callable[..., tuple[Array, Array]],
    *,
    num_classes: int = 5,
    torch: Callable[[Any], Callable[..., Any]] | None = None,
    labels: str = "classes",
) -> list[Check]:
    """Return the checks of :func:`check_loss`, which takes the same arguments."""
    if labels not in KINDS:
        raise ValueError(f"labels must be one of {', '.join(map(repr, KINDS))}; got {labels!r}.")
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2; got {num_classes}.")
    listed = []
    for kind in KINDS[labels]:
        f = Loss.of(loss, num_classes, kind)
        checks = {name: partial(check, f) for name, check in CHECKS.items()}
        if _takes_smoothing(loss):
            checks["label smoothing"] = partial(smoothing, f)
        if torch is not None:
            checks["PyTorch twin"] = partial(agrees_with_torch, f, torch)
        own = [Check(f"{kind}: {name}", check) for name, check in checks.items()]
        call = Check(f"{kind}: call", partial(returns_loss_and_gradient, f))
        listed += staged([call], [*own, *function_checks(kind, f)])
    if labels == "both":
        one, two = (Loss.of(loss, num_classes, kind) for kind in KINDS["both"])
        listed.append(Check("class indices are one-hot targets", partial(one_hot, one, two)))
    return listed


def _takes_smoothing(loss: Callable[..., Any]) -> bool:
    try:
        return "label_smoothing" in inspect.signature(loss).parameters
    except (TypeError, ValueError):  # some of those written in C do not say
        return False


@dataclass(frozen=True)
class Loss(Function):
    """A loss, as a function of logits and of one kind of labels."""

    classes: int = 5

    @classmethod
    def of(cls, loss: Callable[..., Any], classes: int, kind: str) -> Loss:
        """Return ``loss`` with labels of a kind of :data:`KINDS`."""

        def inputs(seed: int) -> Sequence[np.ndarray]:
            logits = draw((BATCH, classes), seed=seed)
            rng = philox(seed, "conformance labels")
            if kind == "targets":
                return logits, rng.dirichlet(np.ones(classes), BATCH)
            return logits, rng.integers(0, classes, BATCH)

        return cls(name_of(loss, "loss"), ("logits", "labels"), loss, inputs, classes=classes)

    def label(self, at: int, of: int) -> str:
        """Return what a message calls a result."""
        return f"{('the loss', 'dlogits')[at]} of {self.name}"

    def at(self, logits: np.ndarray, labels: np.ndarray, **options: float) -> Any:
        """Return the loss and its gradient on NumPy."""
        return self.call(logits.copy(), labels.copy(), xp=np, **options)


def returns_loss_and_gradient(f: Loss) -> None:
    """Check that a call gives a 0-d array, and an array of the shape of the logits."""
    for batch in (BATCH, 1):
        logits, labels = (host[:batch] for host in f.draw(0))
        with doing(f"{f.name}(logits {logits.shape}, labels {labels.shape}, xp=numpy)"):
            value = f.at(logits, labels)
        if not isinstance(value, tuple) or len(value) != 2:
            raise AssertionError(
                f"{f.name} returned {type(value).__name__}; it must return (loss, dlogits), the "
                "mean over the batch and its gradient."
            )
        loss, dlogits = value
        if not isinstance(loss, (np.ndarray, np.generic)):
            raise AssertionError(
                f"the loss is a {type(loss).__name__}; it must stay a 0-d array, or the host "
                "waits for the device at every step. Leave out float() and .item()."
            )
        if loss.shape != ():
            raise AssertionError(
                f"the loss has shape {loss.shape}; it must be one number, the mean over the batch."
            )
        if getattr(dlogits, "shape", None) != logits.shape:
            raise AssertionError(
                f"dlogits has shape {getattr(dlogits, 'shape', None)}; it must have that of "
                f"the logits, {logits.shape}."
            )


def gradient(f: Loss, **options: float) -> None:
    """Check that dlogits is the gradient of the loss, by finite differences in float64."""
    factors = {
        "it is that of the sum over the batch instead of the mean; divide by the batch": BATCH,
        "it is divided by the batch once too often": 1 / BATCH,
        "a division by the number of classes is missing": f.classes,
        "it is divided by the number of classes, and must not be": 1 / f.classes,
        "a division by batch and classes is missing": BATCH * f.classes,
    }
    logits, labels = f.draw(0)
    logits = logits.copy()
    _, dlogits = f.at(logits, labels, **options)
    claim = Claim(
        lambda: f.at(logits, labels, **options)[0],
        {"the logits": logits},
        {"the logits": np.asarray(dlogits)},
        np,
    )
    fail_if(claim.problem(factors), "dlogits is not the derivative of the loss")


def is_the_mean(f: Loss) -> None:
    """Check that two copies of a batch have the same loss, and half the gradient each."""
    logits, labels = f.draw(0)
    twice = np.concatenate([logits, logits]), np.concatenate([labels, labels])
    (loss, dlogits), (loss2, dlogits2) = f.at(logits, labels), f.at(*twice)
    one, two = float(loss), float(loss2)
    if not np.isclose(two, one, rtol=1e-10, atol=0):
        what = "is the sum over the batch instead of the mean" if np.isclose(two, 2 * one) else ""
        raise AssertionError(
            f"the loss {what or 'is not the mean over the batch'}: two copies of a batch have "
            f"{two:.6g}, one has {one:.6g}. Divide by logits.shape[0]."
        )
    if np.allclose(dlogits2[:BATCH], dlogits, rtol=1e-10, atol=0):
        raise AssertionError(
            "dlogits is the gradient of the sum instead of the mean: two copies of a batch have "
            "the same gradient as one. Divide by logits.shape[0]."
        )
    try:
        assert_close(dlogits2, np.concatenate([dlogits, dlogits]) / 2)
    except AssertionError as error:
        raise AssertionError(
            f"the gradient of two copies of a batch is not half that of one: {error}"
        ) from None


def samples_are_independent(f: Loss) -> None:
    """Check that a sample's gradient depends on no other sample."""
    logits, labels = f.draw(0)
    others = logits.copy()
    others[0] += draw(others[0].shape, seed=9)
    before, after = (f.at(x, labels)[1] for x in (logits, others))
    try:
        assert_close(after[1:], before[1:])
    except AssertionError as error:
        raise AssertionError(
            f"another first sample changes the gradient of the others, {error} A sum or a "
            "softmax runs over the batch, axis 0, where it should run over the classes, axis 1."
        ) from None


def any_size(f: Loss) -> None:
    """Check that large, tiny and zero logits, and a batch of one, give finite numbers."""
    logits, labels = f.draw(0)
    for scale in SCALES:
        finite(f, cast([scale * np.sign(logits), labels], "float32"), f"logits of size {scale:g}")
    finite(f, cast([logits[:1], labels[:1]], "float32"), "a batch of one")


def prefers_the_right_class(f: Loss) -> None:
    """Check that a guess that is right costs less than one that is wrong."""
    _, labels = f.draw(0)
    right = np.arange(BATCH) % f.classes
    hot = np.eye(f.classes)[right]
    labels = hot if labels.ndim == 2 else right
    good, bad = (float(f.at(3 * guess, labels)[0]) for guess in (hot, np.roll(hot, 1, axis=1)))
    if not good < bad:
        raise AssertionError(
            f"the loss of right guesses is {good:.6g}, that of wrong ones {bad:.6g}; training "
            "lowers it, and would unlearn. Its sign is wrong, or labels are mixed up."
        )


def smoothing(f: Loss) -> None:
    """Check that no smoothing is the default, and that with it the gradient is right."""
    logits, labels = f.draw(0)
    plain, zero, some = (f.at(logits, labels, **o) for o in ({}, _smooth(0.0), _smooth(0.1)))
    for name, default, none in zip(("the loss", "dlogits"), plain, zero, strict=True):
        if not np.array_equal(default, none):
            raise AssertionError(f"{name} with label_smoothing=0.0 is not that of the default.")
    if np.array_equal(some[0], zero[0]):
        raise AssertionError("label_smoothing=0.1 does not change the loss: it is not used.")
    try:
        gradient(f, **_smooth(0.1))
    except AssertionError as error:
        raise AssertionError(f"with label_smoothing=0.1 {error}") from None


def _smooth(share: float) -> dict[str, float]:
    return {"label_smoothing": share}


def agrees_with_torch(f: Loss, twin: Callable[[Any], Callable[..., Any]]) -> None:
    """Compare value and gradient with those of PyTorch's loss."""
    torch = torch_or_skip()
    logits, labels = f.draw(0)
    tensor = torch.tensor(logits, requires_grad=True)
    with doing("the PyTorch twin"):
        value = twin(torch)(tensor, torch.tensor(labels))
        value.backward()
    expected = value.detach().numpy(), tensor.grad.numpy()
    f.same(f"{f.name} differs from its PyTorch twin", f.at(logits, labels), expected, 1)


def one_hot(classes: Loss, targets: Loss) -> None:
    """Check that class indices mean what one-hot targets mean."""
    logits, labels = classes.draw(0)
    hot = np.eye(classes.classes)[labels]
    what = f"{classes.name} of class indices differs from that of one-hot targets"
    classes.same(what, classes.at(logits, labels), targets.at(logits, hot), 1)


CHECKS: dict[str, Callable[[Loss], None]] = {
    "gradient": gradient,
    "mean over the batch": is_the_mean,
    "samples are independent": samples_are_independent,
    "large and tiny logits": any_size,
    "prefers the right class": prefers_the_right_class,
}
