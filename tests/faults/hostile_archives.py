"""The archives of row F14: what a tar or zip may hold to be written elsewhere, or never to end."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

INSIDE = "cifar-10-batches-bin"
FIRST = f"{INSIDE}/data_batch_1.bin"
ZEROS = 10 << 20
EXTENDED, GLOBAL, LONG_NAME, LONG_LINK = b"x", b"g", b"L", b"K"
BLOCK = 512
EITHER = "either"
"""Some versions of Python refuse it, and others pass it over."""

Member = bytes
"""A header, and the contents after it, as they stand in a tar."""


def member(
    name: str, contents: bytes = b"x", kind: bytes = tarfile.REGTYPE, to: str = "", **given: object
) -> Member:
    """Return a member of a tar; contents are those of files only."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    has_contents = kind not in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)
    info.size = len(contents) if has_contents else 0
    for attribute, value in given.items():
        setattr(info, attribute, value)
    padded = contents + bytes(-len(contents) % BLOCK) if has_contents else b""
    return info.tobuf(tarfile.GNU_FORMAT) + padded


def raw(name: bytes, size: int, kind: bytes = b"0", contents: bytes = b"") -> Member:
    """Return a member whose header no writer of tars would make."""
    number = b"%011o\0" % size if 0 <= size < 8**11 else (size % 256**12).to_bytes(12, "big")
    if size < 0 or size >= 8**11:
        number = (b"\xff" if size < 0 else b"\x80") + number[1:]
    header = bytearray(BLOCK)
    header[: len(name)] = name
    header[100:124] = b"0000644\0" * 3
    header[124:136] = number
    header[136:148] = b"0" * 11 + b"\0"
    header[148:156] = b" " * 8
    header[156:157] = kind
    header[257:265] = b"ustar\x0000"
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + contents + bytes(-len(contents) % BLOCK)


def pax(kind: bytes = EXTENDED, **records: str) -> Member:
    """Return a header of pax, which changes what is said of the next member."""
    lines = b""
    for keyword, value in records.items():
        record = f" {keyword.replace('__', '.')}={value}\n".encode()
        length = len(record)
        while length != len(record) + len(str(length)):
            length = len(record) + len(str(length))
        lines += str(length).encode() + record
    return raw(b"pax", len(lines), kind, lines)


