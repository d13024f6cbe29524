from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from vitkit.data import (
    ArrayDataset,
    Batch,
    Dataset,
    HorizontalFlip,
    Loader,
    RandomAffine,
    RandomCrop,
    Splits,
    order,
)
from vitkit.errors import ConfigError, DataError

TRANSFORMS = (RandomCrop(2), HorizontalFlip(), RandomAffine(10, 0.1, (0.9, 1.1)))


@pytest.fixture
def dataset(rng: np.random.Generator) -> ArrayDataset:
    """Return 23 images."""
    images = rng.integers(0, 256, (23, 1, 8, 8), np.uint8)
    return ArrayDataset(images, np.arange(23) % 4, classes="abcd")


def equal(one: Batch, other: Batch) -> bool:
    return (
        (one.images == other.images).all()
        and (one.labels == other.labels).all()
        and (one.indices == other.indices).all()
        and one.position == other.position
    )


def workers() -> int:
    return sum(thread.name.startswith("vitkit-loader") for thread in threading.enumerate())


def test_an_epoch_has_every_sample_once_and_a_last_partial_batch(dataset: ArrayDataset) -> None:
    loader = Loader(dataset, 5, shuffle=True)
    batches = list(loader.batches(0))
    assert len(loader) == len(batches) == 5
    assert [len(batch) for batch in batches] == [5, 5, 5, 5, 3]
    assert [batch.position for batch in batches] == [0, 1, 2, 3, 4]
    indices = np.concatenate([batch.indices for batch in batches])
    assert sorted(indices) == list(range(23))
    assert (indices == order(0, 0, 23)).all()
    for batch in batches:
        assert batch.images.dtype == np.uint8
        assert batch.labels.dtype == batch.indices.dtype == np.int64
        assert (batch.images == dataset.images(batch.indices)).all()
        assert (batch.labels == dataset.labels[batch.indices]).all()


def test_without_shuffling_the_order_is_the_datasets(dataset: ArrayDataset) -> None:
    batches = list(Loader(dataset, 100).batches(3))
    assert len(batches) == 1
    assert batches[0].indices.tolist() == list(range(23))


