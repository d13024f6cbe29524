"""From a dataset to batches: order, transforms and threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitkit.backend import philox
from vitkit.data.dataset import Dataset, Splits
from vitkit.data.order import order
from vitkit.data.transforms import Transform
from vitkit.errors import ConfigError, DataError, blaming
from vitkit.validate import integer, noted


@dataclass(frozen=True, eq=False)
class Batch:
    """Some images and their labels, on the host.

    Attributes
    ----------
    images : numpy.ndarray, uint8 (b, C, H, W)
        The pixels, transformed.
    labels : numpy.ndarray, int64 (b,)
        Their classes.
    indices : numpy.ndarray, int64 (b,)
        Where they are in the dataset.
    position : int
        Which batch of the epoch this is, from 0; a resumed epoch starts at ``position + 1``.
    """

    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    position: int

    def __len__(self) -> int:
        return len(self.labels)


class Loader:
    """Batches of a dataset, the same ones however many threads prepare them.

    Parameters
    ----------
    dataset : Dataset
        At least one image.
    batch_size : int
        Images in a batch; the last batch of an epoch may have fewer.
    seed : int, default 0
        Where order and augmentation come from.
    shuffle : bool, default False
        Whether each epoch has its own order.
    transforms : sequence of callable, default ()
        ``(image uint8 (C, H, W), rng) -> image``, applied one after the other.
    num_workers : int, default 0
        Threads that prepare batches ahead; 0 prepares each when it is asked for.

    Raises
    ------
    ConfigError
        If ``dataset`` is none, or ``batch_size`` or ``num_workers`` is out of range.
    DataError
        If the dataset is empty.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = False,
        transforms: Sequence[Transform] = (),
        num_workers: int = 0,
    ) -> None:
        problems: list[str] = []
        given: object = dataset
        if isinstance(given, Splits):
            problems.append("Loader: got Splits for a Dataset; pass data.train or data.test.")
        elif not isinstance(given, Dataset):
            problems.append(f"Loader: got {type(given).__name__} for a Dataset; pass one.")
        with noted(problems):
            integer("Loader: batch_size", batch_size, at_least=1)
        with noted(problems):
            integer("Loader: num_workers", num_workers, at_least=0)
        if problems:
            raise ConfigError(problems)
        if len(dataset) == 0:
            raise DataError("Loader: the dataset is empty; there must be at least one image.")
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.transforms = tuple(transforms)
        self.num_workers = num_workers

    def __len__(self) -> int:
        """Return how many batches an epoch has, a last partial one included."""
        return -(-len(self.dataset) // self.batch_size)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch.

        Parameters
        ----------
        epoch : int
            Which epoch, from 0: it decides order and augmentation.
        start : int, default 0
            The position of the first batch; those before it are not prepared.

        Returns
        -------
        iterator of Batch
            In order of position. Closing it early ends its threads.

        Raises
        ------
        ConfigError
            If ``start`` is not in the epoch.
        DataError
            If an image cannot be read, when its batch is reached.
        """
        if not 0 <= start <= len(self):
            raise ConfigError(
                f"Loader: start must be from 0 to {len(self)}, the number of batches; got {start}."
            )
        n = len(self.dataset)
        visited = order(self.seed, epoch, n) if self.shuffle else np.arange(n, dtype=np.int64)
        return (
            self._ahead(epoch, visited, start)
            if self.num_workers
            else (self._batch(epoch, visited, position) for position in range(start, len(self)))
        )

    def _ahead(self, epoch: int, visited: np.ndarray, start: int) -> Iterator[Batch]:
        """Yield batches in order while threads prepare at most two each ahead."""
        positions = iter(range(start, len(self)))
        pending: deque[Future[Batch]] = deque()
        pool = ThreadPoolExecutor(self.num_workers, thread_name_prefix="vitkit-loader")
        try:
            for position in positions:
                pending.append(pool.submit(self._batch, epoch, visited, position))
                if len(pending) > 2 * self.num_workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _batch(self, epoch: int, visited: np.ndarray, position: int) -> Batch:
        first = position * self.batch_size
        indices = visited[first : first + self.batch_size]
        images = self.dataset.images(indices)
        expected = (len(indices), *self.dataset.image_shape)
        if not _is(images, expected):
            problem = DataError(
                f"{type(self.dataset).__name__}.images returned {_shown(images)}; uint8 {expected} "
                "is due."
            )
            raise blaming(problem, self.dataset)
        if self.transforms:
            images = self._transformed(images, indices, epoch)
        return Batch(images, self.dataset.labels[indices], indices, position)

    def _transformed(self, images: np.ndarray, indices: np.ndarray, epoch: int) -> np.ndarray:
        transformed = np.empty_like(images)
        for place, sample in enumerate(indices.tolist()):
            rng = philox(self.seed, "augment", epoch, sample)
            image = images[place]
            for transform in self.transforms:
                image = transform(image, rng)
                if not _is(image, images.shape[1:]):
                    problem = DataError(
                        f"The transform {transform!r} returned {_shown(image)}; uint8 "
                        f"{images.shape[1:]}, what it was given, is due."
                    )
                    raise blaming(problem, transform)
            transformed[place] = image
        return transformed


def _is(pixels: Any, shape: tuple[int, ...]) -> bool:
    """Whether something is an array of pixels of this shape."""
    return isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.shape == shape


def _shown(pixels: Any) -> str:
    """Return how a message shows what came for pixels."""
    if isinstance(pixels, np.ndarray):
        return f"{pixels.dtype} {pixels.shape}"
    return f"an object of type {type(pixels).__name__}"
