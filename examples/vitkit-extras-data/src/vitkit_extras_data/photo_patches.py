"""Patches of two photographs, by what is seen on them.

The photographs come with scikit-learn: ``china.jpg`` by danielbuechele and ``flower.jpg`` by
vultilion, both CC BY 2.0 (see README.md). Each class is a rectangle of one of them, divided into
blocks of 64x64 pixels; patches of 32x32 are cut from one block each, every 8 pixels, and a third
of the blocks is the test part. So training patches overlap each other, as shifted copies do, but
no pixel is in both parts.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitkit.data import Splits, data_dir, npz
from vitkit.errors import DataError

NAME = "photo_patches"
FILE = f"{NAME}.npz"
SIDE = 32
EVERY = 8
BLOCK = 64

Progress = Callable[[str, int, int], None]
"""``(file, bytes so far, bytes in all)``."""


@dataclass(frozen=True)
class Region:
    """A rectangle of a photograph: its upper left pixel, and its blocks across and down."""

    name: str
    photo: str
    left: int
    top: int
    across: int
    down: int

    def blocks(self) -> Iterator[tuple[int, int, bool]]:
        """Yield the upper left pixel of each block, and whether it is of the test part."""
        for row in range(self.down):
            for column in range(self.across):
                is_test = (row + column) % 3 == 1
                yield self.left + BLOCK * column, self.top + BLOCK * row, is_test


REGIONS = (
    Region("sky", "china.jpg", left=352, top=0, across=4, down=3),
    Region("pagoda", "china.jpg", left=112, top=96, across=3, down=4),
    Region("trees", "china.jpg", left=384, top=299, across=4, down=2),
    Region("petals", "flower.jpg", left=208, top=126, across=3, down=3),
    Region("leaves", "flower.jpg", left=0, top=43, across=2, down=6),
)
CLASSES = tuple(region.name for region in REGIONS)


def photo_patches(folder: str | os.PathLike[str] | None = None) -> Splits:
    """Read the patches that ``vitkit data prepare photo_patches`` has cut.

    Parameters
    ----------
    folder : path, optional
        Where the file is, or the folder ``photo_patches`` with it; by default that folder in
        :func:`vitkit.data.data_dir`.

    Returns
    -------
    Splits
        875 training and 450 test images, uint8 (3, 32, 32), of five classes.

    Raises
    ------
    DataError
        If the file is not there, or not the one that was written.
    """
    places = [Path(folder), Path(folder) / NAME] if folder is not None else [data_dir() / NAME]
    for place in places:
        if (place / FILE).exists():
            problem = damage(place)
            if problem:
                raise DataError(f"{problem} Run `vitkit data prepare {NAME}` again.")
            return npz(place / FILE, classes=CLASSES)
    raise DataError(
        f"{NAME} not found in {' or '.join(map(str, places))}; run `vitkit data prepare {NAME}` or "
        "pass --data-dir."
    )


def prepare(folder: str | os.PathLike[str], progress: Progress | None = None) -> Path:
    """Cut the patches, unless they are there and whole.

    Parameters
    ----------
    folder : path
        Where they go: ``photo_patches.npz``, and its SHA-256 beside it.
    progress : callable, optional
        Called with the file's name, the bytes of pixels so far and those in all.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    DataError
        If the folder cannot be written.
    """
    place = Path(folder)
    if not damage(place):
        return place
    packed = io.BytesIO()
    np.savez(packed, allow_pickle=False, **_arrays(progress))
    content = packed.getvalue()
    try:
        place.mkdir(parents=True, exist_ok=True)
        _replace(place / FILE, content)
        _replace(_digest_of(place), f"{hashlib.sha256(content).hexdigest()}  {FILE}\n".encode())
    except OSError as error:
        raise DataError(
            f"{place}: cannot be written ({error}). Make room or choose another folder with "
            "--data-dir or VITKIT_DATA_DIR."
        ) from error
    return place


def damage(place: Path) -> str:
    """Return what is wrong with the files in a folder, or an empty string."""
    try:
        content, recorded = (place / FILE).read_bytes(), _digest_of(place).read_text("ascii")
    except (OSError, UnicodeDecodeError) as error:
        return f"{place}: {FILE} or its SHA-256 cannot be read ({type(error).__name__})."
    if hashlib.sha256(content).hexdigest() != recorded.partition(" ")[0]:
        return f"{place / FILE}: its SHA-256 is not the one in {_digest_of(place).name}: damaged."
    return ""


def _arrays(progress: Progress | None) -> dict[str, np.ndarray]:
    """Return the images (N, 3, 32, 32) and labels of both parts."""
    from sklearn.datasets import load_sample_image  # takes a second to import

    images: dict[bool, list[np.ndarray]] = {False: [], True: []}
    labels: dict[bool, list[int]] = {False: [], True: []}
    starts = range(0, BLOCK - SIDE + 1, EVERY)
    patch_bytes = 3 * SIDE * SIDE
    total = sum(r.across * r.down for r in REGIONS) * len(starts) ** 2 * patch_bytes
    for label, region in enumerate(REGIONS):
        photo = load_sample_image(region.photo).transpose(2, 0, 1)
        for left, top, is_test in region.blocks():
            for y in starts:
                for x in starts:
                    rows = slice(top + y, top + y + SIDE)
                    images[is_test].append(photo[:, rows, left + x : left + x + SIDE])
                    labels[is_test].append(label)
        if progress:
            progress(FILE, sum(map(len, images.values())) * patch_bytes, total)
    return {
        "x_train": np.stack(images[False]),
        "y_train": np.array(labels[False]),
        "x_test": np.stack(images[True]),
        "y_test": np.array(labels[True]),
    }


def _digest_of(place: Path) -> Path:
    """Return the file with the SHA-256, in the form that ``sha256sum --check`` reads."""
    return place / f"{FILE}.sha256"


def _replace(path: Path, content: bytes) -> None:
    """Write a file under another name first, so that it is whole as soon as it is there."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
