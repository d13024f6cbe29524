"""An image file becomes pixels of one shape, or an error that names the file and what is wrong."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from vitkit.data.checks import named, reading
from vitkit.data.idx import open_regular
from vitkit.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
UNREAD = (".heic", ".heif", ".avif", ".jxl", ".jp2")
"""Suffixes of images that are not read, and would be missed if they were passed over."""
LARGEST_IMAGE = 64_000_000  # pixels; below the size from which Pillow itself would warn
EMPTIEST = 1000  # pixels a byte; a photograph has 1 to 20, a PNG of one colour at most 1032
SMALL = 10_000_000  # pixels that may be as empty as they like: a page in black and white
CHECK = 1
"""To be raised when fewer files become images than before, so that all are looked at again."""
CHUNK = 256
"""How many images are looked at before an interrupt is noticed."""
THREADS = 8


def read_image(
    path: str | os.PathLike[str],
    image_shape: tuple[int, int, int],
    *,
    largest: int = LARGEST_IMAGE,
) -> np.ndarray:
    """Decode an image file to one shape.

    What the file is, its first bytes say, not its name. The orientation that a camera noted (EXIF)
    is applied, the colours become RGB or grey, the image is resized (bicubic) until it just covers
    ``image_shape``, and its centre is cropped. Of an animation or of pages the first is read;
    transparency and colour profiles are dropped; 16-bit grey loses its lower 8 bits.

    Parameters
    ----------
    path : path
        A PNG, JPEG, WebP, BMP, GIF, TIFF or PNM file.
    image_shape : tuple of int
        ``(C, H, W)`` to return, C being 1 or 3.
    largest : int, default 64 000 000
        The most pixels a file may declare; seen before it is decoded.

    Returns
    -------
    numpy.ndarray, uint8 (C, H, W)
        The pixels.

    Raises
    ------
    DataError
        If the file is missing, damaged, truncated, too large, or not an image.
    """
    from PIL import Image, ImageOps

    path = Path(path)
    channels, height, width = image_shape
    with (
        reading(named(path)),
        open_regular(path) as file,
        _opened(file, path, largest) as opened,
    ):
        ImageOps.exif_transpose(opened, in_place=True)
        coloured = _coloured(opened, channels, path)
        # Cropping before resizing gives the same pixels, and a 1x10000 image no huge one between.
        factor = min(coloured.height / height, coloured.width / width)
        left = (coloured.width - factor * width) / 2
        top = (coloured.height - factor * height) / 2
        box = (left, top, left + factor * width, top + factor * height)
        fitted = coloured.resize((width, height), Image.Resampling.BICUBIC, box=box)
        pixels = np.asarray(fitted.convert("RGB" if channels == 3 else "L"), np.uint8)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def read_images(
    paths: Sequence[str | os.PathLike[str]], image_shape: tuple[int, int, int]
) -> np.ndarray:
    """Decode image files to one shape, or say of each that cannot be read why.

    Parameters
    ----------
    paths : sequence of path
        At least one; as for :func:`read_image`.
    image_shape : tuple of int
        ``(C, H, W)`` to return, C being 1 or 3.

    Returns
    -------
    numpy.ndarray, uint8 (N, C, H, W)
        The pixels.

    Raises
    ------
    DataError
        Listing every file that cannot be read, one a line.
    """
    found: list[np.ndarray] = []
    problems = []
    for path in paths:
        try:
            found.append(read_image(path, image_shape))
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    return np.stack(found)


def options(image_shape: tuple[int, int, int]) -> dict[str, object]:
    """Return what decides, beside a file, whether :func:`read_image` reads it; JSON can hold it."""
    from PIL import Image, ImageFile, __version__

    return {
        "check": CHECK,
        "pillow": __version__,
        "image_shape": list(image_shape),
        "limits": [LARGEST_IMAGE, EMPTIEST, SMALL, Image.MAX_IMAGE_PIXELS],
        "truncated": bool(ImageFile.LOAD_TRUNCATED_IMAGES),  # which other libraries switch on
    }


def in_threads(say: Callable[[Path], str], paths: Sequence[Path]) -> Iterator[str]:
    """Yield what a function says of each path, in their order."""
    if len(paths) < 8:
        yield from map(say, paths)
        return
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        for start in range(0, len(paths), CHUNK):
            yield from pool.map(say, paths[start : start + CHUNK])


def _opened(file: BinaryIO, path: Path, largest: int) -> Image.Image:
    """Return an image whose header has been read, if it is one and not too large."""
    from PIL import Image, UnidentifiedImageError

    start = file.read(16)
    file.seek(0)
    if not start:
        raise DataError(f"{named(path)}: cannot be read: it is empty (0 bytes). Get it again.")
    try:
        opened = Image.open(file, formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{named(path)}: {_too_large(largest)} ({error})") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{named(path)}: cannot be read: {_unknown(start)}") from error
    if opened.width * opened.height > largest:
        raise DataError(f"{named(path)}: {opened.width}x{opened.height}: {_too_large(largest)}")
    size = os.fstat(file.fileno()).st_size
    if opened.width * opened.height > max(SMALL, EMPTIEST * size):
        raise DataError(
            f"{named(path)}: {opened.width}x{opened.height} pixels in {size} bytes: so much is "
            "packed into so little only to fill the memory, or where a page is empty. Make it "
            "smaller first."
        )
    return opened


def _too_large(largest: int) -> str:
    return (
        f"too large: files that declare more than {largest} pixels are not decoded, since a small "
        "file may unpack to fill the memory. Make it smaller first."
    )


def _unknown(start: bytes) -> str:
    """Say what a file is that starts so, as far as that is of use."""
    if start[4:8] == b"ftyp":
        return "it is an HEIC, HEIF or AVIF image or a video; save it as PNG or JPEG."
    if start[4:8] in (b"JXL ", b"jP  ") or start[:2] == b"\xff\x0a":
        return "it is a JPEG XL or JPEG 2000 image; save it as PNG or JPEG."
    return (
        f"no PNG, JPEG, WebP, BMP, GIF, TIFF or PNM image, or one whose header is damaged; it "
        f"starts with {start[:8].hex(' ')}. Get it again, or save it as PNG or JPEG."
    )


def _coloured(image: Image.Image, channels: int, path: Path) -> Image.Image:
    """Return an image of 8 bits in RGB or grey; grey where it is, as that takes less memory."""
    from PIL import Image

    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        values: np.ndarray = np.asarray(image)
        return Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise DataError(f"{named(path)}: 32-bit grey ({image.mode}); save it with 8 or 16 bits.")
    if image.mode in ("1", "LA"):
        return image.convert("L")
    if image.mode in ("P", "PA"):  # Pillow warns about a palette with transparency otherwise
        image = image.convert("RGBA")
    elif image.mode == "LAB":  # has no conversion to grey
        image = image.convert("RGB")
    due = "RGB" if channels == 3 else "L"
    return image if image.mode in ("L", due) else image.convert(due)
