"""Read the IDX format, in which MNIST is published.

A file is, all big-endian: two zero bytes, a byte for the type, a byte for the number of
dimensions, each dimension as 4 bytes, then the data in C order (Y. LeCun, "The MNIST database",
section "File formats").
"""

from __future__ import annotations

import gzip
import math
import os
import struct
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from vitkit.data.checks import named, reading
from vitkit.errors import DataError

TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
GZIP_MAGIC = b"\x1f\x8b"
LARGEST_UNPACKED = 1 << 30
LOOSEST = 200  # unpacked bytes to a packed one; images have 1 to 10
SMALL = 1 << 26  # bytes that may be packed as loosely as they like
PIECE = 1 << 20


def read_idx(path: str | os.PathLike[str], *, limit: int = LARGEST_UNPACKED) -> np.ndarray:
    """Read an IDX file, compressed or not.

    The size that the header declares is compared with the file's before any memory is taken; a
    compressed file is unpacked piece by piece up to the declared size and no further.

    Parameters
    ----------
    path : path
        The file; whether it is compressed is seen from its first bytes.
    limit : int, default 2**30
        The most bytes a compressed file may declare; also, from 64 MiB on, 200 times its size.

    Returns
    -------
    numpy.ndarray
        The array with the declared shape, in the machine's byte order.

    Raises
    ------
    DataError
        If the file is not IDX, or has fewer or more bytes than its header declares.
    """
    path = Path(path)
    with reading(path), open_regular(path) as file:
        if file.read(2) == GZIP_MAGIC:
            file.seek(0)
            limit = min(limit, max(SMALL, LOOSEST * os.fstat(file.fileno()).st_size))
            with gzip.GzipFile(fileobj=file) as unpacked:
                return _read(cast(BinaryIO, unpacked), path, None, limit)
        file.seek(0)
        return _read(file, path, os.fstat(file.fileno()).st_size, limit)


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading; a folder, pipe or device is refused, a missing one named."""
    if not path.exists():
        linked = path.is_symlink()
        reason = "this is a link to nothing or to itself" if linked else "there is no such file"
        raise DataError(f"{named(path)}: {reason}.")
    if not path.is_file():
        raise DataError(f"{named(path)}: this is not a regular file.")
    return path.open("rb")


def _read(file: BinaryIO, path: Path, size: int | None, limit: int) -> np.ndarray:
    dtype, shape, header = _read_header(file, path)
    due = math.prod(shape) * dtype.itemsize
    if size is not None and size - header != due:
        raise _wrong_size(path, shape, due, size - header)
    if size is None and due > limit:
        raise DataError(
            f"{path}: declares {_sides(shape)} values, {_count(due)} bytes unpacked; more "
            f"than {limit} bytes are refused. Unpack the file if it is really that large."
        )
    data = bytearray()
    while piece := file.read(min(PIECE, due + 1 - len(data))):
        data += piece
    if len(data) != due:
        raise _wrong_size(path, shape, due, len(data))
    return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def _read_header(file: BinaryIO, path: Path) -> tuple[np.dtype[np.generic], tuple[int, ...], int]:
    """Return the type, the shape and the header's length."""
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in TYPES or magic[3] == 0:
        raise DataError(
            f"{path}: not an IDX file: it starts with {magic.hex(' ') or 'nothing'}, where two "
            "zero bytes, a type from 08 to 0e and the number of dimensions are due."
        )
    dimensions = magic[3]
    sizes = file.read(4 * dimensions)
    if len(sizes) < 4 * dimensions:
        raise DataError(f"{path}: truncated: the file ends within its header.")
    shape = struct.unpack(f">{dimensions}I", sizes)
    if 0 in shape:
        raise DataError(f"{path}: declares {_sides(shape)} values, that is none.")
    return np.dtype(TYPES[magic[2]]), shape, 4 + 4 * dimensions


def _sides(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape[:6])) + (" x ..." if len(shape) > 6 else "")


def _count(size: int) -> str:
    return str(size) if size < 10**18 else "more than 10^18"


def _wrong_size(path: Path, shape: tuple[int, ...], due: int, found: int) -> DataError:
    declared = f"{path}: declares {_sides(shape)} values, {_count(due)} bytes after the header"
    if found < due:
        return DataError(f"{declared}, but only {found} follow: truncated. Get the file again.")
    return DataError(f"{declared}, but more follow: damaged. Get the file again.")
