"""Small files that unpack to fill the memory, and a process that measures what one does.

``python bombs.py NAME PATH`` reads the bomb at ``PATH`` as vitkit would and prints as JSON what
that raised, how long it took and by how much the largest use of memory has grown.
"""

from __future__ import annotations

import gzip
import io
import json
import resource
import struct
import sys
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

MIB = 1 << 20
GIB = 1 << 30


def chunk(name: bytes, data: bytes) -> bytes:
    checked = name + data
    return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))


def deflated(size: int) -> bytes:
    """Return so many zeros as a raw deflate stream, a thousand to one."""
    packer = zlib.compressobj(9, wbits=-15)
    piece = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    return piece * (size // MIB) + zlib.compressobj(wbits=-15).flush()


def zeros(size: int) -> bytes:
    """Return so many zeros in the format of zlib."""
    return b"\x78\xda" + deflated(size) + struct.pack(">HH", size % 65521, 1)


def png(side: int, *extra: bytes, packed: int = MIB) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    data = chunk(b"IDAT", zeros(packed))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + data + chunk(b"IEND", b"")


def gif(side: int) -> bytes:
    start = b"GIF89a" + struct.pack("<HH", side, side) + b"\xf0\0\0" + bytes(6)
    return start + b"\x2c" + struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\2\2\x4c\1\0;"


def webp(side: int) -> bytes:
    """Return an animation whose canvas is large and whose one frame is not."""
    from PIL import Image

    small = io.BytesIO()
    Image.new("RGB", (8, 8)).save(small, "WEBP", lossless=True)

    def part(name: bytes, data: bytes) -> bytes:
        return name + struct.pack("<I", len(data)) + data

    canvas = b"\2\0\0\0" + (side - 1).to_bytes(3, "little") * 2
    frame = bytes(6) + b"\7\0\0" * 2 + b"\x64\0\0\0" + small.getvalue()[12:]
    parts = part(b"VP8X", canvas) + part(b"ANIM", bytes(6)) + part(b"ANMF", frame)
    return part(b"RIFF", b"WEBP" + parts)


def jpeg(side: int) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "JPEG")
    content = file.getvalue()
    at = content.index(b"\xff\xc0") + 5
    return content[:at] + struct.pack(">HH", side, side) + content[at + 4 :]


def bmp(side: int) -> bytes:
    return b"BM" + struct.pack("<IIIIiiHHIIiiII", 0, 0, 54, 40, side, side, 1, 24, *[0] * 6)


def tiff(side: int, pages: int = 1) -> bytes:
    """Return a TIFF with so many pages, all of the same few bytes."""
    tags = ((256, side), (257, side), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1))
    tags += ((278, side), (279, side * side % 2**32))
    first = 8 + 64
    entries = struct.pack("<H", len(tags))
    entries += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    size = len(entries) + 4
    body = b"".join(
        entries + struct.pack("<I", first + (n + 1) * size if n < pages - 1 else 0)
        for n in range(pages)
    )
    return b"II*\0" + struct.pack("<I", first) + bytes(64) + body


def icon(side: int) -> bytes:
    inner = png(side)
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 0, 0, 0, 0, 1, 8, len(inner), 22) + inner


def idx(*shape: int, packed: int | None = None) -> bytes:
    content = bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
    if packed is None:
        return content + bytes(100)
    packer = zlib.compressobj(wbits=-15)
    start = packer.compress(content) + packer.flush(zlib.Z_FULL_FLUSH)
    return gzip.compress(b"")[:10] + start + deflated(packed) + bytes(8)


def npy(shape: str) -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header.encode()


def npz(content: bytes, size: int = 0) -> bytes:
    """Return an archive with ``content`` and ``size`` zeros as ``x_train``."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("x_train.npy", "w", force_zip64=True) as member:
            member.write(content)
            for _ in range(size // MIB):
                member.write(bytes(MIB))
        archive.writestr("y_train.npy", b"")
    return file.getvalue()


def nested() -> bytes:
    inner = npz(b"", 64 * MIB)
    for _ in range(4):
        inner = npz(inner)
    return inner


def long_line(start: bytes, size: int = GIB) -> Callable[[Path], None]:
    """Return what makes a file of such a size without a line's end, which takes no room."""

    def write(path: Path) -> None:
        with path.open("wb") as file:
            file.write(start)
            file.truncate(size)

    return write


def image(path: Path) -> object:
    from vitkit.data import read_image

    return read_image(path, (3, 8, 8)).shape


def arrays(path: Path) -> object:
    from vitkit.data import npz

    return npz(path)


