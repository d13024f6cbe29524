"""Images that are legal and odd, and what the guide says becomes of each."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageCms

Colour = tuple[int, int, int]
RED: Colour = (200, 60, 20)
GREY = 100

OUTCOMES = {
    "grey, 8 bits": "its grey, the same in all channels",
    "grey or colour with transparency": "its colours; the transparency is dropped",
    "palette": "the colours that it stands for",
    "CMYK, YCbCr, LAB": "converted to RGB",
    "grey, 16 bits": "the upper 8 bits",
    "colour, 16 bits": "the upper 8 bits",
    "1, 2 or 4 bits": "stretched from 0 to 255",
    "32-bit grey, integers or floating point": "refused",
    "EXIF orientation 1 to 8": "turned upright",
    "EXIF orientation that does not exist": "as it is stored",
    "colour profile (ICC)": "the profile is dropped, the numbers are kept",
    "animation or several pages": "the first",
    "interlaced or progressive": "like others",
    "1x1, 1x10000, 10000x1": "resized, its centre cropped",
    "more bytes after its end": "the image; the bytes are passed over",
    "another format than its name says": "read as what it is",
    "odd names: spaces, Unicode, line feeds, capitals": "like others; errors quote line feeds",
    "link to an image": "like the image",
    "link to nothing or to itself": "refused",
    "pipe named like an image": "refused",
    "empty file": "refused",
    "text, HTML, SVG or ICO named like an image": "refused",
    "HEIC, AVIF, JPEG XL, JPEG 2000": "refused",
    "hidden file, other suffix, folder": "passed over, not counted",
}
"""What is in the table of the guide, row by row."""


@dataclass(frozen=True)
class Odd:
    """An image file, and the colour of its middle or what its error says."""

    row: str
    name: str
    content: bytes
    expected: Colour | str
    tolerance: int = 0


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def plain(mode: str = "RGB", size: tuple[int, int] = (12, 8), colour: Any = RED) -> Image.Image:
    return Image.new(mode, size, colour)


def palette(transparent: bool = False) -> bytes:
    image = Image.new("P", (12, 8))
    image.putpalette([9, 9, 9, *RED])
    image.paste(1, (0, 0, 12, 8))
    return saved(image, "PNG", **({"transparency": b"\x00\x80"} if transparent else {}))


def png(bits: int, kind: int, data: bytes, side: int = 8, interlaced: int = 0) -> bytes:
    """Return a square PNG of a depth or in an order that Pillow does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        checked = name + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", side, side, bits, kind, 0, 0, interlaced)
    chunks = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def rows(row: bytes) -> bytes:
    """Return eight rows that are alike, none filtered."""
    return (b"\0" + row) * 8


def big_endian() -> bytes:
    """Return a grey TIFF of 16 bits with the larger byte first."""
    tags = ((256, 8), (257, 8), (258, 16), (259, 1), (262, 1), (273, 200), (277, 1), (278, 8))
    entries = b"".join(struct.pack(">HHII", tag, 4, 1, value) for tag, value in (*tags, (279, 128)))
    start = b"MM\0*" + struct.pack(">IH", 8, len(tags) + 1) + entries
    return start.ljust(200, b"\0") + (GREY << 8 | 77).to_bytes(2, "big") * 64


def deep(dtype: str) -> Image.Image:
    return Image.fromarray(np.full((8, 12), GREY << 8 | 77, dtype))


def turned(orientation: int, kind: str) -> bytes:
    """Return an image whose left upper quarter is red once it is upright, the rest black."""
    upright = np.zeros((16, 16, 3), np.uint8)
    upright[:8, :8] = RED
    stored = {
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }.get(orientation, upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}
    image = Image.fromarray(np.ascontiguousarray(stored))
    return saved(image, kind, exif=exif, **options.get(kind, {}))


def moving(kind: str, **options: Any) -> bytes:
    return saved(
        plain(), kind, save_all=True, append_images=[plain(colour=(0, 0, 255))] * 2, **options
    )


