"""What a data set must say of itself: names, shape, scale, statistics, labels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from vitkit.data.dataset import Dataset, channel_statistics


def attributes(name: str, part: Dataset) -> None:
    """Check everything but the labels."""
    for problem in (*_wrong_facts(part), *_wrong_statistics(part)):
        raise AssertionError(f"{name}.{problem}")


def _wrong_facts(part: Dataset) -> Iterator[str]:
    classes: Any = getattr(part, "classes", None)
    if not isinstance(classes, tuple) or not classes or not all(map(_is_name, classes)):
        yield f"classes is {_short(classes)}; a tuple of names is due, one for each class."
    elif len(set(classes)) < len(classes):
        twice = next(name for name in classes if classes.count(name) > 1)
        yield f"classes has {twice!r} twice; the names must differ."
    shape: Any = getattr(part, "image_shape", None)
    if not isinstance(shape, tuple) or len(shape) != 3 or not all(map(_is_size, shape)):
        yield f"image_shape is {_short(shape)}; (C, H, W), a tuple of three int, is due."
    scale: Any = getattr(part, "scale", None)
    if not isinstance(scale, (int, float)) or not 0 < scale <= 255:
        yield f"scale is {_short(scale)}; the largest value of a pixel is due, such as 255."
    note: Any = getattr(part, "note", None)
    if not isinstance(note, str):
        yield f"note is {_short(note)}; text is due, or leave it out."


def _wrong_statistics(part: Dataset) -> Iterator[str]:
    channels = part.image_shape[0]
    for name in ("mean", "std"):
        numbers: Any = getattr(part, name, None)
        if not isinstance(numbers, tuple) or len(numbers) != channels:
            yield f"{name} is {_short(numbers)}; a tuple of {channels} is due, one a channel."
        elif not all(isinstance(n, (int, float)) and math.isfinite(n) for n in numbers):
            yield (
                f"{name} is {_short(numbers)}; finite numbers of type float are due, since "
                "checkpoints keep them as JSON."
            )
        elif name == "std" and min(numbers) <= 0:
            yield f"std is {_short(numbers)}; pixels are divided by it, so it must be above 0."


def agreement(train: Dataset, test: Dataset) -> None:
    """Check that both parts are of one kind."""
    for fact in ("classes", "image_shape", "scale"):
        first, second = getattr(train, fact), getattr(test, fact)
        if first != second:
            raise AssertionError(
                f"{fact} differ: train has {_short(first)}, test has {_short(second)}. A model "
                "that learned from one is tested on the other: give both the same."
            )


def labels(name: str, part: Dataset) -> None:
    """Check dtype, number and range of the labels."""
    found: Any = getattr(part, "labels", None)
    if not isinstance(found, np.ndarray) or found.dtype != np.int64 or found.ndim != 1:
        what = f"{found.dtype} {found.shape}" if isinstance(found, np.ndarray) else _short(found)
        raise AssertionError(
            f"{name}.labels are {what}; an array int64 (N,) is due: np.asarray(labels, np.int64)."
        )
    if len(part) != len(found):
        raise AssertionError(f"len({name}) is {len(part)}, but it has {len(found)} labels.")
    known = len(part.classes)
    wrong = np.flatnonzero((found < 0) | (found >= known))
    if len(wrong):
        counted = " Are classes counted from 1? Subtract 1." if found.min() == 1 else ""
        raise AssertionError(
            f"{name}.labels[{wrong[0]}] is {found[wrong[0]]}; there are {known} classes, so labels "
            f"run from 0 to {known - 1}.{counted}"
        )


def every_class_occurs(train: Dataset) -> None:
    """Check that there is something to learn of each class."""
    unseen = sorted(set(range(len(train.classes))) - set(train.labels.tolist()))
    if unseen:
        raise AssertionError(
            f"no image of train is of the class {train.classes[unseen[0]]!r} ({len(unseen)} of "
            f"{len(train.classes)} classes have none): take it out of classes. Or are labels "
            "counted from 1?"
        )


def statistics(train: Dataset, images: np.ndarray) -> None:
    """Compare mean and std with those of some images.

    Those of other images of the kind, such as ImageNet's, are near enough; those of pixels in
    other units are not.
    """
    measured = channel_statistics(images, train.scale)
    stated = zip(train.mean, train.std, *measured, strict=True)
    for channel, (mean, std, its_mean, its_std) in enumerate(stated):
        flat = images[:, channel].min() == images[:, channel].max()
        if flat or (abs(its_mean - mean) <= 3 * std and std / 5 <= its_std <= 5 * std):
            continue
        raise AssertionError(
            f"mean {mean:.4g} and std {std:.4g} of channel {channel} are not those of the training "
            f"images, of which {len(images)} have {its_mean:.4g} and {its_std:.4g}: the statistics "
            f"are those of other pixels. Are they of pixels divided by scale, {train.scale:g}? "
            "vitkit.data.channel_statistics(images, scale) measures them."
        )


def _is_name(name: object) -> bool:
    return isinstance(name, str) and bool(name.strip())


def _is_size(side: object) -> bool:
    return isinstance(side, int) and side > 0


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
