"""F10: a damaged image is an error that names it, or pixels of the agreed shape; it is counted.

Most damaged JPEG, WebP, BMP and PNM files are decoded without an error by any library, for these
formats have no checksum. A folder with ``SHA256SUMS`` has: there no damaged image is read at all.
"""

from __future__ import annotations

import hashlib
import io
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from injecting import Injected, faults
from mutations import MUTATIONS
from PIL import Image
from typer.testing import CliRunner

from vitkit.backend import philox
from vitkit.cli.main import app
from vitkit.data import FolderDataset, folder, read_image
from vitkit.data.images import read_images
from vitkit.errors import ConfigError, DataError

# Pillow warns about damage that it reads over; a run shows that and goes on, as is done here.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")
COUNT = faults(10_000, 200_000)
ROUNDS = faults(12, 200)
SHAPE = (3, 8, 8)
FORMATS = {
    "png": {},
    "jpg": {"format": "JPEG", "quality": 90},
    "webp": {"quality": 80},
    "bmp": {},
    "gif": {},
    "tif": {"compression": "tiff_lzw"},
    "ppm": {},
}


def encoded(suffix: str, number: int = 0) -> bytes:
    """Return an image file of a format: a gradient with noise."""
    rng = philox(0, f"f10 image {suffix}", number)
    ramp = np.add.outer(np.arange(24), np.arange(32))[..., None] * np.array([3, 2, 4])
    pixels = (ramp + rng.integers(0, 40, (24, 32, 3))).astype(np.uint8)
    file, options = io.BytesIO(), {"format": suffix.replace("tif", "tiff"), **FORMATS[suffix]}
    Image.fromarray(pixels).save(file, **options)
    return file.getvalue()


def photos(root: Path, each: int = 7) -> list[Path]:
    """Make a folder of three classes with images of every format; return their paths."""
    paths = []
    for label, name in enumerate(("cat", "dog", "eel")):
        (root / name).mkdir(parents=True)
        for number in range(each):
            suffix = list(FORMATS)[number % len(FORMATS)]
            path = root / name / f"{number:03}.{suffix}"
            path.write_bytes(encoded(suffix, 100 * label + number))
            paths.append(path)
    return paths