def modes() -> Iterator[Odd]:
    """Yield images of every mode."""
    grey, red = (GREY, GREY, GREY), RED
    for kind, suffix in (("PNG", "png"), ("TIFF", "tif"), ("BMP", "bmp"), ("PPM", "pgm")):
        yield Odd("grey, 8 bits", f"l.{suffix}", saved(plain("L", colour=GREY), kind), grey)
    yield Odd("grey, 8 bits", "l.jpg", saved(plain("L", colour=GREY), "JPEG"), grey, 1)
    alpha = "grey or colour with transparency"
    yield Odd(alpha, "la.png", saved(plain("LA", colour=(GREY, 9)), "PNG"), grey)
    yield Odd(alpha, "rgba.png", saved(plain("RGBA", colour=(*red, 128)), "PNG"), red)
    yield Odd(alpha, "clear.png", saved(plain("RGBA", colour=(*red, 0)), "PNG"), red)
    clear = saved(plain("RGBA", colour=(*red, 9)), "WEBP", lossless=True, exact=True)
    yield Odd(alpha, "rgba.webp", clear, red)
    yield Odd("palette", "p.png", palette(), red)
    yield Odd("palette", "p-clear.png", palette(True), red)
    yield Odd("palette", "p.gif", saved(plain(), "GIF"), red)
    yield Odd("palette", "p.bmp", saved(plain().quantize(4), "BMP"), red, 1)
    other = "CMYK, YCbCr, LAB"
    yield Odd(other, "cmyk.tif", saved(plain().convert("CMYK"), "TIFF"), red, 1)
    yield Odd(other, "cmyk.jpg", saved(plain().convert("CMYK"), "JPEG", quality=100), red, 3)
    yield Odd(other, "ycbcr.tif", saved(plain().convert("YCbCr"), "TIFF"), red, 3)
    lab = ImageCms.profileToProfile(
        plain(),
        ImageCms.createProfile("sRGB"),
        ImageCms.createProfile("LAB"),
        outputMode="LAB",
    )
    assert lab is not None
    yield Odd(other, "lab.tif", saved(lab, "TIFF"), red, 4)
    yield Odd("grey, 16 bits", "i16.png", saved(deep("uint16"), "PNG"), grey)
    yield Odd("grey, 16 bits", "i16.tif", saved(deep("uint16"), "TIFF"), grey)
    yield Odd("grey, 16 bits", "i16-big.tif", big_endian(), grey)
    pgm = b"P5 8 8 65535\n" + (GREY << 8 | 77).to_bytes(2, "big") * 64
    yield Odd("grey, 16 bits", "i16.pgm", pgm, grey)
    row = b"".join((value << 8 | 99).to_bytes(2, "big") for value in red) * 8
    yield Odd("colour, 16 bits", "rgb16.png", png(16, 2, rows(row)), red)
    few = "1, 2 or 4 bits"
    yield Odd(few, "one.png", saved(plain("1", colour=1), "PNG"), (255, 255, 255))
    yield Odd(few, "one.tif", saved(plain("1", colour=0), "TIFF", compression="group4"), (0, 0, 0))
    yield Odd(few, "one.pbm", saved(plain("1", colour=1), "PPM"), (255, 255, 255))
    yield Odd(few, "two.png", png(2, 0, rows(b"\xaa\xaa")), (170, 170, 170))
    yield Odd(few, "four.png", png(4, 0, rows(b"\x33" * 4)), (51, 51, 51))
    wide = "32-bit grey, integers or floating point"
    yield Odd(wide, "i.tif", saved(deep("int32"), "TIFF"), r"32-bit grey \(I\)")
    yield Odd(wide, "f.tif", saved(deep("float32"), "TIFF"), r"32-bit grey \(F\)")
    nan = saved(Image.fromarray(np.full((8, 8), np.nan, np.float32)), "TIFF")
    yield Odd(wide, "nan.tif", nan, r"32-bit grey \(F\)")


