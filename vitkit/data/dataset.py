"""What a dataset is: labels in memory, and images by index as uint8."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vitkit.backend import philox
from vitkit.data.checks import check_arrays
from vitkit.errors import ConfigError, DataError


class Dataset(ABC):
    """Labelled images of one shape.

    A subclass sets the attributes and writes ``images``, which must depend on nothing but the
    indices, since several threads call it at once.

    Attributes
    ----------
    classes : tuple of str
        The name of each class.
    image_shape : tuple of int
        ``(C, H, W)``.
    scale : float
        The largest value a pixel can have, by which it is divided: 255 for ordinary images.
    mean, std : tuple of float
        One number a channel, of pixels divided by ``scale``, for normalization.
    labels : numpy.ndarray, int64 (N,)
        The class of each image.
    note : str
        What a reader of results must know about this data, such as that a part is missing.
    """

    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    labels: np.ndarray
    note: str = ""

    @abstractmethod
    def images(self, indices: np.ndarray) -> np.ndarray:
        """Return the images at ``indices``.

        Parameters
        ----------
        indices : numpy.ndarray, int64 (b,)
            Which images, in which order.

        Returns
        -------
        numpy.ndarray, uint8 (b, C, H, W)
            Their pixels.

        Raises
        ------
        DataError
            If an image cannot be read.
        """

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.image_shape))
        return f"{type(self).__name__}({len(self)} images {shape}, {len(self.classes)} classes)"


class ArrayDataset(Dataset):
    """Images and labels that lie in memory.

    Parameters
    ----------
    images : numpy.ndarray, uint8 (N, C, H, W)
        Pixels from 0 to ``scale``.
    labels : numpy.ndarray, integer (N,)
        From 0 to ``len(classes) - 1``.
    classes : sequence of str
        The name of each class.
    scale : float, default 255.0
        The largest value a pixel can have.
    mean, std : sequence of float, optional
        One number a channel, of pixels divided by ``scale``; measured if left out.
    note : str, default ""
        What a reader of results must know about this data.

    Raises
    ------
    DataError
        If images and labels do not fit together or are out of range.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        *,
        classes: Sequence[str],
        scale: float = 255.0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        note: str = "",
    ) -> None:
        images, labels = np.asarray(images), np.asarray(labels)
        check_arrays(images, labels, len(classes), type(self).__name__, scale=scale)
        if mean is None or std is None:
            measured = channel_statistics(images, scale)
            mean = measured[0] if mean is None else mean
            std = measured[1] if std is None else std
        channels = images.shape[1]
        if not len(mean) == len(std) == channels or min(std) <= 0:
            raise DataError(
                f"mean and std must have one number for each of the {channels} channels, and std "
                f"must be above 0; got mean={tuple(mean)}, std={tuple(std)}."
            )
        self.classes = tuple(classes)
        self.image_shape = (channels, images.shape[2], images.shape[3])
        self.scale = scale
        self.mean = tuple(float(m) for m in mean)
        self.std = tuple(float(s) for s in std)
        self.labels = labels.astype(np.int64)
        self.note = note
        self._images = images

    def images(self, indices: np.ndarray) -> np.ndarray:
        """Return a copy of the images at ``indices``, uint8 (b, C, H, W)."""
        return self._images[np.asarray(indices, np.int64)]


class Subset(Dataset):
    """Some of another dataset's images, in a given order.

    Parameters
    ----------
    dataset : Dataset
        Where the images are.
    indices : numpy.ndarray, integer (n,)
        Which of them.

    Raises
    ------
    DataError
        If an index is out of range.
    """

    def __init__(self, dataset: Dataset, indices: np.ndarray) -> None:
        indices = np.asarray(indices, np.int64)
        if len(indices) and (indices.min() < 0 or indices.max() >= len(dataset)):
            raise DataError(
                f"Subset: indices run from {indices.min()} to {indices.max()}, but the dataset has "
                f"{len(dataset)} images."
            )
        self.dataset = dataset
        self.indices = indices
        self.classes = dataset.classes
        self.image_shape = dataset.image_shape
        self.scale = dataset.scale
        self.mean, self.std = dataset.mean, dataset.std
        self.labels = dataset.labels[indices]
        self.note = dataset.note

    def images(self, indices: np.ndarray) -> np.ndarray:
        """Return the images at ``indices`` of this subset, uint8 (b, C, H, W)."""
        return self.dataset.images(self.indices[indices])


