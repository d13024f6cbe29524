"""CIFAR-10 and CIFAR-100 from their binary version.

A record of CIFAR-10 is one label byte and 3072 pixels: 1024 red, 1024 green, 1024 blue, row by
row. A record of CIFAR-100 has two label bytes, coarse and fine; the fine one is the class
(A. Krizhevsky, https://www.cs.toronto.edu/~kriz/cifar.html). The Python version is pickle, which
can run code, and is refused.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from vitkit.data.checks import check_count, check_labels, reading
from vitkit.data.dataset import ArrayDataset, Splits
from vitkit.data.idx import open_regular
from vitkit.data.originals import check_originals
from vitkit.data.sources import CIFAR10, CIFAR100, find
from vitkit.errors import DataError

PIXELS = 3 * 32 * 32
PARTIAL_TEST = "test_batch_first1000.bin"
OFFICIAL = {
    **{f"data_batch_{i}.bin": 10_000 for i in range(1, 6)},
    "test_batch.bin": 10_000,
    PARTIAL_TEST: 1_000,
    "train.bin": 50_000,
    "test.bin": 10_000,
}
"""How many records each file has."""
CIFAR10_NAMES = "airplane automobile bird cat deer dog frog horse ship truck"
CIFAR100_NAMES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
    butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab
    crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard
    lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
    oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
    possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
    spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
    train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""


def cifar10(folder: str | os.PathLike[str] | None = None) -> Splits:
    """Read CIFAR-10: 50 000 training and 10 000 test images, (3, 32, 32).

    Where there is no ``test_batch.bin`` but a ``test_batch_first1000.bin``, that is read, and
    the test part's ``note`` says so.

    Parameters
    ----------
    folder : path, optional
        Where ``data_batch_1.bin`` and the others are; by default as :func:`vitkit.data.find`
        looks.

    Returns
    -------
    Splits
        Training and test images.

    Raises
    ------
    DataError
        If a file is missing or is not the original one, or is the Python version.
    """
    place = find("cifar10", folder)
    note = ""
    test_path = place / "test_batch.bin"
    if not test_path.is_file() and (place / PARTIAL_TEST).is_file():
        test_path = place / PARTIAL_TEST
        note = f"test: the first 1000 official test images only ({PARTIAL_TEST})"
    batches = [_official("cifar10", place / f"data_batch_{i}.bin", (10,)) for i in range(1, 6)]
    images = np.concatenate([images for images, _ in batches])
    labels = np.concatenate([labels for _, labels in batches])
    test = _official("cifar10", test_path, (10,))
    check_originals(CIFAR10, place)
    return _splits(
        (images, labels),
        test,
        classes=_names(place / "batches.meta.txt", CIFAR10_NAMES),
        mean=(0.49140, 0.48216, 0.44653),
        std=(0.24703, 0.24349, 0.26159),
        note=note,
    )


def cifar100(folder: str | os.PathLike[str] | None = None) -> Splits:
    """Read CIFAR-100 with its 100 fine classes: 50 000 training and 10 000 test images.

    Parameters
    ----------
    folder : path, optional
        Where ``train.bin`` and ``test.bin`` are; by default as :func:`vitkit.data.find` looks.

    Returns
    -------
    Splits
        Training and test images, (3, 32, 32).

    Raises
    ------
    DataError
        If a file is missing or is not the original one, or is the Python version.
    """
    place = find("cifar100", folder)
    parts = [_official("cifar100", place / name, (20, 100)) for name in ("train.bin", "test.bin")]
    check_originals(CIFAR100, place)
    return _splits(
        *parts,
        classes=_names(place / "fine_label_names.txt", CIFAR100_NAMES),
        mean=(0.50708, 0.48655, 0.44092),
        std=(0.26733, 0.25644, 0.27615),
    )


def read_records(
    path: str | os.PathLike[str], num_classes: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Read a file of CIFAR records.

    Parameters
    ----------
    path : path
        The file.
    num_classes : tuple of int
        How many classes each label byte of a record distinguishes: ``(10,)`` for CIFAR-10 and
        ``(20, 100)`` for CIFAR-100. The last one is the class.

    Returns
    -------
    images : numpy.ndarray, uint8 (N, 3, 32, 32)
        Pixels, red first.
    labels : numpy.ndarray, int64 (N,)
        Classes.

    Raises
    ------
    DataError
        If the size is not a multiple of a record's, or a label is out of range.
    """
    path = Path(path)
    record = len(num_classes) + PIXELS
    with reading(path), open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0 or size % record:
            raise DataError(
                f"{path}: {size} bytes are not a whole number of records of {record} bytes "
                f"({size // record} and {size % record} bytes): truncated, or not the binary "
                "version. Get the file again."
            )
        records = np.frombuffer(file.read(size), np.uint8).reshape(-1, record)
    for byte, classes in enumerate(num_classes):
        check_labels(records[:, byte], classes, f"{path}, byte {byte} of each record")
    images = records[:, len(num_classes) :].reshape(-1, 3, 32, 32)
    return images, records[:, len(num_classes) - 1].astype(np.int64)


def _official(
    dataset: str, path: Path, num_classes: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Read a file that must have as many records as its authors published."""
    record = len(num_classes) + PIXELS
    size = path.stat().st_size if path.is_file() else 0
    if size and size % record == 0:  # otherwise the reader says what is wrong, and reads nothing
        check_count(size // record, OFFICIAL[path.name], path, dataset)
    return read_records(path, num_classes)


def _splits(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    *,
    classes: tuple[str, ...],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    note: str = "",
) -> Splits:
    return Splits(
        ArrayDataset(*train, classes=classes, mean=mean, std=std),
        ArrayDataset(*test, classes=classes, mean=mean, std=std, note=note),
    )


def _names(path: Path, official: str) -> tuple[str, ...]:
    """Return the class names in a text file, one a line, or the built-in ones without a file."""
    builtin = tuple(official.split())
    if not path.is_file():
        return builtin
    with reading(path), path.open("rb") as file:
        text = file.read(1 << 16).decode("utf-8")
    names = tuple(line.strip() for line in text.splitlines() if line.strip())
    if len(names) != len(builtin) or len(set(names)) != len(names):
        raise DataError(
            f"{path}: {len(set(names))} different class names; {len(builtin)} are due, one a "
            "line. Get the file again, or delete it to use the built-in names."
        )
    if names != builtin and sorted(names) == sorted(builtin):
        raise DataError(
            f"{path}: the official class names in another order, so labels would have the wrong "
            "ones. Get the file again, or delete it to use the built-in names."
        )
    return names