def camera() -> Iterator[Odd]:
    """Yield what cameras and programs add; upright images are red in their left upper quarter."""
    for orientation in range(1, 9):
        row = "EXIF orientation 1 to 8"
        yield Odd(row, f"exif{orientation}.jpg", turned(orientation, "JPEG"), RED, 3)
    for kind, suffix in (("PNG", "png"), ("WEBP", "webp"), ("TIFF", "tif")):
        for orientation in (6, 8):
            content = turned(orientation, kind)
            yield Odd("EXIF orientation 1 to 8", f"exif{orientation}.{suffix}", content, RED)
    for orientation in (0, 9):
        row = "EXIF orientation that does not exist"
        yield Odd(row, f"exif{orientation}.jpg", turned(orientation, "JPEG"), RED, 3)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    row = "colour profile (ICC)"
    yield Odd(row, "icc.png", saved(plain(), "PNG", icc_profile=profile), RED)
    yield Odd(row, "icc.jpg", saved(plain(), "JPEG", quality=100, icc_profile=profile), RED, 3)
    passes = b"\0\xaa" + b"\0\xaa" + b"\0\xaa\xaa"  # of the seven those that are not empty
    yield Odd(
        "interlaced or progressive",
        "adam7.png",
        png(8, 0, passes, 2, interlaced=1),
        (170, 170, 170),
    )
    slow = saved(plain(), "JPEG", quality=100, progressive=True)
    yield Odd("interlaced or progressive", "progressive.jpg", slow, RED, 3)
    row = "animation or several pages"
    yield Odd(row, "moving.gif", moving("GIF"), RED)
    yield Odd(row, "moving.webp", moving("WEBP", lossless=True), RED)
    yield Odd(row, "moving.png", moving("PNG"), RED)
    yield Odd(row, "pages.tif", moving("TIFF"), RED)
    yield Odd(row, "views.jpg", moving("MPO", quality=100), RED, 3)


def files() -> Iterator[Odd]:
    """Yield odd sizes, contents and names."""
    red = saved(plain(), "PNG")
    for size in ((1, 1), (1, 10_000), (10_000, 1)):
        content = saved(plain(size=size), "PNG")
        yield Odd("1x1, 1x10000, 10000x1", f"{size[0]}x{size[1]}.png", content, RED)
    for suffix, kind in (("png", "PNG"), ("jpg", "JPEG"), ("gif", "GIF")):
        content = saved(plain(), kind) + b"more" * 9
        yield Odd("more bytes after its end", f"more.{suffix}", content, RED, 5)
    other = "another format than its name says"
    yield Odd(other, "png.jpg", red, RED)
    yield Odd(other, "gif.png", saved(plain(), "GIF"), RED)
    yield Odd(other, "webp.bmp", saved(plain(), "WEBP", lossless=True), RED)
    names = ("a b.png", " .png", "-rf.png", "ネコ🐈.png", "e\u0301.png", "UPPER.PNG", "x.y.Jpeg")
    for name in names:
        yield Odd("odd names: spaces, Unicode, line feeds, capitals", name, red, RED)
    yield Odd("empty file", "empty.png", b"", r"it is empty \(0 bytes\)")
    foreign = "text, HTML, SVG or ICO named like an image"
    icon = saved(plain(), "ICO")
    for name, content in (
        ("text.jpg", b"This is no image."),
        ("page.png", b"<!doctype html><title>404</title>"),
        ("drawing.png", b'<svg xmlns="http://www.w3.org/2000/svg"/>'),
        ("icon.png", icon),
    ):
        yield Odd(foreign, name, content, "no PNG, JPEG, WebP, BMP, GIF, TIFF or PNM image")
    newer = "HEIC, AVIF, JPEG XL, JPEG 2000"
    for brand in (b"heic", b"avif"):
        content = struct.pack(">I", 24) + b"ftyp" + brand + bytes(12)
        yield Odd(newer, f"{brand.decode()}.jpg", content, "it is an HEIC, HEIF or AVIF image")
    heic, xl = b"\0\0\0\x18ftypheic" + bytes(12), b"\0\0\0\x0cJXL \r\n\x87\n"
    for suffix in ("heic", "HEIF", "avif"):
        yield Odd(newer, f"x.{suffix}", heic, "it is an HEIC, HEIF or AVIF image")
    for name, content in (
        ("x.jxl", xl),
        ("y.jxl", b"\xff\x0a" + bytes(30)),
        ("x.jp2", b"\0\0\0\x0cjP  \r\n\x87\n"),
    ):
        yield Odd(newer, name, content, "it is a JPEG XL or JPEG 2000 image")
    for name in (".hidden.png", "notes.txt", "Thumbs.db"):
        yield Odd("hidden file, other suffix, folder", name, b"x", "")