@dataclass(frozen=True)
class Splits:
    """The two parts every benchmark has; validation images are taken from ``train``.

    Attributes
    ----------
    train, test : Dataset
        Images to learn from, and images to report on.
    """

    train: Dataset
    test: Dataset


def split(dataset: Dataset, fraction: float, seed: int = 0) -> tuple[Subset, Subset]:
    """Take a part out of a dataset, with the same share of each class.

    Each class gives its share rounded down, and those with the largest remainders give one more
    until the part has ``ceil(fraction * len(dataset))`` images. Every class keeps at least one
    image in the rest, so the part of a dataset with tiny classes may be smaller. Which images go
    depends on the seed and, for each class, on its own images only.

    Parameters
    ----------
    dataset : Dataset
        What to split.
    fraction : float
        The share of the part, between 0 and 1.
    seed : int, default 0
        Which images go; the same seed takes the same ones.

    Returns
    -------
    rest, part : Subset
        Both in the dataset's order.

    Raises
    ------
    ConfigError
        If ``fraction`` is not between 0 and 1.
    DataError
        If there are too few images to take any.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"split: fraction must be between 0 and 1; got {fraction}.")
    counts = np.bincount(dataset.labels, minlength=len(dataset.classes))
    quotas = _quotas(counts, fraction)
    if quotas.sum() == 0:
        raise DataError(
            f"split: {len(dataset)} images in {len(dataset.classes)} classes are too few to take "
            f"{fraction:g} of them and leave one of each class."
        )
    taken = np.zeros(len(dataset), bool)
    for label, quota in enumerate(quotas):
        members = np.flatnonzero(dataset.labels == label)
        taken[philox(seed, "split", label).permutation(members)[:quota]] = True
    return Subset(dataset, np.flatnonzero(~taken)), Subset(dataset, np.flatnonzero(taken))


def _quotas(counts: np.ndarray, fraction: float) -> np.ndarray:
    """Return how many images each class gives, by largest remainder."""
    shares = fraction * counts
    room = np.maximum(counts - 1, 0)
    quotas: np.ndarray = np.minimum(np.floor(shares + 1e-9).astype(np.int64), room)
    missing = math.ceil(fraction * int(counts.sum()) - 1e-9) - int(quotas.sum())
    for label in np.argsort(quotas - shares, kind="stable"):
        if missing > 0 and quotas[label] < room[label]:
            quotas[label] += 1
            missing -= 1
    return quotas


def channel_statistics(
    images: np.ndarray, scale: float = 255.0
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel, of pixels divided by ``scale``.

    They come from a histogram, so they are exact and need little memory. A channel of one single
    value gets the deviation 1, by which it can be divided.

    Parameters
    ----------
    images : numpy.ndarray, uint8 (N, C, H, W)
        At least one image.
    scale : float, default 255.0
        The largest value a pixel can have.

    Returns
    -------
    mean, std : tuple of float
        One number a channel.
    """
    channels = images.shape[1]
    counts = np.zeros((channels, 256), np.int64)
    for start in range(0, len(images), 1024):
        for channel in range(channels):
            pixels = images[start : start + 1024, channel].ravel()
            counts[channel] += np.bincount(pixels, minlength=256)
    values = np.arange(256) / scale
    total = np.maximum(counts.sum(1), 1)
    mean = counts @ values / total
    std = np.sqrt(np.maximum(counts @ values**2 / total - mean**2, 0))
    std[np.count_nonzero(counts, axis=1) <= 1] = 1
    return tuple(mean.tolist()), tuple(std.tolist())
