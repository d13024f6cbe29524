"""A model on images it does not learn from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np

from vitkit.backend import Array, to_numpy
from vitkit.data import Batch, Loader
from vitkit.nn.module import Module
from vitkit.ops import softmax, softmax_cross_entropy
from vitkit.train.graph import GraphedForward
from vitkit.train.memory import memory_for
from vitkit.train.metrics import Metrics, MetricsSum
from vitkit.train.preprocess import Preprocess
from vitkit.train.recorded import wants_graphs
from vitkit.train.step import Loss


def evaluate(
    model: Module,
    loader: Loader,
    *,
    loss: Loss = softmax_cross_entropy,
    preprocess: Preprocess | None = None,
    on_batch: Callable[[int], None] | None = None,
    graph: bool | GraphedForward | None = None,
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
    graph : bool or GraphedForward, optional
        Whether the model's work on a batch is recorded and asked of the device as one graph, where
        there are batches enough to gain by it (eleven of a size). By default it is where it can be,
        and where that fails one line says why; with True it is an error. One who evaluates often
        gives a :class:`~vitkit.train.GraphedForward` of the model, which remembers what can be
        recorded. At the end there are no graphs in any case.

    Raises
    ------
    BackendError
        If a batch finds too little memory, saying how much there is and what to do; or if
        ``graph=True`` and the model is where nothing can be recorded.
    """
    preprocess = preprocess or Preprocess.of(loader.dataset)
    total, count = MetricsSum(loader.dataset.classes), len(loader.dataset)
    with _recording(model, graph) as forward:
        for position, batch in enumerate(loader.batches(0)):
            left = _left(position, len(batch), loader.batch_size, count)
            work = partial(_judged, forward, batch, loss, preprocess, left)
            with memory_for("evaluating", len(batch), model):
                logits, mean_loss = forward.beside(work)
            # sync: metrics are counted on the host, once a batch and outside training steps.
            total.add(to_numpy(logits), batch.labels, float(mean_loss))
            if on_batch is not None:
                on_batch(len(batch))
    return total.result()


def predict(
    model: Module,
    images: np.ndarray,
    preprocess: Preprocess,
    *,
    batch_size: int = 128,
    graph: bool | GraphedForward | None = None,
) -> np.ndarray:
    """Return class probabilities, (N, K) on the host, for uint8 images (N, C, H, W).

    Parameters
    ----------
    model : Module
        The model; dropout is off.
    images : array, shape (N, C, H, W)
        Pixels on the host, uint8.
    preprocess : Preprocess
        How the model was taught to see pixels.
    batch_size : int, default 128
        How many images are in memory at once.
    graph : bool or GraphedForward, optional
        As :func:`evaluate` takes it.

    Raises
    ------
    ValueError
        If there are no images.
    BackendError
        As :func:`evaluate` raises it.
    """
    parts = []
    with _recording(model, graph) as forward:
        for position, start in enumerate(range(0, len(images), batch_size)):
            pixels = images[start : start + batch_size]
            left = _left(position, len(pixels), batch_size, len(images))
            work = partial(_probabilities, forward, pixels, preprocess, left)
            with memory_for("predicting", len(pixels), model):
                parts.append(forward.beside(work))
    if not parts:
        raise ValueError("There is nothing to predict: no images were given.")
    return np.concatenate(parts)


@contextmanager
def _recording(model: Module, graph: bool | GraphedForward | None) -> Iterator[GraphedForward]:
    """Yield what infers, and free its graphs in the end."""
    if isinstance(graph, GraphedForward):
        if graph.model is not model:
            raise ValueError("graph must be a GraphedForward of the model that is evaluated.")
        forward = graph
    else:
        wanted = wants_graphs(model.xp, graph)
        forward = GraphedForward(model, records=wanted, falls_back=graph is None)
    try:
        yield forward
    finally:
        forward.clear()


def _left(position: int, size: int, batch_size: int, count: int) -> int:
    """Return how many batches of its size follow one of ``count`` images in batches."""
    return count // batch_size - position - 1 if size == batch_size else 0


def _judged(
    forward: GraphedForward, batch: Batch, loss: Loss, preprocess: Preprocess, left: int
) -> tuple[Array, Array]:
    """Return the logits and the mean loss of a batch."""
    model = forward.model
    logits = forward(preprocess(batch.images, model), left=left)
    mean_loss, _ = loss(logits, model.xp.asarray(batch.labels), xp=model.xp)
    return logits, mean_loss


def _probabilities(
    forward: GraphedForward, images: np.ndarray, preprocess: Preprocess, left: int
) -> np.ndarray:
    model = forward.model
    logits = forward(preprocess(images, model), left=left)
    return to_numpy(softmax(logits, xp=model.xp))
