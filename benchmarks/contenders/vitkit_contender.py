"""vitkit: by its references, with its kernels, with its kernels in bfloat16."""

from __future__ import annotations

import logging.handlers
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from contenders import task
from contenders.serve import Skip, Work
from vitkit import ViT, kernels, ops
from vitkit.data import Batch
from vitkit.optim import AdamW
from vitkit.train import train_step


def prepare(mode: str, order: task.Order) -> Work:
    """Return a training step or an inference of vitkit in the precision that is the mode."""
    model = checked_model(order.sizes, mode)
    model.load_state_dict(load_file(order.weights))
    images, labels = task.images_and_labels(order.sizes)
    run = trainer(model, images, labels) if order.task == "train" else lambda: model(images)
    return Work(run, lambda result: np.float64(result).ravel().tolist(), lambda: profile(run))


def make_model(c: task.Configuration, precision: str = "float32", **more: Any) -> ViT:
    """Return the model of a configuration; what else is said goes to ``ViT``."""
    return ViT(
        f"B/{c.patch_size}",
        image_size=c.image_size,
        dim=c.dim,
        depth=c.depth,
        num_heads=c.num_heads,
        mlp_dim=c.mlp_dim,
        num_classes=c.num_classes,
        layer_norm_eps=task.LAYER_NORM_EPSILON,
        activation=c.activation,
        precision=precision,
        **more,
    )


def checked_model(c: task.Configuration, precision: str, xp: Any = np, **more: Any) -> ViT:
    """Return the model; Skip if it would not compute as it is to, of which vitkit only warns."""
    warnings = logging.handlers.BufferingHandler(capacity=100)
    logging.getLogger("vitkit").addHandler(warnings)
    model = make_model(c, precision, xp=xp, **more)
    slower = os.environ.get("VITKIT_KERNELS") != "off" and kernels.why_none(xp)
    if slower or model.precision != precision:
        raise Skip("; ".join(each.getMessage() for each in warnings.buffer) or slower)
    return model


def trainer(model: ViT, images: np.ndarray, labels: np.ndarray) -> Callable[[], float]:
    """Return a function that makes one training step and returns its loss.

    It is the step of ``vitkit train``, but for the pixels: everyone gets the same images as
    float32, so there is nothing left for a ``Preprocess`` to do.
    """
    batch = Batch(images, labels, np.arange(len(labels)), 0)
    optimizer = AdamW(
        task.LEARNING_RATE,
        betas=task.BETAS,
        eps=task.EPSILON,
        weight_decay=task.WEIGHT_DECAY,
    ).attach(model)

    def step() -> float:
        log = train_step(
            model,
            optimizer,
            [batch],
            ops.softmax_cross_entropy,
            lambda images, model: images,
            lr=task.LEARNING_RATE,
            seed=0,
            step=0,  # where dropout draws from: there is none
            max_grad_norm=task.MAX_GRAD_NORM,
        )
        return log.loss

    return step


def profile(run: Callable[[], Any]) -> dict[str, float]:
    """Return milliseconds of each operation and each other part of one run."""
    with ops.profiled() as found:
        run()
    parts = {**found.operations, **found.sections, "the rest": found.rest}
    spent = {name: 1e3 * part.seconds for name, part in parts.items()}
    return dict(sorted(spent.items(), key=lambda item: -item[1]))
