"""What is checked before a pixel or a label is believed.

Every fault that would otherwise train on wrong labels or pixels ends as a
:class:`~vitkit.errors.DataError` that says where it is, what came, and what to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from vitkit.errors import DataError


def check_arrays(
    images: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    where: str,
    *,
    scale: float = 255.0,
) -> None:
    """Check that images and labels are what a dataset may hold.

    Parameters
    ----------
    images : numpy.ndarray, uint8 (N, C, H, W)
        Pixels from 0 to ``scale``.
    labels : numpy.ndarray, integer (N,)
        From 0 to ``num_classes - 1``.
    num_classes : int
        How many classes there are.
    where : str
        Which file or argument this is, for the message.
    scale : float, default 255.0
        The largest pixel value that may occur.

    Raises
    ------
    DataError
        Naming the first thing that is wrong.
    """
    check_labels(labels, num_classes, where)
    check_pixels(images, where, scale=scale)
    if len(images) != len(labels):
        raise DataError(
            f"{where}: {len(images)} images but {len(labels)} labels; there must be one label for "
            "each image. Check that both files belong together and are complete."
        )


def check_count(found: int, official: int, where: object, dataset: str) -> None:
    """Check that a file of a benchmark has as many images as its authors published.

    Raises
    ------
    DataError
        Saying how many there are and how many are due.
    """
    if found != official:
        raise DataError(
            f"{where}: {found} images, where {official} of {dataset} are due: another file or "
            f"a part of it. `vitkit data verify {dataset}` names every such file and `vitkit data "
            f"prepare {dataset}` gets them again; a subset of your own is read by the data set "
            "npz or folder."
        )


def check_labels(labels: np.ndarray, num_classes: int, where: str) -> None:
    """Check that labels are integers from 0 to ``num_classes - 1``, one for each image.

    Raises
    ------
    DataError
        Naming the first label that is wrong and its index.
    """
    if labels.ndim == 2:
        raise DataError(
            f"{where}: labels have the shape {labels.shape}, which looks one-hot; integers of the "
            "shape (N,) are due. Use labels.argmax(1), or read them with vitkit.data.npz."
        )
    if labels.ndim != 1:
        raise DataError(f"{where}: labels have the shape {labels.shape}; (N,) is due.")
    if labels.dtype.kind not in "iu":
        raise DataError(
            f"{where}: labels are {labels.dtype}; integers from 0 to {num_classes - 1} are due. "
            "Use labels.astype('int64') if they are whole numbers."
        )
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise DataError(
            f"{where}: label {labels[wrong[0]]} at index {wrong[0]} is out of range; labels run "
            f"from 0 to {num_classes - 1} ({len(wrong)} of {len(labels)} are out of range)."
        )


def check_pixels(images: np.ndarray, where: str, *, scale: float = 255.0) -> None:
    """Check that images are uint8, (N, C, H, W), and use the range 0 to ``scale``.

    Raises
    ------
    DataError
        Saying which dtype, shape or range came.
    """
    if images.dtype != np.uint8:
        raise DataError(f"{where}: pixels are {images.dtype}; uint8 is due. {_cure(images)}")
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise DataError(
            f"{where}: images have the shape {images.shape}; (N, C, H, W) is due, such as "
            "(60000, 1, 28, 28)."
        )
    if images.shape[1] not in (1, 2, 3, 4) and images.shape[3] in (1, 3, 4):
        raise DataError(
            f"{where}: images have the shape {images.shape}, which looks like (N, H, W, C): use "
            "images.transpose(0, 3, 1, 2)."
        )
    largest = int(images.max(initial=0))
    if largest > scale:
        raise DataError(
            f"{where}: the largest pixel is {largest}, above the scale {scale:g}. Pass scale=255 "
            "for ordinary images."
        )
    if largest == 1 and scale == 255:
        raise DataError(
            f"{where}: the largest pixel is 1, where 255 is expected: the images were probably "
            "divided by 255 and then made integers, which loses them. Save them as uint8 from 0 "
            "to 255, or pass scale=1 if they really are black and white."
        )


def _cure(images: np.ndarray) -> str:
    """Say how pixels of another dtype become uint8."""
    if images.dtype.kind not in "fiu" or images.size == 0:
        return "Save the images as uint8 from 0 to 255."
    if images.dtype.kind == "f" and not np.isfinite(images).all():
        index = np.unravel_index(np.argmin(np.isfinite(images)), images.shape)
        place = ", ".join(str(int(i)) for i in index)
        return f"Pixel [{place}] is {images[index]}: repair the images before saving them."
    low, high = images.min(), images.max()
    seen = f"They lie between {low:g} and {high:g}"
    if low < 0:
        return f"{seen}: undo the normalization, then save them as uint8 from 0 to 255."
    if high <= 1 and images.dtype.kind == "f":
        return f"{seen}: use (images * 255).round().astype('uint8')."
    return f"{seen}: save them as uint8 from 0 to 255."


def named(path: object) -> str:
    """Return what messages call a file: its path, quoted where it would not stay on a line."""
    return str(path) if str(path).isprintable() else ascii(str(path))


@contextmanager
def reading(where: object) -> Iterator[None]:
    """Turn whatever a reader raises on damaged bytes into a ``DataError`` naming the file.

    NumPy, zipfile, zlib and Pillow raise more than a dozen types on mutated files, some of them
    by accident (``AttributeError``, ``TokenError``), so there is no useful list of them.
    """
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0][:200] or "no reason given"
        raise DataError(
            f"{where}: cannot be read ({type(error).__name__}: {reason}). The file is damaged, "
            "truncated or of another format; get it again."
        ) from error
