from __future__ import annotations

import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitkit.data import FolderDataset, Loader, folder, read_image
from vitkit.errors import ConfigError, DataError


def save(path: Path, pixels: np.ndarray | None = None, **options: object) -> Path:
    """Write a picture, by default 12 x 8 noise."""
    if pixels is None:
        pixels = np.random.default_rng(len(str(path))).integers(0, 256, (8, 12, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def bomb(path: Path, side: int) -> Path:
    """Write a PNG that declares side x side grey pixels in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    data = (
        chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1 << 16))) + chunk(b"IEND", b"")
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder with parts, classes and files that are to be passed over."""
    for part in ("train", "test"):
        for name in ("10", "2", "cat"):
            for i in range(3):
                save(tmp_path / part / name / f"{i}.png")
    (tmp_path / "train" / "cat" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "train" / "cat" / "notes.txt").write_text("x")
    (tmp_path / "train" / ".hidden").mkdir()
    return tmp_path


def test_parts_classes_and_order(root: Path) -> None:
    splits = folder(root, 6)
    assert splits.train.classes == splits.test.classes == ("10", "2", "cat")
    assert splits.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert splits.train.image_shape == (3, 6, 6)
    assert splits.test.note == ""
    batch = next(Loader(splits.train, 4).batches(0))
    assert batch.images.shape == (4, 3, 6, 6)
    assert batch.images.std() > 10


def test_val_serves_as_test(root: Path) -> None:
    (root / "test").rename(root / "val")
    assert len(folder(root, 6).test) == 9


@pytest.mark.parametrize("layout", ["train", "."])
def test_without_test_part_it_is_split(tmp_path: Path, layout: str) -> None:
    for name in ("a", "b"):
        for i in range(10):
            save(tmp_path / layout / name / f"{i}.png")
    splits = folder(tmp_path, 6)
    assert (len(splits.train), len(splits.test)) == (16, 4)
    assert np.bincount(splits.test.labels).tolist() == [2, 2]
    assert "4 of 20 images" in splits.test.note
    assert splits.train.note == ""
    again = folder(tmp_path, 6).test
    np.testing.assert_array_equal(splits.test.images(np.arange(4)), again.images(np.arange(4)))


def test_train_may_be_a_class(tmp_path: Path) -> None:
    for name in ("plane", "train"):
        for i in range(5):
            save(tmp_path / name / f"{i}.png")
    assert folder(tmp_path, 6).train.classes == ("plane", "train")


def test_faulty_folders(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(DataError, match="one folder for each class is due"):
        folder(empty)
    with pytest.raises(DataError, match="there is no such folder"):
        folder(empty / "nowhere")
    (empty / "test" / "a").mkdir(parents=True)
    with pytest.raises(DataError, match="has test/ but no train/"):
        folder(empty)
    (root / "train" / "dog").mkdir()
    with pytest.raises(DataError, match="only one of them has dog"):
        folder(root)
    (root / "test" / "dog").mkdir()
    with pytest.raises(DataError, match=r"train.dog: the class has no images"):
        folder(root)
    with pytest.raises(ConfigError, match="image_size"):
        folder(root, 0)
    with pytest.raises(ConfigError, match="in_channels"):
        folder(root, 8, 4)


def test_a_damaged_image_is_named_when_it_is_reached(root: Path) -> None:
    victim = root / "train" / "2" / "1.png"
    victim.write_bytes(victim.read_bytes()[:-40])
    train = folder(root, 6, bad_files="later").train
    assert isinstance(train, FolderDataset)
    batches = Loader(train, 3, num_workers=2).batches(0)
    assert len(next(batches)) == 3
    with pytest.raises(DataError, match=r"2.1\.png: cannot be read"):
        next(batches)


class TestReadImage:
    def test_resizing_covers_and_crops_the_centre(self, tmp_path: Path) -> None:
        pixels = np.zeros((10, 30, 3), np.uint8)
        pixels[:, 10:20] = (10, 200, 90)
        read = read_image(save(tmp_path / "x.png", pixels), (3, 10, 10))
        np.testing.assert_array_equal(read, pixels[:, 10:20].transpose(2, 0, 1))
        tall = save(tmp_path / "y.png", pixels.transpose(1, 0, 2))
        np.testing.assert_array_equal(read_image(tall, (3, 10, 10)), read)

    def test_it_equals_resizing_the_short_side_then_cropping(
        self, tmp_path: Path, rng: np.random.Generator
    ) -> None:
        coarse = rng.integers(0, 256, (6, 8, 3), np.uint8)
        image = Image.fromarray(coarse).resize((96, 64), Image.Resampling.BICUBIC)
        image.save(tmp_path / "x.png")
        resized = np.asarray(image.resize((48, 32), Image.Resampling.BICUBIC)).astype(int)
        read = read_image(tmp_path / "x.png", (3, 32, 32)).astype(int)
        assert np.abs(read - resized[:, 8:40].transpose(2, 0, 1)).max() <= 1

    def test_non_square_shapes(self, tmp_path: Path) -> None:
        path = save(tmp_path / "x.png")
        assert read_image(path, (3, 5, 9)).shape == (3, 5, 9)
        assert read_image(path, (1, 9, 5)).shape == (1, 9, 5)

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_the_cameras_orientation(self, orientation: int, tmp_path: Path) -> None:
        upright = np.zeros((16, 16, 3), np.uint8)
        upright[:8, :8] = 255  # white where up and left meet
        turned = {
            1: upright,
            2: upright[:, ::-1],
            3: upright[::-1, ::-1],
            4: upright[::-1],
            5: upright.transpose(1, 0, 2),
            6: np.rot90(upright),
            7: np.rot90(upright, 2).transpose(1, 0, 2),
            8: np.rot90(upright, -1),
        }[orientation]
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = save(tmp_path / "x.png", np.ascontiguousarray(turned), exif=exif)
        np.testing.assert_array_equal(read_image(path, (3, 16, 16)), upright.transpose(2, 0, 1))

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
    def test_modes(self, mode: str, tmp_path: Path) -> None:
        path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
        if mode == "I;16":
            Image.fromarray(np.full((8, 8), 51400, np.uint16)).save(path)
            expected = 200
        else:
            Image.new("RGB", (8, 8), (255, 255, 255)).convert(mode).save(path)
            expected = 255
        for channels in (1, 3):
            assert (read_image(path, (channels, 4, 4)) == expected).all()

    def test_a_palette_with_transparency_and_a_gif(self, tmp_path: Path) -> None:
        image = Image.new("P", (8, 8))
        image.putpalette([9, 9, 9, 50, 60, 70])
        image.paste(1, (0, 0, 8, 8))
        image.save(tmp_path / "x.png", transparency=b"\x00\x80")
        image.save(tmp_path / "x.gif", save_all=True, append_images=[Image.new("P", (8, 8))])
        for name in ("x.png", "x.gif"):
            assert read_image(tmp_path / name, (3, 2, 2))[:, 0, 0].tolist() == [50, 60, 70]

    def test_odd_sizes(self, tmp_path: Path) -> None:
        one = save(tmp_path / "one.png", np.full((1, 1, 3), 77, np.uint8))
        assert (read_image(one, (3, 32, 32)) == 77).all()
        thin = save(tmp_path / "thin.png", np.full((1, 10000, 3), 77, np.uint8))
        tracemalloc.start()
        assert (read_image(thin, (3, 224, 224)) == 77).all()
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
        tracemalloc.stop()

    def test_bombs_are_not_decoded(self, tmp_path: Path) -> None:
        for side in (8500, 10000, 30000):  # silent in Pillow, a warning, an error
            with pytest.raises(DataError, match=r"bomb\.png: .*more than 64000000 pixels"):
                read_image(bomb(tmp_path / "bomb.png", side), (3, 8, 8))

    def test_damaged_files(self, tmp_path: Path) -> None:
        good = save(
            tmp_path / "good.png", np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
        )
        jpeg = save(tmp_path / "good.jpg", np.zeros((64, 64, 3), np.uint8)).read_bytes()
        content = good.read_bytes()
        middle = len(content) // 2
        for damaged in (
            b"",
            b"This is no image.",
            content[:20],
            content[:middle],
            content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :],
            jpeg[: len(jpeg) // 2],
        ):
            path = tmp_path / "bad.png"
            path.write_bytes(damaged)
            with pytest.raises(DataError, match=r"bad\.png: cannot be read"):
                read_image(path, (3, 8, 8))
        with pytest.raises(DataError, match="no such file"):
            read_image(tmp_path / "nothing.png", (3, 8, 8))

    def test_32_bit_grey_is_refused_instead_of_clipped(self, tmp_path: Path) -> None:
        Image.fromarray(np.full((8, 8), 1e5, np.float32)).save(tmp_path / "x.tif")
        with pytest.raises(DataError, match="32-bit grey"):
            read_image(tmp_path / "x.tif", (1, 4, 4))
