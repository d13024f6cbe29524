"""Download the benchmark datasets, only when asked to, and check every byte.

pooch fetches and compares SHA-256; everything else (locking, the size limit, unpacking of named
members, the move to the final name) is here, since pooch's own unpackers call ``extractall``.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, cast

from vitkit.data.checks import reading
from vitkit.data.idx import GZIP_MAGIC, open_regular
from vitkit.data.sources import Archive, Original, Source, data_dir, find, locate, source_of
from vitkit.errors import DataError

Progress = Callable[[str, int, int], None]
"""``(file, bytes so far, bytes in all)``."""

PIECE = 1 << 16
MOST_MEMBERS = 64
LARGEST_EXTRA = 1 << 16
TIMEOUT = 30.0  # seconds without a byte
PARTIAL = ".partial"


def prepare(
    name: str,
    folder: str | os.PathLike[str] | None = None,
    *,
    progress: Progress | None = None,
) -> Path:
    """Download a dataset, unless it is already there and whole.

    Two processes that ask for the same one take turns, and the second finds it ready. A file
    gets its name only when its SHA-256 is right, so what is in the folder is never partial.

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
        return place
    if os.environ.get("VITKIT_OFFLINE", "0") not in ("", "0"):
        names = ", ".join(file.spellings()[0] for file in source.files)
        raise DataError(
            f"{name} is not complete in {place}, and VITKIT_OFFLINE forbids to download it. Unset "
            f"VITKIT_OFFLINE, or copy {names} there."
        )
    import filelock

    with _writing(place):
        place.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(place / ".lock"):
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


def _fill(source: Source, place: Path, partial: Path, progress: Progress | None) -> None:
    """Get everything that is missing or wrong."""
    if source.archive:
        _fetch(source, source.archive, partial, progress)
        names = list(_unpack(partial / source.archive.name, source, source.archive, partial))
        _refuse(_problems(source, partial), source.archive.name)
        for name in names:
            os.replace(partial / name, place / name)
        return
    for file in source.files:
        if _problem(file, locate(place, file), place):
            packed = Archive(file.spellings()[0], file.gz_size, file.gz_sha256)
            _fetch(source, packed, partial, progress)
            os.replace(partial / packed.name, place / packed.name)


def _fetch(source: Source, file: Archive, partial: Path, progress: Progress | None) -> None:
    """Download one file from the first server that has the right one."""
    import pooch

    pooch.get_logger().setLevel("WARNING")  # it would announce each download on stderr

    def download(url: str, output: str, _: object) -> None:
        with open(output, "wb") as written:
            get = pooch.HTTPDownloader(chunk_size=PIECE, timeout=TIMEOUT)
            get(url, _Bounded(written, file, progress), None)

    failures = []
    for url in source.urls:
        try:
            pooch.retrieve(
                url + file.name, f"sha256:{file.sha256}", file.name, partial, downloader=download
            )
            return
        # All that requests, urllib3 and pooch raise for a bad address, connection or hash.
        except (OSError, ValueError, RuntimeError) as error:
            reason = (str(error).splitlines() or [""])[0][:300]
            failures.append(f"  {url}{file.name}: {type(error).__name__}: {reason}")
    raise DataError(
        f"{file.name} could not be downloaded:\n" + "\n".join(failures) + "\nTry again later, or "
        f"copy the file from elsewhere; its SHA-256 must be {file.sha256}."
    )


class _Bounded:
    """A file that refuses more bytes than are due, and reports how many there are."""

    def __init__(self, file: IO[bytes], due: Archive, progress: Progress | None) -> None:
        self.file = file
        self.due = due
        self.progress = progress
        self.done = 0

    def write(self, data: bytes) -> None:
        self.done += len(data)
        if self.done > self.due.size:
            raise ValueError(f"more than the {self.due.size} bytes that are due were sent")
        self.file.write(data)
        if self.progress:
            self.progress(self.due.name, self.done, self.due.size)

    def flush(self) -> None:
        """Flush nothing: pooch asks for it after every piece, and closing does it."""


def _unpack(path: Path, source: Source, archive: Archive, partial: Path) -> Iterator[str]:
    """Write the wanted regular members of an archive and yield their plain names."""
    sizes = {file.name: file.size for file in source.files}
    wanted = {f"{source.inside}/{name}": size for name, size in sizes.items()}
    wanted |= {f"{source.inside}/{name}": LARGEST_EXTRA for name in archive.extras}
    with reading(path), tarfile.open(path, "r:gz") as tar:
        for count, member in enumerate(tar):
            if count >= MOST_MEMBERS:
                raise DataError(f"{path.name}: has more than {MOST_MEMBERS} members.")
            name = member.name.removeprefix("./")
            if name not in wanted or not member.isreg():
                continue
            if member.size > wanted[name]:
                raise DataError(
                    f"{path.name}: {name} has {member.size} bytes; {wanted[name]} at most are due."
                )
            content = tar.extractfile(member)
            if content is not None:
                target = partial / name.rpartition("/")[2]
                with content, target.open("wb") as file:
                    shutil.copyfileobj(content, file)
                yield target.name


@contextlib.contextmanager
def _partial_folder(place: Path) -> Iterator[Path]:
    """Make an empty folder for what is not complete yet, and remove it afterwards."""
    partial = place / PARTIAL
    shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
    partial.mkdir()
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


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