def integers(path: Path) -> object:
    from vitkit.data import read_idx

    return read_idx(path).shape


def array(path: Path) -> object:
    from vitkit.data.npz import read_npy

    return read_npy(path).shape


def sums(path: Path) -> object:
    from vitkit.data.sums import read_sums

    path.rename(path.with_name("SHA256SUMS"))
    return read_sums(path.parent)


def class_names(path: Path) -> object:
    import vitkit.data.cifar as module

    return module._names(path, module.CIFAR10_NAMES)


def records(path: Path) -> object:
    from vitkit.data import cifar10

    path.rename(path.with_name("data_batch_1.bin"))
    return cifar10(path.parent)


def configuration(path: Path) -> object:
    from vitkit.config import load

    return load([path])


def checkpoint(path: Path) -> object:
    from vitkit.checkpoint import load

    folder = path.with_name("step-00000001")
    folder.mkdir()
    path.rename(folder / "manifest.json")
    return load(folder)


def hungry(path: Path) -> object:
    """Take the memory that no bomb may take: what the measurement must see."""
    return len(b"x" * (300 * MIB))


Content = bytes | Callable[[Path], None]
BOMBS: dict[str, tuple[Callable[[], Content], Callable[[Path], object], str]] = {
    "png of 900 Mpx": (lambda: png(30_000, packed=109 * MIB), image, "too large"),
    "png of 144 Mpx": (lambda: png(12_000, packed=144 * MIB), image, "too large"),
    "png of 62 Mpx": (lambda: png(7_900, packed=60 * MIB), image, "pixels in"),
    "gif": (lambda: gif(65_535), image, "too large"),
    "webp": (lambda: webp(7_900), image, "pixels in"),
    "jpeg": (lambda: jpeg(65_500), image, "too large"),
    "bmp": (lambda: bmp(40_000), image, "too large"),
    "ppm": (lambda: b"P6 100000 100000 255\n" + bytes(99), image, "too large"),
    "tiff": (lambda: tiff(50_000), image, "too large"),
    "tiff with 100,000 pages": (lambda: tiff(8, 100_000), image, ""),
    "icon": (lambda: icon(30_000), image, "no PNG"),
    "png with a comment": (
        lambda: png(8, chunk(b"zTXt", b"a\0\0" + zeros(GIB))),
        image,
        "cannot be read",
    ),
    "png with a profile": (
        lambda: png(8, chunk(b"iCCP", b"a\0\0" + zeros(GIB))),
        image,
        "cannot be read",
    ),
    "idx": (lambda: idx(1 << 31), integers, "2147483648 bytes after the header"),
    "idx of two sides": (lambda: idx(1 << 31, 1 << 31), integers, "follow: truncated"),
    "idx, packed": (lambda: idx(1 << 31, packed=64 * MIB), integers, "are refused"),
    "idx of a gigabyte": (lambda: idx(GIB, packed=GIB), integers, "are refused"),
    "idx, packed more": (lambda: idx(8, packed=GIB), integers, "but more follow"),
    "npy": (lambda: npy("(200000000000,)"), array, "truncated or damaged"),
    "npz": (lambda: npz(npy("(2147483648,)"), 32 * MIB), arrays, "truncated or damaged"),
    "npz of 256 MiB": (lambda: npz(npy("(67108864,)"), 256 * MIB), arrays, "bytes packed into"),
    "npz in npz": (nested, arrays, "not a .npy array"),
    "sums of one line": (lambda: long_line(b""), sums, "at most"),
    "class names of one line": (lambda: long_line(b"a"), class_names, "class names"),
    "records": (lambda: long_line(b"", 349_411 * 3073), records, "are due"),
    "configuration": (lambda: long_line(b"[train]\n#"), configuration, "bytes"),
    "checkpoint": (lambda: long_line(b'{"'), checkpoint, "bytes"),
}
"""How each is made, how it is read, and what its refusal says; empty where it is no harm."""


def peak() -> float:
    """Return the most memory that this process has used, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says may be the parent's
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB


def measure(name: str, path: Path) -> dict[str, object]:
    read = hungry if name == "hungry" else BOMBS[name][1]
    warnings.simplefilter("ignore")  # Pillow's own, of what is refused anyway
    small = path.with_name("small.png")
    small.write_bytes(png(8))
    image(small)  # imports are no part of it
    before, start, outcome = peak(), time.process_time(), ""  # others may be busy
    try:
        read(path)
    except Exception as error:
        outcome = f"{type(error).__name__}: {error}"
    return {
        "outcome": outcome,
        "seconds": time.process_time() - start,
        "mib": peak() - before,
    }


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]))))
