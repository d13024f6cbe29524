"""Losses, the global norm and clipping against PyTorch: value and gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vitkit import nn, ops
from vitkit.backend import Array
from vitkit.optim import clip_global_norm

# Batch and classes, and the spread of the logits. Where it is large the batch is, too: a loss
# of nearly nothing, all labels being right, would have no correct digits to compare.
CASES = [(1, 2, 1.0), (5, 7, 1.0), (16, 7, 30.0), (8, 101, 30.0), (16, 7, 1e3)]
SMOOTHING = [0.0, 0.1, 0.9]


def targets(parity: Any, batch: int, classes: int, kind: str) -> tuple[Array, Any]:
    """Return class indices, distributions or independent probabilities for both libraries."""
    if kind == "integer":
        return parity.labels(classes, batch)
    if kind == "soft":
        array, tensor = parity.leaf(parity.rng.dirichlet(np.ones(classes), batch))
    else:
        array, tensor = parity.leaf(parity.rng.uniform(0, 1, (batch, classes)))
    return array, tensor.detach()


def as_rows(parity: Any, labels: Any, classes: int, smoothing: float) -> Any:
    """Return the targets as rows, moved towards an even distribution: the definition."""
    if not labels.is_floating_point():
        rows = parity.torch.nn.functional.one_hot(labels, classes)
        labels = rows.to(getattr(parity.torch, parity.dtype))
    return labels * (1 - smoothing) + smoothing / classes


@pytest.mark.parametrize(("batch", "classes", "scale"), CASES)
@pytest.mark.parametrize("smoothing", SMOOTHING)
@pytest.mark.parametrize("kind", ["integer", "soft"])
def test_softmax_cross_entropy(
    batch: int, classes: int, scale: float, smoothing: float, kind: str, parity: Any
) -> None:
    logits, tlogits = parity.normal(batch, classes, scale=scale)
    labels, tlabels = targets(parity, batch, classes, kind)
    loss, dlogits = ops.softmax_cross_entropy(logits, labels, smoothing, xp=parity.xp)
    tloss = parity.torch.nn.functional.cross_entropy(tlogits, tlabels, label_smoothing=smoothing)
    tloss.backward()
    longest = batch * classes  # terms of the loss
    parity.close(loss, tloss, reduction=longest, what="loss")
    parity.close(dlogits, tlogits.grad, reduction=classes, what="dlogits")


@pytest.mark.parametrize(("batch", "classes", "scale"), CASES)
@pytest.mark.parametrize("smoothing", SMOOTHING)
@pytest.mark.parametrize("kind", ["integer", "soft", "independent"])
@pytest.mark.parametrize("loss_name", ["sigmoid_bce", "mean_squared_error"])
def test_elementwise_losses(
    batch: int,
    classes: int,
    scale: float,
    smoothing: float,
    kind: str,
    loss_name: str,
    parity: Any,
) -> None:
    functional = parity.torch.nn.functional
    function, torch_function = {
        "sigmoid_bce": (ops.sigmoid_bce, functional.binary_cross_entropy_with_logits),
        "mean_squared_error": (ops.mean_squared_error, functional.mse_loss),
    }[loss_name]
    logits, tlogits = parity.normal(batch, classes, scale=scale)
    labels, tlabels = targets(parity, batch, classes, kind)
    loss, dlogits = function(logits, labels, smoothing, xp=parity.xp)
    tloss = torch_function(tlogits, as_rows(parity, tlabels, classes, smoothing))
    tloss.backward()
    longest = batch * classes  # terms of the loss
    parity.close(loss, tloss, reduction=longest, what="loss")
    parity.close(dlogits, tlogits.grad, reduction=1, what="dlogits")


@pytest.mark.parametrize("max_norm", [0.5, 1e6], ids=["clipped", "within"])
def test_clipping(max_norm: float, parity: Any) -> None:
    layer = parity.place(nn.MLP(7, 11))
    twins = []
    for _, parameter in layer.named_parameters():
        gradient, tgradient = parity.normal(*parameter.shape)
        parameter.grad[...] = gradient
        twins.append(parity.torch.nn.Parameter(parity.torch.zeros_like(tgradient)))
        twins[-1].grad = tgradient.detach()
    longest = layer.num_parameters  # terms of the norm
    arrays = [parameter.grad for _, parameter in layer.named_parameters()]
    tnorm = parity.torch.nn.utils.get_total_norm([twin.grad for twin in twins])
    norm_alone = ops.global_norm(arrays, xp=parity.xp)
    parity.close(norm_alone, tnorm, reduction=longest, what="op")
    alone = [array.copy() for array in arrays]
    for array in alone:
        ops.clip_by_norm_inplace(array, norm_alone, max_norm, xp=parity.xp)
    norm = clip_global_norm(layer.groups, max_norm, xp=parity.xp)
    tnorm = parity.torch.nn.utils.clip_grad_norm_(twins, max_norm)
    parity.close(norm, tnorm, reduction=longest, what="norm")
    for (name, parameter), one, twin in zip(layer.named_parameters(), alone, twins, strict=True):
        parity.close(parameter.grad, twin.grad, reduction=longest, what=name)
        parity.close(one, twin.grad, reduction=longest, what=f"{name}, by the op")
