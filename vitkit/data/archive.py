"""What is read of a tar.gz: members of known names, as bytes; nothing here writes a file.

Links, devices, folders, modes, owners and members of other names are passed over, so that nothing
in an archive says where something is written. ``tarfile`` only finds the members. It reads as much
as their headers say, so it sees the unpacked bytes through :class:`Guarded`.
"""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import IO, cast

from vitkit.data.checks import reading
from vitkit.data.idx import open_regular
from vitkit.errors import DataError

PIECE = 1 << 16
MOST_MEMBERS = 64
LARGEST_HEADER = 1 << 13  # a path of 4096 bytes, twice; longer ones take tarfile seconds to parse
LARGEST_OTHER = 1 << 16  # bytes of a member that is not wanted, on average


class Guarded:
    """A stream that gives no more at once, and goes no further, than any honest archive needs.

    Parameters
    ----------
    stream : file
        Open for reading.
    most : int
        How many bytes it may have.
    where : str
        What messages call it.
    """

    def __init__(self, stream: IO[bytes], most: int, where: str) -> None:
        self.stream = stream
        self.most = most
        self.where = where

    def read(self, size: int = -1) -> bytes:
        """Return the next ``size`` bytes."""
        if not 0 <= size <= LARGEST_HEADER:
            raise DataError(
                f"{self.where}: a header of {size} bytes; {LARGEST_HEADER} at most are due. The "
                "archive is damaged or hostile; get it again."
            )
        self._check(self.stream.tell() + size)
        return self.stream.read(size)

    def seek(self, position: int) -> int:
        """Go to a position, counted from the start."""
        self._check(position)
        return self.stream.seek(position)

    def tell(self) -> int:
        """Return the position."""
        return self.stream.tell()

    def _check(self, position: int) -> None:
        if not 0 <= position <= self.most:
            raise DataError(
                f"{self.where}: goes on to byte {position}; {self.most} at most are due, unpacked. "
                "The archive is damaged or hostile; get it again."
            )


def members(
    path: Path, wanted: Mapping[str, int]
) -> Generator[tuple[str, Iterator[bytes]], None, None]:
    """Yield the wanted regular files of a tar.gz: each one's name and its contents, in pieces.

    Parameters
    ----------
    path : pathlib.Path
        The archive.
    wanted : mapping of str to int
        The names, without ``./`` before them, and how many bytes each may have at most.

    Yields
    ------
    tuple of str and iterator of bytes
        A name from ``wanted``, and the contents, to be read before the next member is asked for.

    Raises
    ------
    DataError
        If the archive is damaged, has a wanted member twice or a longer one, or has more members
        or bytes than are due.
    """
    most = sum(wanted.values()) + MOST_MEMBERS * LARGEST_OTHER
    found = set()
    with reading(path), open_regular(path) as file, gzip.GzipFile(fileobj=file) as unpacked:
        stream = cast("IO[bytes]", unpacked)
        guarded = cast("IO[bytes]", Guarded(stream, most, str(path)))
        with tarfile.open(fileobj=guarded, mode="r:") as tar:
            for count, member in enumerate(tar):
                if count >= MOST_MEMBERS:
                    raise DataError(f"{path}: has more than {MOST_MEMBERS} members.")
                if member.size < 0:  # the next one would be before it, on and on
                    raise DataError(f"{path}: has a member of {member.size} bytes; get it again.")
                name = member.name.removeprefix("./")
                if name not in wanted or not member.isreg() or member.issparse():
                    continue
                if name in found:
                    raise DataError(f"{path}: {name} is in it twice.")
                if member.size > wanted[name]:
                    raise DataError(
                        f"{path}: {name} has {member.size} bytes; {wanted[name]} at most are due."
                    )
                found.add(name)
                stream.seek(member.offset_data)
                yield name, _contents(stream, member.size, f"{path}: {name}")


def _contents(stream: IO[bytes], size: int, where: str) -> Iterator[bytes]:
    """Yield the next ``size`` bytes of a stream."""
    with reading(where):
        while size:
            piece = stream.read(min(PIECE, size))
            if not piece:
                raise DataError(f"{where}: ends {size} bytes early. The archive is truncated.")
            size -= len(piece)
            yield piece
