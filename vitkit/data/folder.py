"""Images in one folder for each class, decoded when they are asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vitkit.data.checks import reading
from vitkit.data.dataset import Dataset, Splits, split
from vitkit.errors import ConfigError, DataError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
LARGEST_IMAGE = 64_000_000  # pixels; below the size from which Pillow itself would warn
IMAGENET = {3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), 1: ((0.449,), (0.226,))}


def folder(
    root: str | os.PathLike[str],
    image_size: int | tuple[int, int] = 224,
    in_channels: int = 3,
    *,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Splits:
    """Read a folder of images: ``root/train/<class>/*`` and ``root/test/<class>/*``.

    Without ``test`` (or ``val``), or with ``root/<class>/*`` only, a stratified share of the
    images is the test part, and its ``note`` says so. Classes are in alphabetical order (by code
    point, as torchvision's ImageFolder has them), files likewise; hidden files and files with
    other suffixes than images' are passed over.

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

    Returns
    -------
    Splits
        Training and test images, with ImageNet's mean and standard deviation.

    Raises
    ------
    DataError
        If there is no class, an empty class, or the parts have different classes.
    """
    root = Path(root)
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if min(height, width) < 1 or in_channels not in IMAGENET:
        raise ConfigError(
            f"folder: image_size must be 1 or more and in_channels 1 or 3; got {image_size} and "
            f"{in_channels}."
        )
    shape = (in_channels, height, width)
    names = _folders(root)
    test_name = next((name for name in ("test", "val") if name in names), None)
    if names in (("test",), ("val",)):
        raise DataError(f"{root}: has {test_name}/ but no train/.")
    if "train" not in names or not _folders(root / "train"):  # "train" may also be a class
        whole = FolderDataset(root, names, shape)
    elif test_name is None:
        whole = FolderDataset(root / "train", _folders(root / "train"), shape)
    else:
        classes, test_classes = _folders(root / "train"), _folders(root / test_name)
        if classes != test_classes:
            differing = sorted(set(classes) ^ set(test_classes))
            raise DataError(
                f"{root}: train/ and {test_name}/ must have the same classes; only one of them "
                f"has {', '.join(differing[:5])}."
            )
        return Splits(
            FolderDataset(root / "train", classes, shape),
            FolderDataset(root / test_name, classes, shape),
        )
    rest, part = split(whole, test_fraction, seed)
    part.note = f"test: {len(part)} of {len(whole)} images, split by vitkit with seed {seed}"
    return Splits(rest, part)


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

    Attributes
    ----------
    paths : tuple of pathlib.Path
        Each image's file.

    Raises
    ------
    DataError
        If there is no class, or one has no image.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        classes: Sequence[str],
        image_shape: tuple[int, int, int],
    ) -> None:
        if not classes:
            raise DataError(f"{root}: no folder in it; one folder for each class is due.")
        found = [_files(Path(root) / name) for name in classes]
        for name, files in zip(classes, found, strict=True):
            if not files:
                raise DataError(
                    f"{Path(root) / name}: the class has no images ({' '.join(SUFFIXES)}). "
                    "Add some, or remove the folder."
                )
        self.classes = tuple(classes)
        self.paths = tuple(path for files in found for path in files)
        self.labels = np.repeat(np.arange(len(found)), [len(files) for files in found])
        self.image_shape = image_shape
        self.scale = 255.0
        self.mean, self.std = IMAGENET[image_shape[0]]

    def images(self, indices: np.ndarray) -> np.ndarray:
        """Return the decoded images at ``indices``, uint8 (b, C, H, W)."""
        decoded = np.empty((len(indices), *self.image_shape), np.uint8)
        for place, index in enumerate(indices):
            decoded[place] = read_image(self.paths[index], self.image_shape)
        return decoded


def read_image(
    path: str | os.PathLike[str],
    image_shape: tuple[int, int, int],
    *,
    largest: int = LARGEST_IMAGE,
) -> np.ndarray:
    """Decode an image file to one shape.

    The orientation that a camera noted (EXIF) is applied, the colours become RGB or grey, the
    image is resized (bicubic) until it just covers ``image_shape``, and its centre is cropped.
    Of an animation the first frame is read; transparency is dropped; 16-bit grey loses its lower
    8 bits.

    Parameters
    ----------
    path : path
        A PNG, JPEG, WebP, BMP, GIF, TIFF or PNM file.
    image_shape : tuple of int
        ``(C, H, W)`` to return, C being 1 or 3.
    largest : int, default 64 000 000
        The most pixels a file may declare; seen before it is decoded.

    Returns
    -------
    numpy.ndarray, uint8 (C, H, W)
        The pixels.

    Raises
    ------
    DataError
        If the file is missing, damaged, truncated, too large, or not an image.
    """
    from PIL import Image, ImageOps

    path = Path(path)
    channels, height, width = image_shape
    if not path.is_file():
        raise DataError(f"{path}: there is no such file.")
    with reading(path):
        try:
            opened = Image.open(path, formats=FORMATS)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise DataError(f"{path}: {_too_large(largest)} ({error})") from error
        with opened:
            if opened.width * opened.height > largest:
                raise DataError(f"{path}: {opened.width}x{opened.height}: {_too_large(largest)}")
            upright = ImageOps.exif_transpose(opened)
        if upright.mode.startswith("I;16"):
            upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
        elif upright.mode in ("I", "F"):
            raise DataError(f"{path}: 32-bit grey ({upright.mode}); save it with 8 or 16 bits.")
        if upright.mode in ("P", "PA"):  # Pillow warns about a palette with transparency otherwise
            upright = upright.convert("RGBA")
        coloured = upright.convert("RGB" if channels == 3 else "L")
        # Cropping before resizing gives the same pixels, and a 1x10000 image no huge one between.
        factor = min(coloured.height / height, coloured.width / width)
        left = (coloured.width - factor * width) / 2
        top = (coloured.height - factor * height) / 2
        box = (left, top, left + factor * width, top + factor * height)
        fitted = coloured.resize((width, height), Image.Resampling.BICUBIC, box=box)
        pixels = np.asarray(fitted, np.uint8)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _too_large(largest: int) -> str:
    return (
        f"too large: files that declare more than {largest} pixels are not decoded, since a small "
        "file may unpack to fill the memory. Make it smaller first."
    )


def _folders(root: Path) -> tuple[str, ...]:
    """Return the names of the folders in ``root``, in alphabetical order."""
    if not root.is_dir():
        raise DataError(f"{root}: there is no such folder.")
    with reading(root):
        return tuple(sorted(p.name for p in root.iterdir() if p.is_dir() and p.name[0] != "."))


def _files(root: Path) -> list[Path]:
    """Return the images in a class's folder, in alphabetical order."""
    with reading(root):
        return sorted(
            p
            for p in root.iterdir()
            if p.suffix.lower() in SUFFIXES and p.name[0] != "." and p.is_file()
        )