def bomb(header: Member, size: int) -> bytes:
    """Return a gzip of a header and that many zeros, without ever having them."""
    return gzip.compress(header, 1) + gzip.compress(bytes(ZEROS), 9) * (size // ZEROS)


def long_path(outside: Path) -> list[Member]:
    """Return the shape of CVE-2025-4517: links so deep that their real path is not looked up."""
    members, step = [], ""
    for letter in "abcdefghijklmnop":
        deep = letter * 247
        members += [
            member(step + deep, kind=tarfile.DIRTYPE),
            member(step + letter, kind=tarfile.SYMTYPE, to=deep),
        ]
        step += f"{deep}/"
    through = "/".join("abcdefghijklmnop")
    return [
        *members,
        member(f"{through}/{'l' * 254}", kind=tarfile.SYMTYPE, to="../" * 16),
        member("escape", kind=tarfile.SYMTYPE, to=f"{through}/{'l' * 254}/../../outside"),
        member("escape/written.bin"),
        member(f"{INSIDE}/test_batch.bin", kind=tarfile.LNKTYPE, to="escape/secret"),
        member(str(outside / "written.bin")),
    ]


def hostile(outside: Path, first: bytes) -> dict[str, tuple[list[Member], str]]:
    """Return each attack: its members, and what is said of it, or nothing if it is passed over.

    ``first`` is what ``FIRST`` holds in the original.
    """
    secret, link, hard = str(outside / "secret"), tarfile.SYMTYPE, tarfile.LNKTYPE
    same = "is in it twice"
    passed = {
        "dots": [member("../written.bin"), member("../../outside/secret")],
        "dots in the folder": [member(f"{INSIDE}/../../written.bin")],
        "dots to the wanted name": [member(f"{INSIDE}/../{FIRST}")],
        "absolute": [member(str(outside / "written.bin")), member(secret)],
        "two slashes": [member(f"//{outside}/written.bin")],
        "drive letter": [member("C:\\written.bin"), member("C:/written.bin")],
        "drive without a slash": [member("C:written.bin")],
        "share": [member("\\\\server\\share\\written.bin")],
        "backslash": [member(f"{INSIDE}\\..\\..\\written.bin"), member("..\\written.bin")],
        "backslash to the wanted name": [member(FIRST.replace("/", "\\"))],
        "link, then through it": [member("l", kind=link, to=str(outside)), member("l/written.bin")],
        "link of the folder": [
            member(INSIDE, kind=link, to=str(outside)),
            member(f"{INSIDE}/written.bin"),
        ],
        "link of the wanted name": [member(FIRST, kind=link, to=secret)],
        "relative link of the wanted name": [member(FIRST, kind=link, to="../../outside/secret")],
        "link to itself": [member(FIRST, kind=link, to=FIRST)],
        "hard link": [member(FIRST, kind=hard, to=secret)],
        "hard link to a link": [
            member("s", kind=link, to=secret),
            member("h", kind=hard, to="s"),
            member(FIRST, kind=hard, to="h"),
        ],
        "long path": long_path(outside),
        "character device": [member(FIRST, b"", tarfile.CHRTYPE, devmajor=1, devminor=5)],
        "block device": [member(FIRST, b"", tarfile.BLKTYPE, devmajor=8)],
        "fifo": [member(FIRST, kind=tarfile.FIFOTYPE)],
        "folder of the wanted name": [member(FIRST, kind=tarfile.DIRTYPE)],
        "case": [member(FIRST.upper()), member(FIRST.title())],
        "dots that are no dots": [
            member("\uff0e\uff0e/written.bin"),
            member("\u2024\u2024/written.bin"),
        ],
        "spaces and dots at the end": [
            member(f"{FIRST} "),
            member(f"{FIRST}."),
            member(f"{FIRST}::$DATA"),
        ],
        "names for a terminal": [member("\x1b]0;x\x07\n\r../written.bin")],
        "reserved names": [member("CON"), member(f"{INSIDE}/NUL"), member(f"{INSIDE}/.partial")],
        "hidden": [member(".lock"), member("../.lock"), member(f"{INSIDE}/../.lock")],
        "long name of GNU": [
            raw(b"l", 20, LONG_NAME, b"../../../written.bin"),
            member("innocent"),
            raw(b"l", len(secret), LONG_LINK, secret.encode()),
            member(FIRST, kind=link),
        ],
        "path of pax": [pax(path="../written.bin"), member("innocent")],
        "link of pax": [pax(linkpath=secret), member(FIRST, kind=link)],
        "sparse": [pax(GNU__sparse__map="0,1", GNU__sparse__size="9"), member(FIRST, b"x")],
        "a kind that is unknown": [raw(FIRST.encode(), 0, b"~")],
    }
    refused = {
        "twice": ([member(FIRST, first)], same),
        "twice, otherwise spelled": ([member(f"./{FIRST}", first)], same),
        "NUL": ([raw(FIRST.encode() + b"\0/../../written.bin", len(first), b"0", first)], same),
        "setuid and of root": ([member(FIRST, first, mode=0o6777, uid=0)], same),
        "renamed by pax": ([pax(path=FIRST), member("innocent", first)], same),
        "longer": ([member(FIRST, first + b"x")], "at most are due"),
        "longer by pax": ([pax(size=str(1 << 40)), member(FIRST, first)], "at most are due"),
        "of no length": ([raw(FIRST.encode(), -1)], "-1 bytes|cannot be read"),
        "before itself": ([raw(b"back", -1024)], "-1024 bytes|cannot be read"),
        "itself": ([raw(b"again", -512)], "-512 bytes|cannot be read"),
        "header of all that follows": ([raw(b"pax", -512, EXTENDED)], "a header of|cannot be read"),
        "header for the parser": (
            [raw(b"pax", 1 << 20, EXTENDED, b"1" * (1 << 20))],
            "a header of",
        ),
        "headers of headers": ([pax(path="x")] * 3000, "cannot be read"),
        "size of no number": ([pax(size="1e9"), member("x")], EITHER),
        "far away": ([raw(b"far", 1 << 62)], "goes on to|cannot be read"),
        "65 members": ([member(f"x{i}") for i in range(65)], "more than 64 members"),
    }
    return {name: (each, "") for name, each in passed.items()} | refused


def endless() -> dict[str, tuple[Callable[[], bytes], str]]:
    """Return gzips that unpack to gigabytes, and what is said of each."""
    size = 3 << 30
    return {
        "a million members": (
            lambda: gzip.compress(b"".join(member(f"x{i}", b"") for i in range(1000)), 9) * 1000,
            "more than 64 members",
        ),
        "a member of gigabytes": (lambda: bomb(raw(b"zeros", size), size), "goes on to byte"),
        "a header of gigabytes": (lambda: bomb(raw(b"p", size, EXTENDED), size), "a header of"),
        "a global header of gigabytes": (
            lambda: bomb(raw(b"p", size, GLOBAL), size),
            "a header of",
        ),
        "a name of gigabytes": (lambda: bomb(raw(b"p", size, LONG_NAME), size), "a header of"),
        "a wanted member of gigabytes": (
            lambda: bomb(raw(FIRST.encode(), size), size),
            "at most are due",
        ),
        "gigabytes after the end": (lambda: bomb(bytes(2 * BLOCK), size), "missing"),
    }


def tar(*members: Iterable[Member]) -> bytes:
    """Return a tar of the members."""
    return b"".join(b"".join(each) for each in members) + bytes(2 * BLOCK)


def npy(array: np.ndarray) -> bytes:
    """Return an array as a ``.npy`` file."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def zipped(members: Iterable[tuple[zipfile.ZipInfo, bytes]]) -> bytes:
    """Return a zip of the members; one name may be there twice."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for info, contents in members:
            archive.NameToInfo.pop(info.filename, None)  # no warning of duplicates
            archive.writestr(info, contents)
    return file.getvalue()


def entry(name: str, mode: int = 0o100644) -> zipfile.ZipInfo:
    """Return what a zip made on Unix says of a member; the mode says that it is a link, too."""
    info = zipfile.ZipInfo("x")
    info.filename = name  # past the constructor, which ends a name at NUL
    info.create_system, info.external_attr = 3, mode << 16
    return info


def hostile_zips(outside: Path) -> dict[str, list[tuple[zipfile.ZipInfo, bytes]]]:
    """Return what a zip may have besides what is wanted of it."""
    target = str(outside / "written.bin").encode()
    return {
        "dots": [(entry("../written.bin"), b"x"), (entry("../../outside/secret"), b"x")],
        "absolute": [(entry(str(outside / "written.bin")), b"x")],
        "drive letter": [(entry("C:\\written.bin"), b"x"), (entry("C:written.bin"), b"x")],
        "backslash": [(entry("..\\written.bin"), b"x"), (entry("x\\..\\..\\written.bin"), b"x")],
        "share": [(entry("\\\\server\\share\\x"), b"x")],
        "link": [(entry("l", 0o120777), target), (entry("l/written.bin"), b"x")],
        "link to a folder": [(entry("x_train", 0o120777), str(outside).encode())],
        "device": [(entry("d", 0o020666), b"")],
        "fifo": [(entry("f", 0o010666), b"")],
        "setuid": [(entry("s", 0o106777), b"x")],
        "case": [(entry("X_TRAIN.npy"), b"x"), (entry("X_train.NPY"), b"x")],
        "folder": [(entry("x_train.npy/", 0o040755), b"")],
        "names for a terminal": [(entry("\x1b]0;x\x07\n"), b"x")],
        "bomb beside": [(entry("zeros"), bytes(ZEROS))],
        "zip in it": [(entry("inner.npz"), zipped([(entry("zeros"), bytes(ZEROS))]))],
    }


def zip_of_names(number: int) -> bytes:
    """Return a zip that lists many members, and has none."""
    one = struct.pack("<4s2B5H3L5H2L", b"PK\1\2", 20, 3, 20, *[0] * 7, 5, *[0] * 6)
    names = b"".join(one + b"%05x" % (i & 0xFFFFF) for i in range(number))
    return names + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0, 0, len(names), 0, 0)
