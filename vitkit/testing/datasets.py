"""What a data set must be: labels that belong to images, and the same ones whoever asks."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np

from vitkit.backend import philox
from vitkit.data.checks import check_pixels
from vitkit.data.dataset import Dataset, Splits
from vitkit.errors import DataError
from vitkit.testing.check import Check, Skip, run_checks, where
from vitkit.testing.parts import dataset_facts as facts
from vitkit.testing.parts import dataset_images as images
from vitkit.testing.parts.isolation import global_generators
from vitkit.testing.parts.making import expect_makeable, made
from vitkit.testing.parts.overlap import check_no_overlap
from vitkit.testing.parts.separable import Sample, check_labels_agree, check_labels_fit
from vitkit.testing.parts.staged import staged

MOST_IMAGES = 2000
MOST_PIXELS = 40_000_000
"""What is looked at, so that a folder of photographs is checked in seconds."""
MOST_CLASSES = 10
ABOUT_DATA = ("vitkit.data.checks", "vitkit.data.dataset")
"""Where errors come from that are about data, and not about files that are missing."""

Make = Callable[[], Splits]


def check_dataset(make: Make, *, learnable: bool = True) -> None:
    """Check a data set: labels, images, order, threads, other processes, nothing leaked.

    Parameters
    ----------
    make : callable
        ``make()`` returns ``Splits``; it is called twice. If it raises ``DataError`` because
        files are missing, every check is skipped.
    learnable : bool, default True
        Whether labels are compared with images, by classifiers that see single pixels and
        frequencies. False for data in which those say too little.

    Raises
    ------
    ConformanceError
        Listing what is wrong.
    TypeError
        If ``make`` needs arguments.
    """
    expect_makeable(make)
    run_checks("the data set", dataset_checks(make, learnable=learnable))


def dataset_checks(make: Make, *, learnable: bool = True) -> list[Check]:
    """Return the checks of :func:`check_dataset`, which takes the same arguments."""
    data = _Data(partial(made, make))
    foundation = [
        Check("parts", data.are_parts),
        Check("attributes", data.have_attributes),
        Check("labels", data.have_labels),
        Check("images", partial(data.each, images.shape_and_dtype)),
        Check("same images again", partial(data.each, images.stay_the_same)),
        Check("order of indices", partial(data.each, images.follow_indices)),
    ]
    others = [
        Check("indices out of range", partial(data.each, images.refuse_what_is_not_there)),
        Check("pixels", data.keep_to_scale),
        Check("statistics", data.have_statistics),
        Check("images are copies", partial(data.each, images.are_copies)),
        Check("same data again", data.are_the_same_again),
        Check("global generators", data.leave_generators_alone),
        Check("threads", partial(data.each, images.serve_threads)),
        Check("pickling", partial(data.each, images.survive_pickling)),
        Check("test images are new", data.do_not_overlap),
    ]
    if learnable:
        others.append(Check("labels belong to images", data.labels_fit))
        others.append(Check("labels of both parts agree", data.labels_agree))
    return staged(foundation, others)


class _Made(NamedTuple):
    splits: Splits
    moved: str  # the global generators that were used on the way


class _Data:
    """What ``make`` returns, made when a check first asks for it, and what must hold of it."""

    def __init__(self, make: Make) -> None:
        self._make = make

    @cached_property
    def first(self) -> _Made:
        return self._made(1)

    @cached_property
    def second(self) -> _Made:
        return self._made(2)

    def _made(self, seed: int) -> _Made:
        with global_generators(seed) as moved:
            try:
                splits = self._make()
            except DataError as error:
                if _origin(error) in ABOUT_DATA:
                    raise AssertionError(f"make() raised DataError: {error}") from error
                raise Skip(_how_to_get(error)) from error
            except FileNotFoundError as error:
                raise AssertionError(
                    f"make() raised {type(error).__name__}: {error}{where(error)}. Where files are "
                    "missing, raise vitkit.errors.DataError and say how to get them."
                ) from error
            with contextlib.suppress(Exception):  # other checks say what is wrong with it
                splits.train.images(images.as_indices(0))
            return _Made(splits, moved())

    @property
    def train(self) -> Dataset:
        return self.first.splits.train

    @property
    def test(self) -> Dataset:
        return self.first.splits.test

    @cached_property
    def samples(self) -> dict[str, Sample]:
        """Images at random of at most ten classes, those with the most training images."""
        counts = np.bincount(self.train.labels)
        classes = np.argsort(-counts, kind="stable")[:MOST_CLASSES]
        samples = {}
        for name, part in (("train", self.train), ("test", self.test)):
            members = np.flatnonzero(np.isin(part.labels, classes))
            picked = philox(0, "conformance").permutation(members)[: _affordable(part)]
            samples[name] = Sample(part.images(picked), part.labels[picked])
        return samples

    def each(self, check: Callable[[str, Dataset], None]) -> None:
        for name, part in (("train", self.train), ("test", self.test)):
            check(name, part)

    def are_parts(self) -> None:
        splits: Any = self.first.splits
        if not isinstance(splits, Splits):
            raise AssertionError(
                f"make() returned {type(splits).__name__}; vitkit.data.Splits(train, test) is due. "
                "vitkit.data.split makes two parts of one."
            )
        self.each(_is_part)

    def have_attributes(self) -> None:
        self.each(facts.attributes)
        facts.agreement(self.train, self.test)

    def have_labels(self) -> None:
        self.each(facts.labels)
        facts.every_class_occurs(self.train)

    def have_statistics(self) -> None:
        facts.statistics(self.train, self.samples["train"].images)

    def keep_to_scale(self) -> None:
        for name, sample in self.samples.items():
            try:
                check_pixels(sample.images, name, scale=self.train.scale)
            except DataError as error:
                raise AssertionError(str(error)) from error

    def are_the_same_again(self) -> None:
        again = self.second.splits
        _same_again("train", self.train, again.train)
        _same_again("test", self.test, again.test)

    def leave_generators_alone(self) -> None:
        moved = self.first.moved or self.second.moved
        if moved:
            raise AssertionError(
                f"make() or images() uses the global generator of {moved}, which changes what "
                "everyone else draws: make a generator of its own with a fixed seed, such as "
                "vitkit.backend.philox(0, 'my data')."
            )

    def do_not_overlap(self) -> None:
        check_no_overlap(self.train, self.test, most=_affordable(self.train, 60_000))

    def labels_fit(self) -> None:
        sample = self.samples["train"]
        if len(np.unique(sample.labels)) < 2:
            raise Skip("there is a single class, so labels say nothing")
        check_labels_fit(sample, len(self.train.classes))

    def labels_agree(self) -> None:
        try:
            self.labels_fit()
        except AssertionError:
            raise Skip("waits for the check 'labels belong to images', which fails") from None
        train, test = self.samples["train"], self.samples["test"]
        check_labels_agree(train, test, len(self.train.classes))


def _affordable(part: Dataset, most: int = MOST_IMAGES) -> int:
    return min(most, max(100, MOST_PIXELS // math.prod(part.image_shape)))


def _origin(error: BaseException) -> str:
    """Return the module that raised an error."""
    traceback, name = error.__traceback__, ""
    while traceback:
        name = str(traceback.tb_frame.f_globals.get("__name__"))
        traceback = traceback.tb_next
    return name


def _how_to_get(error: DataError) -> str:
    advice = "" if "vitkit data prepare" in str(error) else " Get them, then check again."
    return f"the files are not here: {error}{advice}"


def _is_part(name: str, part: Any) -> None:
    if not isinstance(part, Dataset):
        raise AssertionError(
            f"{name} is of type {type(part).__name__}; derive it from vitkit.data.Dataset, or use "
            "vitkit.data.ArrayDataset for arrays."
        )
    if len(part) == 0:
        raise AssertionError(f"{name} has no images.")


def _same_again(name: str, part: Dataset, again: Dataset) -> None:
    """Compare a part with what another call of ``make`` gave."""
    indices = images.some_indices(part, 40)
    facts_of = [(p.classes, p.image_shape, p.scale, p.mean, p.std) for p in (part, again)]
    what = ""
    if facts_of[0] != facts_of[1]:
        what = "classes or other attributes"
    elif not np.array_equal(part.labels, again.labels):
        what = "labels"
    elif (again.images(indices) != part.images(indices)).any():
        what = "images"
    if what:
        raise AssertionError(
            f"{name}: {what} differ each time make() is called. Shuffled differently each time? "
            "Draw from a generator with a fixed seed, such as vitkit.backend.philox(0, 'my data'), "
            "and sort what a folder or a set lists."
        )
