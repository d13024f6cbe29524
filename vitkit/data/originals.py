"""Whether the files of a benchmark are those that its authors published, byte for byte.

Such files have no checksum of their own: a flipped bit of one would be a wrong label or pixel
without a word. Comparing takes a fraction of a second, also for CIFAR.
"""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path
from typing import BinaryIO, cast

from vitkit.data.checks import named, reading
from vitkit.data.idx import GZIP_MAGIC, open_regular
from vitkit.data.sources import Original, Source, locate
from vitkit.errors import DataError

PIECE = 1 << 16


def check_originals(source: Source, place: Path) -> None:
    """Compare every file of a dataset that is in a folder with the one that was published.

    Files whose SHA-256 is not known (of Fashion-MNIST the unpacked ones) are taken as they are.

    Raises
    ------
    DataError
        Listing every file that is another, one a line.
    """
    problems = []
    for file in source.files:
        path = locate(place, file)
        sha256 = _other(file, path) if path else ""
        if sha256:
            problems.append(f"{named(path)}: not the original file: its SHA-256 is {sha256}")
    if problems:
        raise DataError(
            "\n".join(problems) + f"\nRun `vitkit data prepare {source.name}` to get the original "
            "again; data of your own are read by the data set npz or folder."
        )


def _other(file: Original, path: Path) -> str:
    """Return the SHA-256 of a file that is known not to be the original, or an empty string."""
    with reading(named(path)), open_regular(path) as opened:
        packed = opened.read(2) == GZIP_MAGIC
        opened.seek(0)
        found = hashlib.file_digest(opened, "sha256").hexdigest()
        if packed and found != file.gz_sha256 and file.sha256:
            opened.seek(0)
            with gzip.GzipFile(fileobj=opened) as unpacked:
                found = _digest(cast(BinaryIO, unpacked), file.size)
        elif packed:
            # Packed again by someone else: its contents may still be right, and are not known.
            return ""
        return found if file.sha256 and found != file.sha256 else ""


def _digest(file: BinaryIO, size: int) -> str:
    """Return the SHA-256 of a stream that is due to have ``size`` bytes."""
    digest, read = hashlib.sha256(), 0
    while read <= size and (piece := file.read(PIECE)):
        digest.update(piece)
        read += len(piece)
    return digest.hexdigest()
