"""The embedded default: 1797 handwritten digits that need no download.

Provenance and licence are in ``resources/digits.md``.
"""

from __future__ import annotations

import hashlib
import io
from importlib import resources

import numpy as np

from vitkit.data.dataset import ArrayDataset, Splits, Subset, channel_statistics, split
from vitkit.errors import DataError

SHA256 = "1e601fad312d6f3a6ba211d3c823fc72732cecc1abf59c91346ea95e5a4ca645"
TEST_FRACTION = 0.2
SPLIT_SEED = 0
SCALE = 16.0


def digits() -> Splits:
    """Read the UCI handwritten digits: 1437 training and 360 test images, (1, 8, 8).

    The authors' test part, which this is, has no parts itself, so vitkit splits it: 20 % of each
    class are the test images, taken by ``split(dataset, 0.2, seed=0)``. This split is the same
    for every run, whatever its seed, so results can be compared. Pixels run from 0 to 16.

    Returns
    -------
    Splits
        Training and test images.

    Raises
    ------
    DataError
        If the file in the package is not the one that was shipped.

    References
    ----------
    E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
    Repository, 1998, https://doi.org/10.24432/C50P49, CC BY 4.0.
    """
    file = resources.files("vitkit.data").joinpath("resources/digits.npz")
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error}). Reinstall vitkit.") from error
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise DataError(f"{file}: not the file that vitkit ships. Reinstall vitkit.")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    whole = ArrayDataset(images, labels, classes=tuple("0123456789"), scale=SCALE)
    rest, part = split(whole, TEST_FRACTION, SPLIT_SEED)
    mean, std = channel_statistics(images[rest.indices], SCALE)

    def in_memory(subset: Subset) -> ArrayDataset:
        return ArrayDataset(
            images[subset.indices],
            subset.labels,
            classes=whole.classes,
            scale=SCALE,
            mean=mean,
            std=std,
        )

    return Splits(in_memory(rest), in_memory(part))
