from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from vitkit.data import folder, images, remembered
from vitkit.data.folder import BadFiles
from vitkit.errors import DataError

Decoded = Callable[..., list[str]]
OLD = 1_600_000_000 * 10**9
NAMES = [f"{kind}/{number}.png" for kind in ("cat", "dog") for number in range(10)]


def save(path: Path, seed: int = 0, when: int = OLD) -> None:
    """Write 8 x 8 noise as a BMP, whose size does not depend on it, as of a time."""
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, "BMP")
    os.utime(path, ns=(when, when))


def spoil(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])
    os.utime(path, ns=(OLD, OLD))


def contents(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that is not there yet, where this test's images are remembered."""
    place = tmp_path / "cache" / "images"
    monkeypatch.setattr(remembered, "cache", lambda: place)
    return place


@pytest.fixture
def root(tmp_path: Path, cache: Path) -> Path:
    place = tmp_path / "photos"
    for name in NAMES:
        save(place / name)
    return place


@pytest.fixture
def decoded(root: Path, monkeypatch: pytest.MonkeyPatch) -> Decoded:
    """Return a function that loads the folder and returns the images that this decoded."""
    module = sys.modules["vitkit.data.folder"]  # vitkit.data.folder is the function
    read, seen = images.read_image, list[str]()

    def counted(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
        seen.append(path.relative_to(root).as_posix())
        return read(path, shape)

    def load(size: int = 4, bad_files: BadFiles = "error", place: Path = root) -> list[str]:
        seen.clear()
        folder(place, size, bad_files=bad_files)
        return sorted(seen)

    monkeypatch.setattr(module, "read_image", counted)
    return load


def the_file(cache: Path) -> Path:
    (path,) = cache.iterdir()
    return path


def test_no_image_is_decoded_twice(root: Path, cache: Path, decoded: Decoded) -> None:
    before = contents(root)
    assert decoded() == NAMES
    assert decoded() == []
    assert decoded(bad_files="skip") == []
    assert contents(root) == before
    assert the_file(cache).name == f"{hashlib.sha256(bytes(root.resolve())).hexdigest()}.json"


def test_a_link_to_the_folder_is_the_folder(root: Path, cache: Path, decoded: Decoded) -> None:
    decoded()
    link = root.with_name("link")
    try:
        link.symlink_to(root, target_is_directory=True)
    except OSError:
        pytest.skip("this system lets this user make no links")
    assert decoded(place=link) == []


def test_later_reads_and_writes_nothing(cache: Path, decoded: Decoded) -> None:
    assert decoded(bad_files="later") == []
    assert not cache.exists()


def test_what_is_new_or_has_changed_is_decoded(root: Path, cache: Path, decoded: Decoded) -> None:
    decoded()
    size = (root / "cat/1.png").stat().st_size
    save(root / "cat/1.png", seed=1, when=OLD + 1000)
    assert (root / "cat/1.png").stat().st_size == size
    save(root / "dog/new.png")
    assert decoded() == ["cat/1.png", "dog/new.png"]
    assert decoded() == []


@pytest.mark.parametrize("place", range(4))
def test_size_times_and_sum_all_tell(place: int, cache: Path, decoded: Decoded) -> None:
    decoded()
    found = json.loads(the_file(cache).read_bytes())
    found["tables"][0]["good"]["cat/1.png"][place] = 7
    the_file(cache).write_text(json.dumps(found))
    assert decoded() == ["cat/1.png"]


def test_bad_images_are_decoded_each_time(root: Path, cache: Path, decoded: Decoded) -> None:
    spoil(root / "cat/3.png")
    for _ in range(2):
        with pytest.raises(DataError, match=r"1 of 20 images cannot be read:\n.*3\.png"):
            decoded()
    assert decoded(bad_files="skip") == ["cat/3.png"]
    save(root / "cat/3.png")
    assert decoded() == ["cat/3.png"]
    assert decoded() == []


def test_a_good_image_that_is_spoiled_is_told_of(root: Path, cache: Path, decoded: Decoded) -> None:
    decoded()
    spoil(root / "dog/9.png")
    with pytest.raises(DataError, match=r"1 of 20 images cannot be read:\n.*9\.png"):
        decoded()


def test_skipping_gives_the_same_from_the_cache(root: Path, cache: Path, decoded: Decoded) -> None:
    for name in ("cat/3.png", "dog/0.png", "dog/7.png"):
        spoil(root / name)
    first = folder(root, 4, bad_files="skip")
    assert "3 of 20 images cannot be read" in first.test.note
    again = folder(root, 4, bad_files="skip")
    assert decoded(bad_files="skip") == ["cat/3.png", "dog/0.png", "dog/7.png"]
    for one, other in ((first.train, again.train), (first.test, again.test)):
        assert one.note == other.note
        np.testing.assert_array_equal(one.labels, other.labels)
        every = np.arange(len(one))
        np.testing.assert_array_equal(one.images(every), other.images(every))


def test_other_options_are_other_questions(
    cache: Path, decoded: Decoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert decoded(4) == decoded(6) == NAMES
    assert decoded(4) == decoded(6) == []
    with monkeypatch.context() as patch:
        patch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
        assert decoded(4) == NAMES
    with monkeypatch.context() as patch:
        patch.setattr(images, "CHECK", images.CHECK + 1)
        assert decoded(4) == NAMES
    for size in range(7, 7 + 2 * remembered.SHAPES):
        assert decoded(size) == NAMES
    assert len(json.loads(the_file(cache).read_text())["tables"]) == remembered.SHAPES
    assert decoded(size) == []


def test_sums_are_asked_once_for_each_that_is_due(
    root: Path, cache: Path, decoded: Decoded
) -> None:
    decoded()
    sums = {name: hashlib.sha256((root / name).read_bytes()).hexdigest() for name in NAMES}

    def write() -> None:
        lines = [f"{sha256}  {name}\n" for name, sha256 in sums.items()]
        (root / "SHA256SUMS").write_text("".join(lines))

    write()
    assert decoded() == NAMES
    assert decoded() == []
    sums["cat/5.png"] = "0" * 64
    write()
    with pytest.raises(DataError, match=r"1 of 20 .*\n.*5\.png: its SHA-256 is"):
        decoded()
    del sums["cat/5.png"]
    write()
    with pytest.raises(DataError, match=r"1 of 20 .*\n.*5\.png: not listed"):
        decoded()


def test_a_file_that_may_change_within_its_time_is_not_remembered(
    root: Path, cache: Path, decoded: Decoded
) -> None:
    save(root / "cat/1.png", when=time.time_ns())
    decoded()
    assert decoded() == ["cat/1.png"]


def test_images_that_are_gone_are_forgotten(root: Path, cache: Path, decoded: Decoded) -> None:
    decoded(6)
    decoded(4)
    assert the_file(cache).read_text().count("cat/1.png") == 2
    (root / "cat/1.png").unlink()
    assert decoded(4) == []
    assert the_file(cache).read_text().count("cat/1.png") == 0
    assert the_file(cache).read_text().count("cat/2.png") == 2


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda old: b"",
    "cut": lambda old: old[: len(old) // 2],
    "zeros": lambda old: bytes(len(old)),
    "deep": lambda old: b"[" * 100_000,
    "no table": lambda old: b"[]",
    "another version": lambda old: old.replace(b'"version":1', b'"version":2'),
    "tables of another kind": lambda old: b'{"version":1,"tables":{"good":1}}',
    "a table of another kind": lambda old: b'{"version":1,"tables":[1,{"good":[]},{}]}',
    "values of another kind": lambda old: old.replace(b"[", b'["x",'),
    "no text": lambda old: b"\xff\xfe\x00" + old,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_made_anew(damage: str, cache: Path, decoded: Decoded) -> None:
    decoded()
    old = the_file(cache).read_bytes()
    the_file(cache).write_bytes(DAMAGES[damage](old))
    assert the_file(cache).read_bytes() != old
    assert decoded() == NAMES
    assert decoded() == []


def test_a_file_too_large_is_neither_read_nor_written(
    cache: Path, decoded: Decoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded(4)
    decoded(6)
    one = the_file(cache).stat().st_size // 2
    monkeypatch.setattr(remembered, "LARGEST", one + one // 2)
    assert decoded(4) == NAMES
    assert the_file(cache).stat().st_size < one + one // 2
    assert decoded(4) == []
    assert decoded(6) == NAMES
    assert len(json.loads(the_file(cache).read_text())["tables"]) == 1
    monkeypatch.setattr(remembered, "LARGEST", 10)
    assert decoded(4) == NAMES
    assert the_file(cache).stat().st_size > 10


def test_a_cache_that_cannot_be_written_is_done_without(cache: Path, decoded: Decoded) -> None:
    cache.parent.write_text("a file in the folder's place")
    assert decoded() == decoded() == NAMES
    cache.parent.unlink()
    decoded()
    path = the_file(cache)
    path.unlink()
    path.mkdir()  # which nothing can replace
    assert decoded() == decoded() == NAMES
    assert list(cache.iterdir()) == [path]


def test_nothing_is_written_in_the_data_folder(
    root: Path, decoded: Decoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(root)
    monkeypatch.chdir(root)
    for place in (root, root / ".cache", root / "cat" / "images", Path("~/.cache"), Path("x")):
        monkeypatch.setattr(remembered, "cache", lambda place=place: place)
        assert decoded() == decoded() == NAMES
        assert contents(root) == before


def test_what_killed_processes_left_is_removed(cache: Path, decoded: Decoded) -> None:
    decoded(4)
    path = the_file(cache)
    for number, age in ((1, 2 * remembered.LEFT), (2, 0)):
        left = cache / f"{path.name}.{number}-{number}.part"
        left.write_text("{")
        when = time.time() - age
        os.utime(left, (when, when))
    decoded(6)
    assert sorted(each.name for each in cache.iterdir()) == [path.name, f"{path.name}.2-2.part"]


def test_an_interrupted_check_goes_on_where_it_was(
    root: Path, cache: Path, decoded: Decoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["vitkit.data.folder"]
    read = module.read_image

    def interrupted(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
        if path == root / "dog/9.png":
            raise KeyboardInterrupt
        return read(path, shape)

    with monkeypatch.context() as patch:
        patch.setattr(module, "read_image", interrupted)
        with pytest.raises(KeyboardInterrupt):
            decoded()
    left = decoded()
    assert "dog/9.png" in left
    assert "cat/0.png" not in left
    assert decoded() == []


def test_many_that_write_at_once_leave_a_whole_file(
    root: Path, cache: Path, decoded: Decoded
) -> None:
    folder(root, 4)
    path = the_file(cache)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            path.write_text("{")
            list(pool.map(lambda number: folder(root, 4 + number), range(8)))
            assert json.loads(path.read_bytes())["version"] == remembered.VERSION
    assert list(cache.iterdir()) == [path]


def test_many_images_are_said(
    cache: Path,
    decoded: Decoded,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "vitkit")
    monkeypatch.setattr(remembered, "MANY", 20)
    decoded(6)
    assert caplog.messages == []
    monkeypatch.setattr(remembered, "MANY", 19)
    decoded(4)
    decoded(4)
    (line,) = caplog.messages
    assert line.startswith("Looking at 20 images, once: ")
    assert "data.bad_files=later" in line
