"""Whether labels belong to their images: if so, the simplest classifiers beat chance.

Chance is exact here: the number of hits under a random permutation of the labels has a known mean
and variance, whatever the shares of the classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from vitkit.testing.check import Skip

SIGNIFICANT = 4.5
"""Standard deviations above chance; the best of four classifiers exceeds it by chance in 1 of
70 000 data sets."""
VISIBLE = 0.15
"""Where even so many more hits than chance would not be significant, nothing can be said."""
FEWEST = 20
SIDE = 16
NEIGHBOURS = 5


class Sample(NamedTuple):
    """Some images of a part, uint8 (n, C, H, W), and their labels, int64 (n,)."""

    images: np.ndarray
    labels: np.ndarray


class Score(NamedTuple):
    """How often the best classifier was right, and how often it would be by chance."""

    name: str
    accuracy: float
    chance: float
    deviation: float

    @property
    def sigmas(self) -> float:
        """How many standard deviations lie between the two."""
        return (self.accuracy - self.chance) / self.deviation if self.deviation else 0.0


def check_labels_fit(train: Sample, num_classes: int) -> None:
    """Raise an AssertionError where labels tell nothing about the images of the same part.

    Each half of the sample is classified by what the other half shows.
    """
    _expect_enough(train, "training images")
    half = len(train.labels) // 2
    halves = [Sample(*(each[part] for each in train)) for part in (slice(half), slice(half, None))]
    score = _best(num_classes, (halves[0], halves[1]), (halves[1], halves[0]))
    if score.sigmas < SIGNIFICANT:
        _decide(score, "training images")
        raise AssertionError(
            f"the labels tell nothing about the images: a {score.name} classifier is right for "
            f"{score.accuracy:.0%} of {len(train.labels)}, chance is {score.chance:.0%}: are "
            "labels shuffled or sorted apart from the images? If single pixels really say so "
            "little, switch this check off with learnable=False."
        )


def check_labels_agree(train: Sample, test: Sample, num_classes: int) -> None:
    """Raise an AssertionError where what holds in one part says nothing about the other."""
    _expect_enough(test, "test images")
    score = _best(num_classes, (train, test))
    if score.sigmas < SIGNIFICANT:
        _decide(score, "test images")
        raise AssertionError(
            "the labels of the test part do not mean what those of the training part do: a "
            f"{score.name} classifier that learned from the training images is right for "
            f"{score.accuracy:.0%} of {len(test.labels)}, chance is {score.chance:.0%}: are they "
            "shuffled, counted from 1, or are the classes in another order?"
        )


def _expect_enough(sample: Sample, what: str) -> None:
    if len(sample.labels) < FEWEST:
        raise Skip(f"{len(sample.labels)} {what} are too few to tell whether labels belong to them")


def _decide(score: Score, what: str) -> None:
    if SIGNIFICANT * score.deviation > VISIBLE:
        raise Skip(
            f"too few {what} to tell whether labels belong to them: {score.accuracy:.0%} were "
            f"classified right, where chance is {score.chance:.0%}"
        )


def _best(num_classes: int, *turns: tuple[Sample, Sample]) -> Score:
    """Return the best score; in each turn the second sample is classified by the first."""
    scores = []
    for feature in (_pixels, _spectrum):
        for name, classify in (("nearest-mean", _nearest_mean), ("nearest-neighbour", _neighbours)):
            predicted, labels = [], []
            for known, asked in turns:
                x, y = _standardised(feature(known.images), feature(asked.images))
                predicted.append(classify(x, known.labels, y, num_classes))
                labels.append(asked.labels)
            scores.append(_score(name, np.concatenate(predicted), np.concatenate(labels)))
    return max(scores, key=lambda score: score.sigmas)


def _score(name: str, predicted: np.ndarray, labels: np.ndarray) -> Score:
    """Compare the hits with those of permuted labels."""
    n = len(labels)
    size = int(max(predicted.max(), labels.max())) + 1
    a = np.bincount(predicted, minlength=size).astype(np.float64)
    b = np.bincount(labels, minlength=size).astype(np.float64)
    ab = a * b
    same = (ab * (n - a) * (n - b)).sum()
    variance = (same + ab.sum() ** 2 - (ab**2).sum()) / (n**2 * (n - 1))
    hits = np.count_nonzero(predicted == labels)
    return Score(name, hits / n, float(ab.sum()) / n**2, math.sqrt(variance) / n)


def _pixels(images: np.ndarray) -> np.ndarray:
    """Return the images, made smaller by means over blocks, as rows."""
    return _small(images).reshape(len(images), -1)


def _spectrum(images: np.ndarray) -> np.ndarray:
    """Return how strong each frequency is, which stays when what is seen moves, as rows."""
    amplitude = np.log1p(np.abs(np.fft.rfft2(_small(images))))
    return amplitude.reshape(len(images), -1).astype(np.float32)


def _small(images: np.ndarray) -> np.ndarray:
    b, c, height, width = images.shape
    down, across = -(-height // SIDE), -(-width // SIDE)
    rows, columns = height // down, width // across
    cut = images[:, :, : rows * down, : columns * across]
    blocks = cut.reshape(b, c, rows, down, columns, across)
    return np.asarray(blocks.mean((3, 5), dtype=np.float32))


def _standardised(known: np.ndarray, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean, std = known.mean(0), known.std(0)
    std[std < 1e-6] = 1
    return (known - mean) / std, (asked - mean) / std


Classifier = Callable[[np.ndarray, np.ndarray, np.ndarray, int], np.ndarray]


def _nearest_mean(x: np.ndarray, labels: np.ndarray, y: np.ndarray, num_classes: int) -> np.ndarray:
    counts = np.bincount(labels, minlength=num_classes)
    means = np.zeros((num_classes, x.shape[1]), x.dtype)
    np.add.at(means, labels, x)
    means /= np.maximum(counts, 1)[:, None]
    distance = (means**2).sum(1) - 2 * y @ means.T
    distance[:, counts == 0] = np.inf
    return np.asarray(distance.argmin(1))


def _neighbours(x: np.ndarray, labels: np.ndarray, y: np.ndarray, num_classes: int) -> np.ndarray:
    k = min(NEIGHBOURS, len(x))
    distance = (x**2).sum(1) - 2 * y @ x.T
    near = labels[np.argpartition(distance, k - 1, axis=1)[:, :k]]
    votes = (near[:, :, None] == np.arange(num_classes)).sum(1)
    return np.asarray(votes.argmax(1))
