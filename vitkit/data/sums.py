r"""``SHA256SUMS``: which files a folder of data must have, and with which contents.

The format is that of ``sha256sum``: a line has 64 hexadecimal digits, two spaces (or a space and
``*``) and a name relative to the folder. In a line that starts with a backslash, ``\\`` and
``\n`` of the name stand for a backslash and a line feed.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path, PurePosixPath

from vitkit.data.checks import named, reading
from vitkit.data.idx import open_regular
from vitkit.errors import DataError

NAME = "SHA256SUMS"
LARGEST = 1 << 28
"""Bytes: of some two million files."""
LONGEST_LINE = 1 << 14
LINE = re.compile(r"(\\?)([0-9a-f]{64}) [ *](.+?)\r?\n?", re.DOTALL)


def read_sums(root: Path) -> dict[Path, str] | None:
    """Read the SHA-256 of each file in ``root``, or return None where no file says them.

    Raises
    ------
    DataError
        If a line is damaged, or names a file twice or outside ``root``.
    """
    path = root / NAME
    if not os.path.lexists(path):
        return None
    sums: dict[PurePosixPath, str] = {}
    with reading(named(path)), open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > LARGEST:
            raise DataError(f"{named(path)}: {size} bytes; at most {LARGEST} are read.")
        number = 0
        while line := file.readline(LONGEST_LINE):
            number += 1
            target, sha256 = _entry(line, f"{named(path)}: line {number}")
            if target in sums:
                raise DataError(f"{named(path)}: line {number}: {target} for the second time.")
            sums[target] = sha256
    return {root / target: sha256 for target, sha256 in sums.items()}


def _entry(line: bytes, where: str) -> tuple[PurePosixPath, str]:
    matched = LINE.fullmatch(line.decode("utf-8", "surrogateescape"))
    if matched is None:
        raise DataError(
            f"{where}: 64 hexadecimal digits, two spaces and a name are due. Make the file again "
            "with sha256sum."
        )
    escaped, sha256, name = matched.groups()
    if escaped:
        name = re.sub(r"\\(.)", lambda found: {"n": "\n", "r": "\r"}.get(found[1], found[1]), name)
    target = PurePosixPath(name)
    if target.is_absolute() or ".." in target.parts:
        raise DataError(f"{where}: {name!r} is not inside the folder.")
    return target, sha256


def check_sum(path: Path, sums: dict[Path, str]) -> None:
    """Refuse a file whose contents are not those that are listed.

    Raises
    ------
    DataError
        Saying what its SHA-256 is, or that none is listed.
    """
    if path not in sums:
        raise DataError(f"{named(path)}: not listed in {NAME} beside it.")
    with reading(named(path)), open_regular(path) as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sums[path]:
        raise DataError(
            f"{named(path)}: its SHA-256 is {found}, and {sums[path]} is due by {NAME}: it has "
            "changed since that was written. Get the file again."
        )