def write_sums(root: Path) -> None:
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  ./{path.relative_to(root).as_posix()}\n"
        for path in sorted(root.rglob("*.*"))
    ]
    (root / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")


def test_mutated_images_are_refused_by_name_or_decoded_to_the_shape(
    tmp_path: Path, injected: Injected
) -> None:
    images = {suffix: encoded(suffix) for suffix in FORMATS}
    refused, decoded = Counter[str](), Counter[str]()
    for number in range(COUNT):
        rng = philox(0, "f10", number)
        suffix = list(FORMATS)[number % len(FORMATS)]
        path = tmp_path / f"victim.{suffix}"
        path.write_bytes(MUTATIONS[int(rng.integers(len(MUTATIONS)))](images[suffix], rng))
        try:
            # The first is what batches are made of, the second what `vitkit predict` reads.
            read = read_image(path, SHAPE) if number % 2 else read_images([path], SHAPE)[0]
        except DataError as error:
            where, _, reason = str(error).partition(": ")
            assert where == str(path)
            assert len(reason) > 20
            assert "\n" not in reason
            refused[suffix] += 1
        else:
            assert read.shape == SHAPE
            assert read.dtype == np.uint8
            decoded[suffix] += 1
    for suffix in FORMATS:
        assert refused[suffix] > 0.1 * COUNT / len(FORMATS), f"{suffix}: hardly any is refused"
    injected("damaged images", refused.total() + decoded.total(), at_least=COUNT)
    injected("of them refused by name", refused.total(), at_least=COUNT // 4)


def test_no_mutated_image_is_read_where_sums_say_what_it_was(
    tmp_path: Path, injected: Injected
) -> None:
    paths = photos(tmp_path)
    write_sums(tmp_path)
    splits = folder(tmp_path, 8)
    assert len(splits.train) + len(splits.test) == len(paths)
    count = 0
    data = folder(tmp_path, 8, bad_files="later").train
    whole = data.dataset
    assert isinstance(whole, FolderDataset)
    for number in range(faults(2_000)):
        rng = philox(0, "f10 sums", number)
        index = int(rng.integers(len(paths)))
        content = paths[index].read_bytes()
        mutated = MUTATIONS[int(rng.integers(len(MUTATIONS)))](content, rng)
        if mutated == content:
            continue
        paths[index].write_bytes(mutated)
        with pytest.raises(DataError) as caught:
            whole.images(np.array([index]))
        assert str(caught.value).startswith(f"{paths[index]}: its SHA-256 is ")
        paths[index].write_bytes(content)
        count += 1
    injected("damaged images that sums tell", count, at_least=round(0.9 * faults(2_000)))


def test_all_bad_images_are_listed_or_left_out_and_counted(
    tmp_path: Path, injected: Injected
) -> None:
    count = 0
    for number in range(ROUNDS):
        rng = philox(0, "f10 policies", number)
        root = tmp_path / str(number)
        paths = photos(root, each=14)
        bad = sorted(rng.permutation(len(paths))[: int(rng.integers(1, 20))].tolist())
        for index in bad:
            content = paths[index].read_bytes()
            content = (content[: len(content) // 2], b"", b"no image")[int(rng.integers(3))]
            paths[index].write_bytes(content)
        with pytest.raises(DataError) as caught:
            folder(root, 8)
        first, *lines = str(caught.value).splitlines()
        assert first == f"{root}: {len(bad)} of {len(paths)} images cannot be read:"
        assert [line.partition(": ")[0] for line in lines[:-1]] == [str(paths[i]) for i in bad]
        assert "bad_files" in lines[-1]
        good = [path for index, path in enumerate(paths) if index not in bad]
        splits = folder(root, 8, bad_files="skip")
        whole = splits.train.dataset
        assert whole.paths == tuple(good)
        assert [whole.classes[k] for k in whole.labels] == [path.parent.name for path in good]
        assert whole.images(np.arange(len(good))).shape == (len(good), *SHAPE)
        for part in (splits.train, splits.test):
            assert f"{len(bad)} of {len(paths)} images cannot be read and are left out" in part.note
        later = folder(root, 8, bad_files="later").train.dataset
        assert len(later) == len(paths)
        with pytest.raises(DataError, match=paths[bad[0]].name):
            later.images(np.arange(len(paths)))
        count += len(bad)
        shutil.rmtree(root)
    injected("bad images listed and left out", count, at_least=4 * ROUNDS)


def test_bad_images_of_both_parts_are_in_one_list(tmp_path: Path, injected: Injected) -> None:
    bad = [photos(tmp_path / part)[4] for part in ("train", "test")]
    for path in bad:
        path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(DataError, match="2 of 42 images") as caught:
        folder(tmp_path, 8)
    assert all(str(path) in str(caught.value) for path in bad)
    skipped = folder(tmp_path, 8, bad_files="skip")
    assert (len(skipped.train), len(skipped.test)) == (20, 20)
    with pytest.raises(ConfigError, match="bad_files must be error, skip or later; got 'Skip'"):
        folder(tmp_path, 8, bad_files="Skip")  # type: ignore[arg-type]
    for path in (tmp_path / "test" / "dog").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"test.dog: no image of it can be read:"):
        folder(tmp_path, 8, bad_files="skip")
    injected("bad images in two parts", 9, at_least=9)


def test_predict_names_every_bad_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, injected: Injected
) -> None:
    paths = photos(tmp_path)
    bad = [paths[2], paths[9], tmp_path / "nothing.png"]
    paths[2].write_bytes(b"")
    paths[9].write_bytes(paths[9].read_bytes()[:25])
    model = SimpleNamespace(config=SimpleNamespace(in_channels=3, image_size=(8, 8)))
    restored = SimpleNamespace(
        model=model, checkpoint=SimpleNamespace(documents={"trainer": {}}), preprocess=None
    )
    monkeypatch.setattr("vitkit.train.restore", lambda run, **options: restored)
    monkeypatch.setattr("vitkit.cli.predict.compare", lambda document: None)
    found = CliRunner().invoke(app, ["predict", "run", *map(str, (*paths, bad[2]))])
    assert isinstance(found.exception, DataError)
    assert [line.partition(": ")[0] for line in str(found.exception).splitlines()] == [
        str(path) for path in bad
    ]
    injected("bad images named by predict", len(bad), at_least=3)
