"""What looks wrong with the images and labels of a run, though they can be read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from vitkit.data import Dataset

SAMPLE = 2000
"""How many images of a part have their pixels looked at."""
MOST_BYTES = 2**30
"""Up to how much data images are compared to find those that are there twice."""
CHUNK = 512
UNBALANCED = 10.0
"""How many times larger the largest class may be than the smallest."""
SHARED = 0.005
"""Which share of a part may be in another: benchmarks have a few such images."""

Remarks = list[tuple[str, str]]


@dataclass(frozen=True)
class Pixels:
    """The pixels of a sample of images, divided by the scale."""

    mean: float
    least: float
    largest: float
    constant: float
    """The share of images that are of one single value."""


def data_findings(parts: Mapping[str, Dataset]) -> tuple[Remarks, dict[str, str]]:
    """Look at the parts of a run's data.

    Parameters
    ----------
    parts : mapping of str to Dataset
        ``"train"`` and ``"test"``, and ``"val"`` where images are held back.

    Returns
    -------
    remarks : list of tuple of str
        What each is about, and what is wrong and what to do.
    facts : dict of str to str
        What was looked at.
    """
    remarks: Remarks = []
    facts = {"images": ", ".join(f"{name} {len(part)}" for name, part in parts.items())}
    for name, part in parts.items():
        remarks += _labels(name, part)
    facts["classes"] = _balance(parts["train"])
    pixels = {name: _pixels(part) for name, part in parts.items() if len(part)}
    for name, part in parts.items():
        if name in pixels:
            remarks += _scale(name, part, pixels[name])
    remarks += _inverted(pixels)
    again, facts["images in two parts"] = _shared(parts)
    return remarks + again, facts


def _labels(name: str, part: Dataset) -> Remarks:
    """Compare labels with the classes, and classes with each other."""
    classes = len(part.classes)
    wrong = np.flatnonzero((part.labels < 0) | (part.labels >= classes))
    if len(wrong):
        return [
            (
                f"data, {name}",
                f"label {part.labels[wrong[0]]} at index {wrong[0]} is out of range, as are "
                f"{len(wrong)} of {len(part)}; labels run from 0 to {classes - 1}: correct them.",
            )
        ]
    counts = np.bincount(part.labels, minlength=classes)
    absent = [part.classes[k] for k in np.flatnonzero(counts == 0)]
    if absent and len(part):
        listed = ", ".join(absent[:5]) + ("..." if len(absent) > 5 else "")
        return [
            (
                f"data, {name}",
                f"no image is of {len(absent)} of {classes} classes ({listed}); add some, or "
                "leave these classes out.",
            )
        ]
    if name == "train" and counts.max() > UNBALANCED * counts.min():
        least, most = part.classes[counts.argmin()], part.classes[counts.argmax()]
        return [
            (
                f"data, {name}",
                f"classes are uneven: {counts.max()} images of {most}, {counts.min()} of {least}; "
                "add images of the rare ones, and look at recall by class (vitkit evaluate), not "
                "at accuracy alone.",
            )
        ]
    return []


def _balance(part: Dataset) -> str:
    inside = part.labels[(part.labels >= 0) & (part.labels < len(part.classes))]
    counts = np.bincount(inside, minlength=len(part.classes))
    return f"{len(part.classes)}, of {counts.min()} to {counts.max()} images to train on"


def _pixels(part: Dataset) -> Pixels:
    """Look at some images of a part, spread over all of it."""
    count = min(len(part), SAMPLE)
    chosen = np.linspace(0, len(part) - 1, count).astype(np.int64)
    total, constant, least, largest = 0.0, 0, 255, 0
    for start in range(0, count, CHUNK):
        images = part.images(chosen[start : start + CHUNK])
        flat = images.reshape(len(images), -1)
        total += float(flat.mean(axis=1).sum())
        low, high = flat.min(axis=1), flat.max(axis=1)
        constant += int((low == high).sum())
        least, largest = min(least, int(low.min())), max(largest, int(high.max()))
    scale = part.scale
    return Pixels(total / count / scale, least / scale, largest / scale, constant / count)


def _scale(name: str, part: Dataset, pixels: Pixels) -> Remarks:
    about = f"data, {name}"
    numbers = (*part.mean, *part.std)
    if not np.isfinite(numbers).all() or min(part.std) <= 0:
        return [
            (
                about,
                f"pixels are normalised with mean {part.mean} and deviation {part.std}, which "
                "makes no finite numbers; measure them again.",
            )
        ]
    if pixels.largest == 0:
        return [(about, "every pixel is 0; look at how the images were read or saved.")]
    if pixels.least == pixels.largest:
        what = f"every pixel is {pixels.largest * part.scale:g}"
        return [(about, f"{what}; look at how the images were read or saved.")]
    if pixels.largest > 1:
        what = f"the largest pixel is {pixels.largest * part.scale:g}, above the scale"
        return [(about, f"{what} {part.scale:g}; give the scale that the pixels have.")]
    if pixels.largest < 0.1:
        what = f"pixels are at most {pixels.largest:.2g} of the scale {part.scale:g}"
        return [(about, f"{what}; give the scale that they have, or save them from 0 to 255.")]
    if pixels.constant > 0.01:
        what = f"{pixels.constant:.1%} of the images are of one single value"
        return [(about, f"{what}; look at them, and leave out those that are empty.")]
    return []


def _inverted(pixels: Mapping[str, Pixels]) -> Remarks:
    """Say where a part looks like the negative of what is trained on."""
    train = pixels["train"].mean
    return [
        (
            f"data, {name}",
            f"its mean pixel is {other.mean:.2f} of the scale, that of the images to train on "
            f"{train:.2f}: one of the two is probably the negative of the other; invert it "
            "(255 - pixels).",
        )
        for name, other in pixels.items()
        if abs(other.mean - train) > 0.2 and abs(1 - other.mean - train) < 0.1
    ]


def _shared(parts: Mapping[str, Dataset]) -> tuple[Remarks, str]:
    """Count the images that are in two parts, pixel by pixel, where that is cheap."""
    size = sum(len(part) * int(np.prod(part.image_shape)) for part in parts.values())
    if size > MOST_BYTES:
        return [], f"not looked for in {size / 2**30:.1f} GiB of pixels"
    digests = {name: list(_digests(part)) for name, part in parts.items()}
    learned = set(digests["train"])
    remarks, told = [], []
    for name, own in digests.items():
        if name == "train" or not own:
            continue
        again = sum(digest in learned for digest in own)
        told.append(f"{again} of {name} are in train")
        if again > SHARED * len(own):
            remarks.append(
                (
                    f"data, {name}",
                    f"{again} of its {len(own)} images are among those to train on; results on it "
                    "say too much: take them out of one of the two.",
                )
            )
    return remarks, ", ".join(told) or "none"


def _digests(part: Dataset) -> Iterator[bytes]:
    for start in range(0, len(part), CHUNK):
        images = part.images(np.arange(start, min(start + CHUNK, len(part))))
        for image in images:
            yield hashlib.blake2b(image.tobytes(), digest_size=16).digest()
