"""A model on images it does not learn from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vitkit.backend import to_numpy
from vitkit.data import Loader
from vitkit.nn.module import Module
from vitkit.ops import softmax, softmax_cross_entropy
from vitkit.train.memory import memory_for
from vitkit.train.metrics import Metrics, MetricsSum
from vitkit.train.preprocess import Preprocess
from vitkit.train.step import Loss


def evaluate(
    model: Module,
    loader: Loader,
    *,
    loss: Loss = softmax_cross_entropy,
    preprocess: Preprocess | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> Metrics:
    """Return the metrics of a model over every image of a loader.

    Parameters
    ----------
    model : Module
        The model; dropout is off.
    loader : Loader
        The images and labels.
    loss : callable, default softmax_cross_entropy
        ``loss(logits, labels, *, xp)`` returns the batch's mean first.
    preprocess : Preprocess, optional
        How the model was taught to see pixels; by default as the loader's dataset implies.
    on_batch : callable, optional
        Called with the number of images after each batch.

    Raises
    ------
    BackendError
        If a batch finds too little memory, saying how much there is and what to do.
    """
    preprocess = preprocess or Preprocess.of(loader.dataset)
    total = MetricsSum(loader.dataset.classes)
    for batch in loader.batches(0):
        with memory_for("evaluating", len(batch), model):
            logits = model(preprocess(batch.images, model))
            mean_loss, _ = loss(logits, model.xp.asarray(batch.labels), xp=model.xp)
        # sync: metrics are counted on the host, once a batch and outside training steps.
        total.add(to_numpy(logits), batch.labels, float(mean_loss))
        if on_batch is not None:
            on_batch(len(batch))
    return total.result()


def predict(
    model: Module, images: np.ndarray, preprocess: Preprocess, *, batch_size: int = 128
) -> np.ndarray:
    """Return class probabilities, (N, K) on the host, for uint8 images (N, C, H, W)."""
    parts = [
        _probabilities(model, images[i : i + batch_size], preprocess)
        for i in range(0, len(images), batch_size)
    ]
    if not parts:
        raise ValueError("There is nothing to predict: no images were given.")
    return np.concatenate(parts)


def _probabilities(model: Module, images: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    with memory_for("predicting", len(images), model):
        return to_numpy(softmax(model(preprocess(images, model)), xp=model.xp))
