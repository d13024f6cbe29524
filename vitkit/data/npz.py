"""Arrays in ``.npz`` or ``.npy`` files, as vitkit's ancestors keep them.

The names are ``x_train``, ``y_train``, ``x_test`` and ``y_test``. A ``.npy`` header is compared
with the file's real size before any memory is taken, since one of 128 bytes may declare 745 GiB.
"""

from __future__ import annotations

import io
import math
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import numpy as np

from vitkit.data.checks import check_arrays, check_labels, reading
from vitkit.data.dataset import ArrayDataset, Splits, channel_statistics, split
from vitkit.data.idx import LOOSEST, SMALL, open_regular
from vitkit.data.sums import check_sum, read_sums
from vitkit.errors import DataError

NAMES = ("x_train", "y_train", "x_test", "y_test")
LARGEST_HEADER = 1 << 16
LARGEST_UNPACKED = 1 << 32
PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
PIECE = 1 << 20


def npz(path: str | os.PathLike[str], *, classes: Sequence[str] | None = None) -> Splits:
    """Read a ``.npz`` file, or a folder of ``.npy`` files.

    Images are (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 or 3 channels, uint8 or float from 0
    to 1 in steps of 1/255, which become uint8 exactly. Labels are integers (N,) or one-hot (N, K).
    Without ``x_test``, a stratified fifth of the images is the test part, and its ``note`` says so.
    Where a folder has a file ``SHA256SUMS``, as ``sha256sum`` writes it, the ``.npy`` files must
    have the contents that it says; they have no checksum of their own.

    Parameters
    ----------
    path : path
        The file or folder.
    classes : sequence of str, optional
        The name of each class; by default their numbers.

    Returns
    -------
    Splits
        Training and test images, with mean and standard deviation of the training images.

    Raises
    ------
    DataError
        If an array is missing, damaged, or not what it should be.
    """
    path = Path(path)
    arrays = _arrays(path)
    missing = [name for name in NAMES[:2] if name not in arrays]
    missing += [b for a, b in (NAMES[2:], NAMES[:1:-1]) if a in arrays and b not in arrays]
    if missing:
        raise DataError(
            f"{path}: {' and '.join(missing)} missing; {', '.join(NAMES)} are due, as arrays of a "
            ".npz file or as .npy files of a folder."
        )
    labels, num_classes = _labels(arrays["y_train"], f"{path}: y_train")
    if len(labels) and labels.min() > 0:
        raise DataError(
            f"{path}: y_train: labels run from {labels.min()} to {labels.max()}; they must start "
            f"at 0. Subtract {labels.min()} if classes were counted from there."
        )
    if not classes and arrays["y_train"].shape[1:] in ((), (1,)):  # one-hot says how many
        _refuse_gaps(labels, num_classes, f"{path}: y_train")
    names = tuple(classes) if classes else tuple(map(str, range(num_classes)))
    images = _images(arrays["x_train"], f"{path}: x_train")
    check_arrays(images, labels, len(names), f"{path}: x_train, y_train")
    mean, std = channel_statistics(images)
    train = ArrayDataset(images, labels, classes=names, mean=mean, std=std)
    if "x_test" not in arrays:
        rest, part = split(train, 0.2)
        part.note = f"test: {len(part)} of {len(train)} images, split by vitkit with seed 0"
        return Splits(rest, part)
    labels, _ = _labels(arrays["y_test"], f"{path}: y_test")
    images = _images(arrays["x_test"], f"{path}: x_test")
    check_arrays(images, labels, len(names), f"{path}: x_test, y_test")
    if images.shape[1:] != train.image_shape:
        raise DataError(
            f"{path}: x_train has images of {train.image_shape}, x_test of {images.shape[1:]}."
        )
    return Splits(train, ArrayDataset(images, labels, classes=names, mean=mean, std=std))


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays that a file or folder has of those expected."""
    if path.is_dir():
        files = {name: path / f"{name}.npy" for name in NAMES}
        sums = read_sums(path)
        here = {name: npy for name, npy in files.items() if npy.is_file() or npy in (sums or ())}
        if sums is not None:
            for npy in here.values():
                check_sum(npy, sums)
        return {name: read_npy(npy) for name, npy in here.items()}
    with reading(path), open_regular(path) as file:
        pieces = cast("IO[bytes]", _InPieces(file, str(path)))
        with zipfile.ZipFile(pieces) as archive:
            infos = archive.infolist()
            present = {
                name: [info for info in infos if info.filename in (name, f"{name}.npy")]
                for name in NAMES
            }
            for name, found in present.items():
                if len(found) > 1:
                    raise DataError(
                        f"{path}: {name} is in it {len(found)} times. Save it again with "
                        "numpy.savez."
                    )
            return {
                name: _read_member(archive, found[0], f"{path}: {name}")
                for name, found in present.items()
                if found
            }


class _InPieces:
    """A file of which nobody reads much at once: zipfile would take a directory of any size."""

    def __init__(self, file: BinaryIO, where: str) -> None:
        self._file = file
        self._where = where

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes."""
        if size > PIECE:
            raise DataError(
                f"{self._where}: has a list of members of {size} bytes; {PIECE} at most are read. "
                "Save the arrays again with numpy.savez."
            )
        return self._file.read(size)