@pytest.mark.parametrize("num_workers", [1, 4])
def test_workers_change_nothing(dataset: ArrayDataset, num_workers: int) -> None:
    options = {"seed": 7, "shuffle": True, "transforms": TRANSFORMS}
    alone = Loader(dataset, 2, **options)
    together = Loader(dataset, 2, **options, num_workers=num_workers)
    for epoch in (2, 0):  # in any order
        ours, theirs = list(alone.batches(epoch)), list(together.batches(epoch))
        assert len(ours) == len(theirs) == 12
        assert all(equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert workers() == 0


@pytest.mark.parametrize("num_workers", [0, 3])
@pytest.mark.parametrize("start", [0, 1, 7, 11, 12])
def test_a_resumed_epoch_goes_on_the_same(
    dataset: ArrayDataset, start: int, num_workers: int
) -> None:
    loader = Loader(
        dataset, 2, seed=1, shuffle=True, transforms=TRANSFORMS, num_workers=num_workers
    )
    whole, resumed = list(loader.batches(4)), list(loader.batches(4, start))
    assert len(resumed) == 12 - start
    assert all(equal(a, b) for a, b in zip(whole[start:], resumed, strict=True))


def test_seed_and_epoch_decide(dataset: ArrayDataset) -> None:
    def first(seed: int, epoch: int) -> Batch:
        return next(Loader(dataset, 23, seed=seed, transforms=TRANSFORMS).batches(epoch))

    assert equal(first(0, 0), first(0, 0))
    assert (first(0, 0).images != first(0, 1).images).any()
    assert (first(0, 0).images != first(1, 0).images).any()
    assert (order(0, 0, 50) != order(0, 1, 50)).any()
    assert (order(0, 0, 50) != order(1, 0, 50)).any()


def test_a_sample_is_augmented_the_same_wherever_it_comes(dataset: ArrayDataset) -> None:
    def by_index(batch_size: int, shuffle: bool) -> dict[int, bytes]:
        loader = Loader(dataset, batch_size, shuffle=shuffle, transforms=TRANSFORMS)
        return {
            int(index): image.tobytes()
            for batch in loader.batches(5)
            for index, image in zip(batch.indices, batch.images, strict=True)
        }

    assert by_index(4, True) == by_index(7, False)


def test_augmentation_leaves_the_dataset_alone(dataset: ArrayDataset) -> None:
    class Views(ArrayDataset):
        def images(self, indices: np.ndarray) -> np.ndarray:
            return self._images[indices[0] : indices[-1] + 1]  # no copy

    images = dataset.images(np.arange(23))
    views = Views(images, dataset.labels, classes="abcd")
    list(Loader(views, 5, transforms=TRANSFORMS).batches(0))
    assert (images == dataset.images(np.arange(23))).all()


class Slow(Dataset):
    """Counts how many batches were asked for; the image with index ``faulty`` is damaged."""

    def __init__(self, n: int, faulty: int = -1) -> None:
        self.labels = np.zeros(n, np.int64)
        self.classes, self.image_shape = ("a",), (1, 1, 1)
        self.scale, self.mean, self.std = 255.0, (0.0,), (1.0,)
        self.faulty = faulty
        self.asked = 0
        self.lock = threading.Lock()

    def images(self, indices: np.ndarray) -> np.ndarray:
        with self.lock:
            self.asked += 1
        time.sleep(0.001 * (indices[0] % 3))  # later batches finish before earlier ones
        if self.faulty in indices:
            raise DataError(f"image {self.faulty} is damaged")
        return indices.astype(np.uint8)[:, None, None, None]


def test_batches_are_prepared_ahead_but_not_all(dataset: ArrayDataset) -> None:
    slow = Slow(200)
    batches = Loader(slow, 1, num_workers=3).batches(0)
    assert [next(batches).position for _ in range(4)] == [0, 1, 2, 3]
    deadline = time.monotonic() + 10
    while slow.asked < 10 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert slow.asked == 4 + 2 * 3
    batches.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("end", ["close", "forget", "error"])
def test_no_thread_outlives_its_epoch(end: str) -> None:
    before = workers()
    slow = Slow(100, faulty=30)
    batches = Loader(slow, 1, num_workers=4).batches(0)
    next(batches)
    assert workers() > before
    if end == "close":
        batches.close()  # type: ignore[attr-defined]
    elif end == "error":
        with pytest.raises(DataError, match="image 30 is damaged"):
            list(batches)
    else:
        del batches
    assert workers() == before
    assert slow.asked < 60


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_comes_when_its_batch_is_reached(num_workers: int) -> None:
    batches = Loader(Slow(10, faulty=4), 2, num_workers=num_workers).batches(0)
    assert next(batches).position == 0
    assert next(batches).position == 1
    with pytest.raises(DataError, match="image 4 is damaged"):
        next(batches)


def to_float(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return image / 255


def smaller(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return image[:, :4]


def forgetful(image: np.ndarray, rng: np.random.Generator) -> None:
    image[:] = 0


@pytest.mark.parametrize("transform", [to_float, smaller, forgetful])
def test_a_transform_must_keep_shape_and_dtype(
    dataset: ArrayDataset, transform: Callable[..., np.ndarray]
) -> None:
    loader = Loader(dataset, 4, transforms=(HorizontalFlip(), transform))
    with pytest.raises(DataError, match=rf"{transform.__name__}.*uint8 \(1, 8, 8\)") as caught:
        next(loader.batches(0))
    assert vars(caught.value)["culprit"] == __name__


def test_a_dataset_must_return_what_it_promises() -> None:
    slow = Slow(4)
    slow.image_shape = (1, 2, 2)
    with pytest.raises(DataError, match=r"Slow.images returned uint8 \(4, 1, 1, 1\)") as caught:
        next(Loader(slow, 4).batches(0))
    assert vars(caught.value)["culprit"] == __name__
    slow.images = lambda indices: None  # type: ignore[assignment, method-assign, return-value]
    with pytest.raises(DataError, match="returned an object of type NoneType; uint8"):
        next(Loader(slow, 4).batches(0))


def test_wrong_settings(dataset: ArrayDataset) -> None:
    with pytest.raises(
        ConfigError, match="batch_size must be a whole number >= 1; got 0"
    ) as caught:
        Loader(dataset, 0, num_workers=-1)
    assert len(caught.value.problems) == 2
    with pytest.raises(ConfigError, match=r"batch_size must be a whole number >= 1; got 3\.5"):
        Loader(dataset, 3.5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"got Splits .*pass data\.train or data\.test"):
        Loader(Splits(dataset, dataset), 32)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="got ndarray for a Dataset"):
        Loader(np.zeros(3), 32)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="start must be from 0 to 6"):
        Loader(dataset, 4).batches(0, 7)
    with pytest.raises(ConfigError, match="start must be"):
        Loader(dataset, 4).batches(0, -1)
    empty = ArrayDataset(np.zeros((0, 1, 2, 2), np.uint8), np.zeros(0, int), classes="a")
    with pytest.raises(DataError, match="empty"):
        Loader(empty, 4)
