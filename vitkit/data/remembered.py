"""Which images of a folder were decoded well: kept in the user's cache, so that none is twice.

There is a file for each data folder. It names images by their path in that folder, size and times:
one that has changed since is not known any more, and a damaged file at most knows fewer images.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from vitkit.data.idx import open_regular
from vitkit.data.images import options
from vitkit.errors import DataError

LOGGER = logging.getLogger("vitkit")
VERSION = 1
MANY = 5000
"""Images that are decoded without a word."""
SHAPES = 4  # of images, and other options, that are kept for a folder; the latest
LARGEST = 1 << 29  # bytes of a file that is written and believed: of some four million images
RECENT = 2_000_000_000  # ns within which a file may change again without another time
LEFT = 3600  # s after which what a killed process began to write is removed

Known = dict[str, Any]
"""What is known of each image, by its path."""


def cache() -> Path:
    """Return the folder of what is remembered."""
    import platformdirs

    return platformdirs.user_cache_path("vitkit") / "images"


class Remembered:
    """The images of a data folder that were decoded well, by this process or an earlier one.

    Parameters
    ----------
    root : Path
        The data folder.
    image_shape : tuple of int
        ``(C, H, W)`` to which images are decoded.
    sums : mapping of Path to str, optional
        The SHA-256 that each image must have, where that is said.
    """

    def __init__(
        self, root: Path, image_shape: tuple[int, int, int], sums: Mapping[Path, str] | None
    ) -> None:
        self.root = root
        self.file = _file(root)
        self._sums = sums
        self._options = options(image_shape)
        self._others = self._read()
        self._before: Known = {}
        for found in self._others:
            if found["options"] == self._options:
                self._before = found["good"]
                self._others.remove(found)
                break
        self._seen: Known = {}
        self._good: Known = {}

    def unknown(self, paths: Sequence[Path]) -> list[Path]:
        """Return the images that are new or have changed, or that were bad."""
        new = []
        for path in paths:
            name = path.relative_to(self.root).as_posix()
            seen = self._look(path)
            if seen is not None and self._before.get(name) == seen:
                self._good[name] = seen
            else:
                new.append(path)
                # What is read later is at least as new: if it has changed since, so has its time.
                self._seen[name] = seen if seen is not None and _is_settled(seen) else None
        if len(new) > MANY:
            LOGGER.warning(
                "Looking at %d images, once: each is decoded, and those that are good are "
                "remembered. data.bad_files=later begins at once instead.",
                len(new),
            )
        return new

    def noting(self, say: Callable[[Path], str]) -> Callable[[Path], str]:
        """Return a function that says the same of an image, and remembers it if that is nothing."""

        def noted(path: Path) -> str:
            problem = say(path)
            name = path.relative_to(self.root).as_posix()
            if not problem and self._seen[name] is not None:
                self._good[name] = self._seen[name]
            return problem

        return noted

    def write(self) -> None:
        """Keep what is known of the images that were asked for; others are gone."""
        good = dict(self._good)  # threads that were interrupted may still be at it
        if self.file is None or good == self._before:
            return
        present = good.keys() | self._seen.keys()
        tables = [{"options": self._options, "good": good}]
        for found in self._others[: SHAPES - 1]:
            kept = {name: seen for name, seen in found["good"].items() if name in present}
            tables.append({"options": found["options"], "good": kept})
        text = _text(tables)
        while len(text) > LARGEST and len(tables) > 1:
            tables.pop()
            text = _text(tables)
        if len(text) <= LARGEST:
            _replace(self.file, text)

    def _look(self, path: Path) -> list[int | str] | None:
        """Return what changes when an image does."""
        try:
            found = path.stat()
        except (OSError, ValueError):
            return None
        due = "" if self._sums is None else self._sums.get(path, "not listed")
        return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, due]

    def _read(self) -> list[dict[str, Any]]:
        """Return the tables of the file, or none where there is no file as it should be."""
        if self.file is None:
            return []
        try:
            with open_regular(self.file) as file:
                if os.fstat(file.fileno()).st_size > LARGEST:
                    return []
                found = json.loads(file.read())
        except (DataError, OSError, ValueError, RecursionError):
            return []
        if not isinstance(found, dict) or found.get("version") != VERSION:
            return []
        tables = found.get("tables")
        return [
            {"options": table.get("options"), "good": table["good"]}
            for table in (tables if isinstance(tables, list) else [])
            if isinstance(table, dict) and isinstance(table.get("good"), dict)
        ]


def _file(root: Path) -> Path | None:
    """Return the file of a data folder; None if it would lie in that folder, or anywhere."""
    whole = os.path.realpath(root)
    place = cache()
    if not place.is_absolute() or Path(whole) in Path(os.path.realpath(place), "x").parents:
        return None
    return place / f"{hashlib.sha256(os.fsencode(whole)).hexdigest()}.json"


def _is_settled(seen: list[int | str]) -> bool:
    """Return whether a change from now on will show in the time of a file."""
    return abs(time.time_ns() - int(seen[1])) > RECENT


def _text(tables: list[dict[str, Any]]) -> str:
    return json.dumps({"version": VERSION, "tables": tables}, separators=(",", ":"))


def _replace(file: Path, text: str) -> None:
    """Write a file so that others find the old one or the new; the last to write wins."""
    part = file.with_name(f"{file.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        file.parent.mkdir(0o700, parents=True, exist_ok=True)  # others need not know the names
        for left in file.parent.glob(f"{file.name}.*.part"):
            with suppress(OSError):  # it may be gone by now
                if time.time() - left.stat().st_mtime > LEFT:
                    left.unlink()
        try:
            part.write_text(text, "ascii")
            os.replace(part, file)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        LOGGER.info("Which images are good is not kept in %s: %s.", file, error)