def read_npy(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a ``.npy`` file without pickle, trusting its header only where the size agrees.

    Parameters
    ----------
    path : path
        The file.

    Returns
    -------
    numpy.ndarray
        The array.

    Raises
    ------
    DataError
        If the file is damaged, truncated, or holds Python objects.
    """
    path = Path(path)
    with reading(path), open_regular(path) as file:
        return _read_array(file, os.fstat(file.fileno()).st_size, str(path))


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str) -> np.ndarray:
    if info.compress_type not in PACKINGS or info.flag_bits & 1:
        raise DataError(f"{where}: packed in a way NumPy does not; save it with numpy.savez.")
    if info.file_size > LARGEST_UNPACKED:
        raise DataError(
            f"{where}: declares {info.file_size} bytes; more than {LARGEST_UNPACKED} are refused. "
            "Use a folder of .npy files if it is really that large."
        )
    if info.file_size > max(SMALL, LOOSEST * info.compress_size):
        raise DataError(
            f"{where}: {info.file_size} bytes packed into {info.compress_size}: no images pack so "
            "well; it would only fill the memory. Save it with numpy.savez if it is right."
        )
    with reading(where), archive.open(info) as file:
        return _read_array(file, info.file_size, where)


def _read_array(file: IO[bytes], size: int, where: str) -> np.ndarray:
    """Read an array from a stream that is said to have ``size`` bytes."""
    start = file.read(8)
    lengths = {b"\x93NUMPY\x01\x00": 2, b"\x93NUMPY\x02\x00": 4}
    if start not in lengths:
        raise DataError(
            f"{where}: not a .npy array of version 1 or 2; it starts with {start.hex(' ')}."
        )
    prefix = file.read(lengths[start])
    length = int.from_bytes(prefix, "little")
    if length > min(LARGEST_HEADER, size):
        raise DataError(f"{where}: declares a header of {length} bytes; the file is damaged.")
    header = io.BytesIO(prefix + file.read(length))
    read_header = {2: np.lib.format.read_array_header_1_0, 4: np.lib.format.read_array_header_2_0}
    shape, fortran_order, dtype = read_header[len(prefix)](header)
    if dtype.hasobject:
        raise DataError(
            f"{where}: holds Python objects, which are pickled and could run code, so it is not "
            "read. Save it as uint8 pixels or integer labels."
        )
    due = math.prod(shape) * dtype.itemsize
    found = size - 8 - len(prefix) - length
    if due != found or any(side < 0 for side in shape):
        raise DataError(
            f"{where}: declares {dtype} {shape}, {due} bytes after the header, but {found} follow: "
            "truncated or damaged."
        )
    data = bytearray()
    while piece := file.read(min(PIECE, due + 1 - len(data))):
        data += piece
    if len(data) != due:
        raise DataError(f"{where}: {due} bytes were due, {len(data)} came: damaged.")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran_order else "C")


def _labels(labels: np.ndarray, where: str) -> tuple[np.ndarray, int]:
    """Return labels as integers (N,), and how many classes they show."""
    if labels.ndim == 2 and labels.shape[1] > 1:
        return _from_one_hot(labels, where), labels.shape[1]
    if labels.ndim == 2 and labels.dtype.kind in "iu":
        labels = labels[:, 0]
    num_classes = int(labels.max(initial=0)) + 1 if labels.dtype.kind in "iu" else 1
    check_labels(labels, num_classes, where)
    return labels.astype(np.int64), num_classes


def _refuse_gaps(labels: np.ndarray, num_classes: int, where: str) -> None:
    """Refuse a number of classes that only a label far from the others has made."""
    found = np.unique(labels)
    if 0 < len(found) < num_classes:
        absent = np.flatnonzero(found != np.arange(len(found)))
        first = int(absent[0]) if len(absent) else len(found)
        raise DataError(
            f"{where}: labels run to {num_classes - 1}, but no image has the label {first} "
            f"({num_classes - len(found)} such classes). Correct the labels, or number the classes "
            "without a gap."
        )


def _from_one_hot(labels: np.ndarray, where: str) -> np.ndarray:
    """Return the index of the single 1 in each row."""
    if labels.dtype.kind not in "biuf":
        raise DataError(f"{where}: one-hot labels are {labels.dtype}; numbers are due.")
    wrong = np.flatnonzero(
        (np.count_nonzero(labels == 1, axis=1) != 1) | (np.count_nonzero(labels, axis=1) != 1)
    )
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"{where}: row {row} is {np.array2string(labels[row], threshold=12)}, which sums to "
            f"{labels[row].sum():g}; each row must have a single 1 and zeros besides."
        )
    return np.asarray(labels.argmax(1), np.int64)


def _images(images: np.ndarray, where: str) -> np.ndarray:
    """Return images as uint8 (N, C, H, W)."""
    if images.size == 0:
        raise DataError(f"{where}: shape {images.shape}: there are no pixels in it.")
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4:
        first, last = images.shape[1] in (1, 3), images.shape[3] in (1, 3)
        if first == last:
            raise DataError(
                f"{where}: shape {images.shape}: "
                + ("the first or the last axis may be" if first else "neither axis is")
                + " the 1 or 3 channels. Save it as (N, C, H, W) with larger images, or (N, H, W)."
            )
        images = images.transpose(0, 3, 1, 2) if last else images
    else:
        raise DataError(
            f"{where}: shape {images.shape}; (N, H, W), (N, H, W, C) or (N, C, H, W) is due."
        )
    if images.dtype.kind == "f":
        return _from_float(images, where)
    if images.dtype.kind in "iu" and images.dtype != np.uint8:
        low, high = images.min(), images.max()
        if low < 0 or high > 255:
            raise DataError(f"{where}: pixels lie between {low} and {high}; 0 to 255 is due.")
        images = images.astype(np.uint8)
    return np.ascontiguousarray(images)


def _from_float(images: np.ndarray, where: str) -> np.ndarray:
    """Return float pixels that are multiples of 1/255 as uint8."""
    pixels = np.empty(images.shape, np.uint8)
    tolerance = 255 * float(np.finfo(images.dtype).eps)
    low, high = images.min(), images.max()
    if not (low >= 0 and high <= 1):  # also where they are NaN
        raise DataError(
            f"{where}: {images.dtype} pixels lie between {low:g} and {high:g}; float pixels "
            "must lie from 0 to 1. Save the original uint8 images, not normalized ones."
        )
    for first in range(0, len(images), 1024):  # so that intermediate arrays stay small
        piece = images[first : first + 1024]
        steps = piece * piece.dtype.type(255)
        whole = np.rint(steps)
        wrong = np.argwhere(np.abs(steps - whole) > tolerance)
        if len(wrong):
            index, value = first + int(wrong[0][0]), piece[tuple(wrong[0])]
            raise DataError(
                f"{where}: image {index} has the pixel {value:.6g}, which is no multiple of 1/255, "
                "so making it uint8 would change it. Use (images * 255).round().astype('uint8')."
            )
        pixels[first : first + len(piece)] = whole
    return pixels
