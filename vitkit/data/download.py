"""Download the benchmark datasets, only when asked to, and check every byte.

pooch fetches and compares SHA-256; everything else (locking, the size limit, writing the named
members of an archive, the move to the final name) is here, since pooch's own unpackers call
``extractall``.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from io import RawIOBase
from pathlib import Path
from typing import IO, cast

from vitkit.data.archive import PIECE, members
from vitkit.data.checks import reading
from vitkit.data.idx import GZIP_MAGIC, open_regular
from vitkit.data.sources import Archive, Original, Source, data_dir, find, locate, source_of
from vitkit.errors import DataError, first_line

Progress = Callable[[str, int, int], None]
"""``(file, bytes so far, bytes in all)``."""

LARGEST_EXTRA = 1 << 16
TIMEOUT = 30.0  # seconds without a byte
PARTIAL = ".partial"
LOCK = ".lock"


def prepare(
    name: str,
    folder: str | os.PathLike[str] | None = None,
    *,
    progress: Progress | None = None,
) -> Path:
    """Download a dataset, unless it is already there and whole.

    Two processes that ask for the same one take turns, and the second finds it ready. A file
    gets its name only when its SHA-256 is right, so what is in the folder is never partial.
    What was copied there by hand, as its authors publish it, is not downloaded.

    Parameters
    ----------
    name : str
        ``"mnist"``, ``"fashion_mnist"``, ``"cifar10"`` or ``"cifar100"``.
    folder : path, optional
        Where the files go; by default the folder ``name`` in :func:`vitkit.data.data_dir`.
    progress : callable, optional
        Called with a file's name, the bytes that came and the bytes in all.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    DataError
        If ``VITKIT_OFFLINE`` is set, a server does not answer, or a file is not the original.
    """
    source = source_of(name)
    place = data_dir() / name if folder is None else Path(folder)
    if not _problems(source, place):
        _sweep(place)
        return place
    if os.environ.get("VITKIT_OFFLINE", "0") not in ("", "0"):
        _refuse_to_fetch(source, place)
    import filelock

    with _writing(place):
        place.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(place / LOCK):
            if _problems(source, place):  # another process may have been here first
                with _partial_folder(place) as partial:
                    _fill(source, place, partial, progress)
            _refuse(_problems(source, place), f"{name} in {place}")
    return place


def verify(name: str, folder: str | os.PathLike[str] | None = None) -> list[str]:
    """Compare a dataset's files with the originals.

    Parameters
    ----------
    name : str
        ``"mnist"``, ``"fashion_mnist"``, ``"cifar10"`` or ``"cifar100"``.
    folder : path, optional
        Where they are; by default as :func:`vitkit.data.find` looks.

    Returns
    -------
    list of str
        What is wrong, one line a file: missing, too short or long, other contents. Empty if all
        is well.

    Raises
    ------
    DataError
        If ``name`` is unknown, or nothing of it is found.
    """
    return _problems(source_of(name), find(name, folder))


def _problems(source: Source, place: Path) -> list[str]:
    """Return what is wrong with the files in a folder, one line each."""
    found = ((file, locate(place, file)) for file in source.files)
    checked = (_problem(file, path, place) for file, path in found)
    return [problem for problem in checked if problem]


def _problem(file: Original, path: Path | None, place: Path) -> str:
    """Return what is wrong with one file, or an empty string."""
    if path is None:
        return f"{place / file.spellings()[0]}: missing"
    try:
        with reading(path), open_regular(path) as opened:
            packed = opened.read(2) == GZIP_MAGIC
            opened.seek(0)
            if packed and file.gz_sha256 and _digest(opened)[1] == file.gz_sha256:
                return ""
            opened.seek(0)
            if packed:
                with gzip.GzipFile(fileobj=opened) as unpacked:
                    size, sha256 = _digest(cast("IO[bytes]", unpacked), file.size + 1)
            else:
                size, sha256 = _digest(opened, file.size + 1)
    except DataError as error:
        return str(error)
    if size != file.size:
        more = "more than " if size > file.size else ""
        return f"{path}: {more}{min(size, file.size)} bytes; {file.size} ({file.holds}) are due"
    if not file.sha256:
        return (
            f"{path}: cannot be verified, since only the SHA-256 of the compressed original is "
            "known; keep the .gz file"
        )
    return (
        "" if sha256 == file.sha256 else f"{path}: not the original file: its SHA-256 is {sha256}"
    )


def _refuse(problems: list[str], what: str) -> None:
    if problems:
        raise DataError(f"{what} is not what it should be:\n" + "\n".join(problems))


def _digest(file: IO[bytes], most: int | None = None) -> tuple[int, str]:
    """Return how many bytes a stream has, up to ``most``, and their SHA-256."""
    digest, size = hashlib.sha256(), 0
    while piece := file.read(PIECE if most is None else min(PIECE, most - size)):
        digest.update(piece)
        size += len(piece)
    return size, digest.hexdigest()


def _due(source: Source, place: Path) -> list[Archive]:
    """Return what must be fetched, as it is published: what is missing or wrong."""
    if source.archive:
        return [source.archive] if _other(place / source.archive.name, source.archive) else []
    return [
        Archive(file.spellings()[0], file.gz_size, file.gz_sha256)
        for file in source.files
        if _problem(file, locate(place, file), place)
    ]


def _other(path: Path, due: Archive) -> str:
    """Return why a file is not the one that is due, or an empty string."""
    if not path.is_file():
        return "missing"
    with reading(path), open_regular(path) as file:
        size, sha256 = _digest(file, due.size + 1)
    if size != due.size:
        return "too short" if size < due.size else "too long"
    return "" if sha256 == due.sha256 else f"another, of SHA-256 {sha256}"


def _refuse_to_fetch(source: Source, place: Path) -> None:
    """Say how to get by hand what must be fetched, if anything must."""
    due = _due(source, place)
    if not due:
        return
    names = ", ".join(file.name for file in due)
    lines = [
        f"  {source.urls[0]}{file.name} ({file.size} bytes, SHA-256 {file.sha256}; here: "
        f"{_other(place / file.name, file)})"
        for file in due
    ]
    raise DataError(
        f"{source.name} is not complete in {place}, and VITKIT_OFFLINE forbids to download it. "
        f"Unset VITKIT_OFFLINE, or get {names} with another machine, copy it to {place}, and run "
        f"`vitkit data prepare {source.name}` again:\n" + "\n".join(lines)
    )


def _fill(source: Source, place: Path, partial: Path, progress: Progress | None) -> None:
    """Get everything that is missing or wrong."""
    due = _due(source, place)
    for file in due:
        _fetch(source, file, place, progress)
        if not source.archive:
            os.replace(partial / file.name, place / file.name)
    if source.archive:
        packed = (partial if due else place) / source.archive.name  # or copied here by hand
        names = _unpack(packed, source, source.archive, partial)
        _refuse(_problems(source, partial), source.archive.name)
        for name in names:
            os.replace(partial / name, place / name)


def _fetch(source: Source, file: Archive, place: Path, progress: Progress | None) -> None:
    """Download one file, from the first server that has the right one, to the partial folder."""
    import pooch

    pooch.get_logger().setLevel("WARNING")  # it would announce each download on stderr

    def download(url: str, output: str, _: object) -> None:
        with open(output, "wb", buffering=0) as written:
            # What a server compresses on the way would not have the size that is due.
            headers = {"Accept-Encoding": "identity"}
            get = pooch.HTTPDownloader(chunk_size=PIECE, timeout=TIMEOUT, headers=headers)
            get(url, _Bounded(written, file, place, progress), None)

    failures = []
    for url in source.urls:
        try:
            pooch.retrieve(
                url + file.name,
                f"sha256:{file.sha256}",
                file.name,
                place / PARTIAL,
                downloader=download,
            )
            return
        except DataError:  # of what is written here: another server would not help
            raise
        # All that requests, urllib3 and pooch raise for a bad address, connection or hash.
        except (OSError, ValueError, RuntimeError) as error:
            reason = first_line(error, 300)  # a server may have put control characters into it
            shown = reason if reason.isprintable() else ascii(reason)
            failures.append(f"  {url}{file.name}: {shown}")
    raise DataError(
        f"{file.name} could not be downloaded:\n" + "\n".join(failures) + "\nTry again later, or "
        f"get the file from elsewhere and copy it to {place}; its SHA-256 must be {file.sha256}."
    )


class _Bounded:
    """A file that refuses more bytes than are due, and reports how many there are."""

    def __init__(
        self, file: RawIOBase, due: Archive, place: Path, progress: Progress | None
    ) -> None:
        self.file = file
        self.due = due
        self.place = place
        self.progress = progress
        self.done = 0

    def write(self, data: bytes) -> None:
        self.done += len(data)
        if self.done > self.due.size:
            raise ValueError(f"more than the {self.due.size} bytes that are due were sent")
        left = memoryview(data)
        with _writing(self.place):
            while left:  # a disk that is nearly full takes a part
                left = left[self.file.write(left) :]
        if self.progress:
            self.progress(self.due.name, self.done, self.due.size)

    def flush(self) -> None:
        """Flush nothing: pooch asks for it after every piece, and closing does it."""


def _unpack(path: Path, source: Source, archive: Archive, partial: Path) -> list[str]:
    """Write the wanted members of an archive, and return their plain names."""
    sizes = {file.name: file.size for file in source.files}
    sizes |= dict.fromkeys(archive.extras, LARGEST_EXTRA)
    names = []
    wanted = {f"{source.inside}/{name}": size for name, size in sizes.items()}
    with contextlib.closing(members(path, wanted)) as found:
        for member, contents in found:
            names.append(member.rpartition("/")[2])
            with (partial / names[-1]).open("xb") as file:
                file.writelines(contents)
    return names


@contextlib.contextmanager
def _partial_folder(place: Path) -> Iterator[Path]:
    """Make an empty folder for what is not complete yet, and remove it afterwards."""
    partial = place / PARTIAL
    shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
    try:
        partial.mkdir()
        yield partial
    finally:
        try:
            shutil.rmtree(partial, ignore_errors=True)
        finally:  # what is left if Ctrl-C came in the middle
            shutil.rmtree(partial, ignore_errors=True)


def _sweep(place: Path) -> None:
    """Remove what a process left that was killed when its files were complete."""
    if not (place / PARTIAL).is_dir():
        return
    import filelock

    # A folder that can only be read is as good as it was.
    with contextlib.suppress(OSError), filelock.FileLock(place / LOCK):
        shutil.rmtree(place / PARTIAL, ignore_errors=True)


@contextlib.contextmanager
def _writing(place: Path) -> Iterator[None]:
    """Turn a full disk or a folder that cannot be written into a ``DataError``."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{place}: cannot be written ({error}). Make room or choose another folder with "
            "--data-dir or VITKIT_DATA_DIR."
        ) from error
