"""MNIST and Fashion-MNIST from their four original IDX files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from vitkit.data.checks import check_arrays, check_count, reading
from vitkit.data.dataset import ArrayDataset, Splits
from vitkit.data.idx import open_regular, read_idx
from vitkit.data.originals import check_originals
from vitkit.data.sources import FASHION_MNIST, MNIST, Source, find, locate
from vitkit.errors import DataError

OFFICIAL = (60_000, 10_000)
"""How many images there are to learn from and to test on."""
DIGITS = tuple("0123456789")
CLOTHES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def mnist(folder: str | os.PathLike[str] | None = None) -> Splits:
    """Read MNIST: 60 000 training and 10 000 test images, (1, 28, 28).

    Parameters
    ----------
    folder : path, optional
        Where the four files are, with or without ``.gz``, as ``t10k-images-idx3-ubyte`` or
        ``t10k-images.idx3-ubyte``; by default as :func:`vitkit.data.find` looks.

    Returns
    -------
    Splits
        Training and test images.

    Raises
    ------
    DataError
        If a file is missing or is not the original one.
    """
    return _read(MNIST, DIGITS, folder, mean=0.13066, std=0.30811)


def fashion_mnist(folder: str | os.PathLike[str] | None = None) -> Splits:
    """Read Fashion-MNIST: 60 000 training and 10 000 test images, (1, 28, 28).

    Parameters
    ----------
    folder : path, optional
        Where the four files are; by default as :func:`vitkit.data.find` looks.

    Returns
    -------
    Splits
        Training and test images.

    Raises
    ------
    DataError
        If a file is missing or is not the original one.
    """
    return _read(FASHION_MNIST, CLOTHES, folder, mean=0.28604, std=0.35302)


def _read(
    source: Source,
    classes: tuple[str, ...],
    folder: str | os.PathLike[str] | None,
    *,
    mean: float,
    std: float,
) -> Splits:
    place = find(source.name, folder)
    paths = [locate(place, file) for file in source.files]
    missing = [file.name for file, path in zip(source.files, paths, strict=True) if path is None]
    if missing:
        raise DataError(
            f"{place}: {' and '.join(missing)} missing (with or without .gz). Run "
            f"`vitkit data prepare {source.name}`."
        )
    found = [path for path in paths if path is not None]
    _refuse_twin(source, found[-1])
    parts = []
    for first, official in zip((0, 2), OFFICIAL, strict=True):
        images, labels = _part(found[first], found[first + 1], len(classes))
        check_count(len(images), official, found[first], source.name)
        parts.append(ArrayDataset(images, labels, classes=classes, mean=(mean,), std=(std,)))
    if parts[0].image_shape != parts[1].image_shape:
        raise DataError(
            f"{place}: training images are {parts[0].image_shape} and test images "
            f"{parts[1].image_shape}; the files do not belong together."
        )
    check_originals(source, place)
    return Splits(*parts)


def _refuse_twin(source: Source, labels_path: Path) -> None:
    """Refuse the other dataset's files, which have the same names and shapes."""
    with reading(labels_path), open_regular(labels_path) as file:
        sha256 = hashlib.sha256(file.read(1 << 16)).hexdigest()  # longer than either's labels
    for other in (MNIST, FASHION_MNIST):
        if other is not source and sha256 in (other.files[-1].sha256, other.files[-1].gz_sha256):
            raise DataError(
                f"{labels_path}: this is {other.name}, not {source.name}. Pass the folder of "
                f"{source.name}, or use the dataset {other.name}."
            )


def _part(images_path: Path, labels_path: Path, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images, uint8 (N, 1, H, W), and labels, (N,)."""
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.ndim != 3 or images.dtype != np.uint8:
        raise DataError(
            f"{images_path}: holds {images.dtype} {images.shape}; images, uint8 (N, H, W), are due."
        )
    if labels.ndim != 1 or labels.dtype != np.uint8:
        raise DataError(
            f"{labels_path}: holds {labels.dtype} {labels.shape}; labels, uint8 (N,), are due."
        )
    images = images[:, None]
    check_arrays(images, labels, num_classes, f"{images_path} and {labels_path.name}")
    return images, labels
