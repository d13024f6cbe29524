"""Images in one folder for each class, decoded when they are asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np

from vitkit.data.checks import named, reading
from vitkit.data.dataset import Dataset, Splits, split
from vitkit.data.images import SUFFIXES, UNREAD, in_threads, read_image
from vitkit.data.remembered import Remembered
from vitkit.data.sums import NAME, check_sum, read_sums
from vitkit.errors import ConfigError, DataError

BadFiles: TypeAlias = Literal["error", "skip", "later"]
"""What is done about images that cannot be read."""
MOST_LISTED = 1000
IMAGENET = {3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), 1: ((0.449,), (0.226,))}


def folder(
    root: str | os.PathLike[str],
    image_size: int | tuple[int, int] = 224,
    in_channels: int = 3,
    *,
    test_fraction: float = 0.2,
    seed: int = 0,
    bad_files: BadFiles = "error",
) -> Splits:
    """Read a folder of images: ``root/train/<class>/*`` and ``root/test/<class>/*``.

    Without ``test`` (or ``val``), or with ``root/<class>/*`` only, a stratified share of the
    images is the test part, and its ``note`` says so. Classes are in alphabetical order (by code
    point, as torchvision's ImageFolder has them), files likewise; hidden files, folders and files
    with other suffixes than images' are passed over.

    Where ``root`` has a file ``SHA256SUMS``, as ``sha256sum`` writes it, the images must be those
    that it lists, each with the contents that it says. A JPEG or WebP has no checksum of its own,
    so a damaged one is often decoded without a word otherwise, and one in the wrong class's folder
    is always.

    Parameters
    ----------
    root : path
        The folder.
    image_size : int or tuple of int, default 224
        Side, or height and width, to which images are resized and cropped.
    in_channels : int, default 3
        3 for colour, 1 for grey.
    test_fraction : float, default 0.2
        The share of the test part, where the folder has none.
    seed : int, default 0
        Which images make that part.
    bad_files : {"error", "skip", "later"}, default "error"
        What is done about images that cannot be read. For the first two every image is decoded
        once before anything else, some thousands in 10 s: with ``"error"`` all bad ones are then
        listed, with ``"skip"`` they are left out and the parts' ``note`` says how many. Which were
        good is remembered in the user's cache, so that later only those are decoded that are new,
        have changed (by their size and times), or were bad. With ``"later"`` an image is first
        looked at when it is needed, and the first bad one ends the run.

    Returns
    -------
    Splits
        Training and test images, with ImageNet's mean and standard deviation.

    Raises
    ------
    DataError
        If there is no class, an empty class, or the parts have different classes; or listing
        every image that cannot be read, one a line.
    """
    root = Path(root)
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if min(height, width) < 1 or in_channels not in IMAGENET:
        raise ConfigError(
            f"folder: image_size must be 1 or more and in_channels 1 or 3; got {image_size} and "
            f"{in_channels}."
        )
    if bad_files not in get_args(BadFiles):
        raise ConfigError(f"folder: bad_files must be error, skip or later; got {bad_files!r}.")
    parts = [
        FolderDataset(place, classes, (in_channels, height, width), bad_files="later")
        for place, classes in _places(root)
    ]
    _settle(parts, bad_files, root)
    if len(parts) == 2:
        return Splits(*parts)
    whole = parts[0]
    rest, part = split(whole, test_fraction, seed)
    part.note = f"test: {len(part)} of {len(whole)} images, split by vitkit with seed {seed}"
    if whole.note:
        part.note += f"; {whole.note}"
    return Splits(rest, part)


def _places(root: Path) -> list[tuple[Path, tuple[str, ...]]]:
    """Return the folders of the parts, or of all images, each with its classes."""
    names = _folders(root)
    test_name = next((name for name in ("test", "val") if name in names), None)
    if names in (("test",), ("val",)):
        raise DataError(f"{named(root)}: has {test_name}/ but no train/.")
    if "train" not in names or not _folders(root / "train"):  # "train" may also be a class
        return [(root, names)]
    classes = _folders(root / "train")
    if test_name is None:
        return [(root / "train", classes)]
    test_classes = _folders(root / test_name)
    if classes != test_classes:
        differing = sorted(set(classes) ^ set(test_classes))
        raise DataError(
            f"{named(root)}: train/ and {test_name}/ must have the same classes; only one of them "
            f"has {', '.join(map(named, differing[:5]))}."
        )
    return [(root / "train", classes), (root / test_name, classes)]


class FolderDataset(Dataset):
    """The images in ``root/<class>/*``, decoded on demand.

    Parameters
    ----------
    root : path
        The folder that has one folder for each class.
    classes : sequence of str
        The folders' names, which are the classes'.
    image_shape : tuple of int
        ``(C, H, W)`` of the images to return.
    bad_files : {"error", "skip", "later"}, default "error"
        As for :func:`folder`.

    Attributes
    ----------
    paths : tuple of pathlib.Path
        Each image's file.

    Raises
    ------
    DataError
        If there is no class, or one has no image; or listing every image that cannot be read.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        classes: Sequence[str],
        image_shape: tuple[int, int, int],
        *,
        bad_files: BadFiles = "error",
    ) -> None:
        root = Path(root)
        if not classes:
            raise DataError(f"{named(root)}: no folder in it; one folder for each class is due.")
        found = [_files(root / name) for name in classes]
        for name, files in zip(classes, found, strict=True):
            if not files:
                raise DataError(
                    f"{named(root / name)}: the class has no images ({' '.join(SUFFIXES)}). "
                    "Add some, or remove the folder."
                )
        self.root = root
        self.classes = tuple(classes)
        self.paths = tuple(path for files in found for path in files)
        self.labels = np.repeat(np.arange(len(found)), [len(files) for files in found])
        self.image_shape = image_shape
        self.scale = 255.0
        self.mean, self.std = IMAGENET[image_shape[0]]
        self._sums: dict[Path, str] | None = None
        _settle([self], bad_files, root)

    def images(self, indices: np.ndarray) -> np.ndarray:
        """Return the decoded images at ``indices``, uint8 (b, C, H, W)."""
        decoded = np.empty((len(indices), *self.image_shape), np.uint8)
        for place, index in enumerate(indices):
            decoded[place] = self._read(self.paths[index])
        return decoded

    def _read(self, path: Path) -> np.ndarray:
        if self._sums is not None:
            check_sum(path, self._sums)
        return read_image(path, self.image_shape)

    def _problem(self, path: Path) -> str:
        """Return what is wrong with an image, or an empty string."""
        try:
            self._read(path)
        except DataError as error:
            return str(error)
        return ""

    def _leave_out(self, problems: dict[Path, str]) -> None:
        """Forget the images with which something is wrong."""
        good = np.array([path not in problems for path in self.paths])
        self.paths = tuple(path for path, fine in zip(self.paths, good, strict=True) if fine)
        self.labels = self.labels[good]


def _settle(parts: Sequence[FolderDataset], bad_files: BadFiles, root: Path) -> None:
    """Do about bad images what is asked, for all parts at once, and compare with the sums."""
    sums = read_sums(root)
    problems = _missing(parts, sums) if sums else []
    total = sum(len(part) for part in parts) + len(problems)
    for part in parts:
        if sums is not None:
            part._sums = sums
    if bad_files != "later":
        bad = _bad(parts, Remembered(root, parts[0].image_shape, sums))
        problems += bad.values()
        for part in parts:
            part._leave_out(bad)
    if not problems:
        return
    listed = "\n".join(problems[:MOST_LISTED])
    if len(problems) > MOST_LISTED:
        listed += f"\n... and {len(problems) - MOST_LISTED} more"
    count = f"{len(problems)} of {total} images cannot be read"
    if bad_files != "skip":
        raise DataError(
            f"{named(root)}: {count}:\n{listed}\nRepair or remove them, or leave them out with "
            "bad_files='skip' (vitkit train --set data.bad_files=skip)."
        )
    for part in parts:
        for label, name in enumerate(part.classes):
            if not np.any(part.labels == label):
                raise DataError(f"{named(part.root / name)}: no image of it can be read:\n{listed}")
        part.note = f"{count} and are left out ({named(root)})"


def _bad(parts: Sequence[FolderDataset], remembered: Remembered) -> dict[Path, str]:
    """Return what is wrong with each image that cannot be read, decoding those not known."""
    unknown = remembered.unknown([path for part in parts for path in part.paths])
    say = remembered.noting(parts[0]._problem)
    try:
        said = list(in_threads(say, unknown))
    finally:  # one that is interrupted after minutes goes on where it was
        remembered.write()
    return {path: problem for path, problem in zip(unknown, said, strict=True) if problem}


def _missing(parts: Sequence[FolderDataset], sums: dict[Path, str]) -> list[str]:
    """Return a line for each image of a class that is listed, and not there."""
    present = {path for part in parts for path in part.paths}
    roots = {part.root for part in parts}
    return [
        f"{named(path)}: listed in {NAME}, but not there."
        for path in sums
        if path not in present and path.parent.parent in roots and _is_image(path)
    ]


def _folders(root: Path) -> tuple[str, ...]:
    """Return the names of the folders in ``root``, in alphabetical order."""
    if not root.is_dir():
        raise DataError(f"{named(root)}: there is no such folder.")
    with reading(named(root)):
        visible = [path for path in root.iterdir() if path.name[0] != "."]
        for path in visible:
            if path.is_symlink() and not path.exists():  # which may have been a class
                raise DataError(f"{named(path)}: a link to nothing; restore or remove it.")
        return tuple(sorted(path.name for path in visible if path.is_dir()))


def _files(root: Path) -> list[Path]:
    """Return the images in a class's folder, in alphabetical order.

    Among them are links to nothing and what else cannot be read, to be told of.
    """
    with reading(named(root)):
        return sorted(path for path in root.iterdir() if _is_image(path) and not path.is_dir())


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in (*SUFFIXES, *UNREAD) and path.name[0] != "."
