"""Whether test images are among the training images."""

from __future__ import annotations

from collections import Counter

import numpy as np

from vitkit.backend import philox
from vitkit.data.dataset import Dataset
from vitkit.testing.check import Skip

MOST_TESTED = 500
ALLOWED = 0.05
"""Real data sets have a few images twice: more of the test images than this are a leak."""
PIECE = 256


def check_no_overlap(train: Dataset, test: Dataset, *, most: int) -> None:
    """Raise an AssertionError if too many test images are training images, pixel for pixel.

    Where training images themselves occur twice, as tiny or synthetic ones do, as many more are
    allowed.

    Parameters
    ----------
    train, test : Dataset
        The two parts.
    most : int
        How many training images are read; of more, a sample stands for all.

    Raises
    ------
    Skip
        If that sample is too small to see a leak.
    """
    asked = _picked(test, min(most, MOST_TESTED))
    known = _picked(train, most)
    seen_share = len(known) / len(train)
    if seen_share < 1 and ALLOWED * len(asked) * seen_share < 3:
        raise Skip(f"only {len(known)} of {len(train)} training images could be compared")
    contents = _contents(train, known)
    place = dict(zip(contents, known.tolist(), strict=True))
    found = [
        (int(index), place[content])
        for index, content in zip(asked, _contents(test, asked), strict=True)
        if content in place
    ]
    counts = Counter(contents)
    twice = sum(count for count in counts.values() if count > 1) / len(contents)
    leaked = len(found) / len(asked)
    if len(found) > 1 and leaked - twice > ALLOWED * seen_share:
        first = "test image {} is training image {}".format(*found[0])
        raise AssertionError(
            f"{min(leaked / seen_share, 1):.0%} of the test images are training images too ({first}"
            f"), while {min(twice / seen_share, 1):.0%} of the training images occur twice: the "
            "accuracy on them shows nothing. Split before repeating or augmenting images, for "
            "example with vitkit.data.split."
        )


def _picked(part: Dataset, most: int) -> np.ndarray:
    if len(part) <= most:
        return np.arange(len(part))
    return np.sort(philox(0, "conformance").permutation(len(part))[:most])


def _contents(part: Dataset, indices: np.ndarray) -> list[bytes]:
    return [
        image.tobytes()
        for start in range(0, len(indices), PIECE)
        for image in part.images(indices[start : start + PIECE])
    ]
