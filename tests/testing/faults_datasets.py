"""Data sets that are wrong, each in one thing, and the right ones that they were made from."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from vitkit.backend import philox
from vitkit.data import ArrayDataset, Dataset, Splits, digits
from vitkit.testing.datasets import check_dataset


class Digits(Dataset):
    """The right one: digits in memory, written by hand as a plugin would.

    They are in random order, since as they ship each writer's follow each other: what is done to
    labels in that order still says something about the writer, and so about the image.
    """

    def __init__(self, part: Dataset) -> None:
        self.classes, self.image_shape, self.scale = part.classes, part.image_shape, part.scale
        self.mean, self.std = part.mean, part.std
        order = philox(0, "order of digits").permutation(len(part))
        self.labels, self.pixels = part.labels[order], part.images(order)

    def images(self, indices: np.ndarray) -> np.ndarray:
        return self.pixels[indices]


def both(one: Callable[[Dataset], Dataset]) -> Splits:
    """Return the digits with something done to both parts."""
    splits = digits()
    return Splits(one(splits.train), one(splits.test))


right = partial(both, Digits)


def changed(**attributes: Callable[[Any], Any]) -> Callable[[], Splits]:
    """Return a maker of digits some of whose attributes are functions of the right ones."""

    def one(part: Dataset) -> Dataset:
        wrong = Digits(part)
        for name, change in attributes.items():
            setattr(wrong, name, change(getattr(wrong, name)))
        return wrong

    return partial(both, one)


def shuffled(labels: np.ndarray) -> np.ndarray:
    return philox(0, "a mistake").permutation(labels)


def sorted_apart(labels: np.ndarray) -> np.ndarray:
    return np.sort(labels)


def shifted(labels: np.ndarray) -> np.ndarray:
    return np.roll(labels, 1)


def without_nines(labels: np.ndarray) -> np.ndarray:
    return np.where(labels == 9, 8, labels)


def in_the_test_part(change: Callable[[np.ndarray], np.ndarray]) -> Splits:
    splits = right()
    splits.test.labels = change(splits.test.labels)
    return splits


def refused_by_array_dataset() -> Splits:
    part = digits().test
    images = part.images(np.arange(len(part)))
    wrong = ArrayDataset(images, part.labels + 1, classes=part.classes, scale=16.0)
    return Splits(wrong, wrong)


class InSortedOrder(Digits):
    def images(self, indices: np.ndarray) -> np.ndarray:
        return self.pixels[np.sort(indices)]


class TheNextOnes(Digits):
    def images(self, indices: np.ndarray) -> np.ndarray:
        return self.pixels[np.arange(len(indices))]


class SortsInPlace(Digits):
    def images(self, indices: np.ndarray) -> np.ndarray:
        indices.sort()
        return self.pixels[indices]


class FromZeroToOne(Digits):
    def images(self, indices: np.ndarray) -> np.ndarray:
        return self.pixels[indices] / np.float32(16)


class ChannelsLast(Digits):
    def images(self, indices: np.ndarray) -> np.ndarray:
        return self.pixels[indices].transpose(0, 2, 3, 1)


class NoEmptyBatch(Digits):
    def images(self, indices: np.ndarray) -> np.ndarray:
        return np.stack([self.pixels[index] for index in indices])


class Wraps(Digits):
    def images(self, indices: np.ndarray) -> np.ndarray:
        return self.pixels[indices % len(self)]


class Clips(Digits):
    def images(self, indices: np.ndarray) -> np.ndarray:
        return self.pixels[np.clip(indices, 0, len(self) - 1)]


class ReturnsViews(Digits):
    def images(self, indices: np.ndarray) -> np.ndarray:
        if len(indices) > 1 and (np.diff(indices) == 1).all():
            return self.pixels[indices[0] : indices[-1] + 1]
        return self.pixels[indices]


class OneBuffer(Digits):
    def images(self, indices: np.ndarray) -> np.ndarray:
        if len(indices) != 1:
            return self.pixels[indices]
        if not hasattr(self, "buffer"):
            self.buffer = np.empty((1, *self.image_shape), np.uint8)
        self.buffer[...] = self.pixels[indices]
        return self.buffer


class SharedCursor(Digits):
    position = 0

    def images(self, indices: np.ndarray) -> np.ndarray:
        images = np.empty((len(indices), *self.image_shape), np.uint8)
        for place, index in enumerate(indices):
            self.position = index
            images[place] = self.pixels[self.position]
        return images


class Augments(Digits):
    def images(self, indices: np.ndarray) -> np.ndarray:
        images = self.pixels[indices]
        return images[:, :, :, ::-1].copy() if random.random() < 0.5 else images  # noqa: S311


class DecodesWithALambda(Digits):
    def __init__(self, part: Dataset) -> None:
        super().__init__(part)
        self.decode = lambda image: image


class ForgetsItsLabels(Digits):
    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, labels=np.zeros_like(state["labels"]))


class TooLong(Digits):
    def __len__(self) -> int:
        return len(self.labels) + 1


class NotADataset:
    labels = np.zeros(3, np.int64)

    def __len__(self) -> int:
        return 3


def shuffled_anew() -> Splits:
    order = np.random.default_rng().permutation(1437)
    splits = right()
    train: Any = splits.train
    train.pixels, train.labels = train.pixels[order], train.labels[order]
    return splits


def seeded_globally() -> Splits:
    np.random.seed(0)  # noqa: NPY002 (the fault)
    order = np.random.permutation(1437)  # noqa: NPY002
    splits = right()
    train: Any = splits.train
    train.pixels, train.labels = train.pixels[order], train.labels[order]
    return splits


def tested_on_training_images() -> Splits:
    splits = right()
    train, test = splits.train, splits.test
    test.pixels[::2] = train.pixels[: len(test.pixels[::2])]  # type: ignore[attr-defined]
    test.labels[::2] = train.labels[: len(test.labels[::2])]
    return splits


def classes_in_another_order() -> Splits:
    splits = right()
    splits.test.classes = splits.test.classes[::-1]
    return splits


def without_files() -> Splits:
    with open("/there/is/no/such/file"):
        return right()


def as_a_tuple() -> Any:
    return dataclasses.astuple(right())


def of(kind: type[Dataset]) -> Callable[[], Splits]:
    return partial(both, kind)


# What is wrong: how it is made, the checks that fail and no others, what the message says.
FAULTY: dict[str, tuple[Callable[[], Any], set[str], str]] = {
    "labels are shuffled": (
        changed(labels=shuffled),
        {"labels belong to images"},
        r"the labels tell nothing about the images: a nearest-\w+ classifier is right for \d+% of "
        r"1437, chance is 10%: are labels shuffled",
    ),
    "labels are sorted apart from the images": (
        changed(labels=sorted_apart),
        {"labels belong to images"},
        "tell nothing about the images.*sorted apart from the images",
    ),
    "labels are off by one place": (
        changed(labels=shifted),
        {"labels belong to images"},
        "tell nothing about the images",
    ),
    "labels of the test part are shuffled": (
        partial(in_the_test_part, shuffled),
        {"labels of both parts agree"},
        "labels of the test part do not mean what those of the training part do.*shuffled",
    ),
    "labels of the test part are counted in another order": (
        partial(in_the_test_part, lambda labels: 9 - labels),
        {"labels of both parts agree"},
        "classes in another order",
    ),
    "labels are counted from one": (
        changed(labels=lambda labels: labels + 1),
        {"labels"},
        r"train.labels\[\d+\] is 10; there are 10 classes, so labels run from 0 to 9. Are classes "
        "counted from 1",
    ),
    "labels are counted from one, and ArrayDataset refuses them": (
        refused_by_array_dataset,
        {"parts"},
        r"make\(\) raised DataError: ArrayDataset: label 10 at index",
    ),
    "labels are bytes": (
        changed(labels=lambda labels: labels.astype(np.uint8)),
        {"labels"},
        r"train.labels are uint8 \(1437,\); an array int64 \(N,\) is due",
    ),
    "a class has no image": (
        changed(labels=without_nines),
        {"labels"},
        r"no image of train is of the class '9' \(1 of 10 classes have none\)",
    ),
    "the length is not that of the labels": (
        of(TooLong),
        {"labels"},
        r"len\(train\) is 1438, but it has 1437 labels",
    ),
    "images come in sorted order": (
        of(InSortedOrder),
        {"order of indices"},
        "train.images do not follow the indices: image 0 .* as if the indices were sorted",
    ),
    "indices are ignored": (
        of(TheNextOnes),
        {"order of indices"},
        "do not follow the indices.*; the first ones came",
    ),
    "indices are sorted in place": (
        of(SortsInPlace),
        {"images"},
        r"train.images changes the indices it is given, from \[1436, 0, 718\]",
    ),
    "images are floats": (
        of(FromZeroToOne),
        {"images"},
        r"images\(\[\]\) returned float32 \(0, 1, 8, 8\); uint8 \(0, 1, 8, 8\) is due",
    ),
    "images have their channels last": (of(ChannelsLast), {"images"}, r"\(0, 8, 8, 1\)"),
    "an empty batch raises": (
        of(NoEmptyBatch),
        {"images"},
        r"train.images\(\[\]\) raised ValueError: need at least one array",
    ),
    "indices wrap around": (
        of(Wraps),
        {"indices out of range"},
        r"train.images\(\[1437\]\) returns an image, although there are only 1437",
    ),
    "indices are clipped": (
        of(Clips),
        {"indices out of range"},
        "although there are only 1437: some other image passes for it",
    ),
    "images are views of the data set": (
        of(ReturnsViews),
        {"images are copies"},
        "writing to what train.images returned changes the data set",
    ),
    "images come in one buffer": (
        of(OneBuffer),
        {"images are copies"},
        "train.images returns the same buffer each time",
    ),
    "threads share a cursor": (
        of(SharedCursor),
        {"threads"},
        "train.images returns other pixels when several threads call it at once",
    ),
    "images are augmented": (
        of(Augments),
        {"same images again"},
        "Augmentation belongs into a transform",
    ),
    "the order is drawn anew each time": (
        shuffled_anew,
        {"same data again"},
        r"train: labels differ each time make\(\) is called. Shuffled differently each time",
    ),
    "the order is drawn from np.random": (
        seeded_globally,
        {"global generators"},
        r"make\(\) or images\(\) uses the global generator of np.random",
    ),
    "test images are training images": (
        tested_on_training_images,
        {"test images are new"},
        r"50% of the test images are training images too \(test image 0 is training image 0\)",
    ),
    "a lambda cannot be pickled": (
        of(DecodesWithALambda),
        {"pickling"},
        "train cannot be sent to another process: .*lambda",
    ),
    "pickling loses the labels": (of(ForgetsItsLabels), {"pickling"}, "__getstate__"),
    "statistics are of pixels as they are": (
        changed(mean=lambda mean: (mean[0] * 16,), std=lambda std: (std[0] * 16,)),
        {"statistics"},
        "the statistics are those of other pixels. Are they of pixels divided by scale, 16",
    ),
    "statistics are of pixels divided by 255": (
        changed(mean=lambda mean: (mean[0] * 16 / 255,), std=lambda std: (std[0] * 16 / 255,)),
        {"statistics"},
        r"mean 0\.01914 and std 0\.02358 of channel 0 .* have 0\.3051 and 0\.3759",
    ),
    "a deviation is zero": (
        changed(std=lambda std: (0.0,)),
        {"attributes"},
        r"train.std is \(0.0,\); pixels are divided by it",
    ),
    "pixels exceed the scale": (
        changed(scale=lambda scale: 8.0, mean=lambda mean: (0.6,), std=lambda std: (0.7,)),
        {"pixels"},
        "the largest pixel is 16, above the scale 8",
    ),
    "classes have the same name": (
        changed(classes=lambda classes: (*classes[:-1], "8")),
        {"attributes"},
        "classes has '8' twice",
    ),
    "the parts name their classes in another order": (
        classes_in_another_order,
        {"attributes"},
        "classes differ: train has .* test has",
    ),
    "make returns a tuple": (as_a_tuple, {"parts"}, "returned tuple; vitkit.data.Splits"),
    "a part is no Dataset": (
        lambda: Splits(NotADataset(), NotADataset()),  # type: ignore[arg-type]
        {"parts"},
        "train is of type NotADataset; derive it from vitkit.data.Dataset",
    ),
    "a missing file is no DataError": (
        without_files,
        {"parts"},
        "Where files are missing, raise vitkit.errors.DataError",
    ),
}

FAULTS = {
    name: (partial(check_dataset, make), message) for name, (make, _, message) in FAULTY.items()
}
