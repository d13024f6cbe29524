"""How good a classifier is, exactly: sums over samples, never means of batch means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Metrics:
    """The results of a classifier on a set of images.

    Attributes
    ----------
    loss : float
        The mean loss over the images.
    accuracy, top5 : float
        The share of images whose class is the first guess, or among the first five. Where there
        are fewer than six classes, ``top5`` is 1 by definition.
    confusion : numpy.ndarray, int64 (K, K)
        How many images of class (row) were taken for class (column).
    classes : tuple of str
        The names of the classes.
    """

    loss: float
    accuracy: float
    top5: float
    confusion: np.ndarray
    classes: tuple[str, ...]

    @property
    def count(self) -> int:
        """How many images there were."""
        return int(self.confusion.sum())

    def per_class(self) -> list[dict[str, Any]]:
        """Return precision, recall, F1 and support of each class; 0 where nothing was guessed."""
        hits = np.diagonal(self.confusion)
        guessed, support = self.confusion.sum(axis=0), self.confusion.sum(axis=1)
        precision = hits / np.maximum(guessed, 1)
        recall = hits / np.maximum(support, 1)
        f1 = 2 * hits / np.maximum(guessed + support, 1)
        columns = zip(self.classes, precision, recall, f1, support, strict=True)
        return [
            {
                "class": name,
                "precision": float(p),
                "recall": float(r),
                "f1": float(f),
                "support": int(n),
            }
            for name, p, r, f, n in columns
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "count": self.count,
            "loss": self.loss,
            "accuracy": self.accuracy,
            "top5": self.top5,
            "per_class": self.per_class(),
            "confusion": self.confusion.tolist(),
            "classes": list(self.classes),
        }


class MetricsSum:
    """Adds up batches of logits and labels until ``result`` is asked for.

    Parameters
    ----------
    classes : sequence of str
        The names of the classes.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self._loss = 0.0
        self._top5 = 0
        self._confusion = np.zeros((len(self.classes),) * 2, np.int64)

    def add(self, logits: np.ndarray, labels: np.ndarray, mean_loss: float) -> None:
        """Count a batch: ``logits`` (b, K), ``labels`` int (b,), and the mean of its losses."""
        self._loss += mean_loss * len(labels)
        np.add.at(self._confusion, (labels, logits.argmax(axis=1)), 1)
        own = np.take_along_axis(logits, labels[:, None], axis=1)
        # Ties count for the true class, and no sort is needed: fewer than 5 are strictly better.
        # Written with "not <=", so that no number is better than one that is none.
        self._top5 += int(((~(logits <= own)).sum(axis=1) < 5).sum())

    def result(self) -> Metrics:
        """Return the metrics of all batches so far.

        Raises
        ------
        ValueError
            If there were none.
        """
        count = int(self._confusion.sum())
        if count == 0:
            raise ValueError("There is nothing to evaluate: no images were counted.")
        hits = int(np.trace(self._confusion))
        return Metrics(
            self._loss / count,
            hits / count,
            self._top5 / count,
            self._confusion.copy(),
            self.classes,
        )
