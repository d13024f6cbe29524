"""F14: hostile archives, tar, tar.gz and zip, write nothing outside the target, and soon end.

No archive is extracted: of a downloaded tar.gz the members of known names are copied, and of a
``.npz`` the arrays of known names are read. Each attack comes alone, before and after the good
members; all that lies beside the target is compared before and after.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import re
import time
import tracemalloc
from pathlib import Path
from typing import NamedTuple

import hostile_archives as attacks
import numpy as np
import pytest
from hostile_archives import INSIDE
from injecting import Injected

from vitkit.backend import philox
from vitkit.data import SOURCES, npz, prepare, verify
from vitkit.data.sources import Archive
from vitkit.errors import DataError

NAME = "hostile.tar.gz"
LONGEST = 5.0  # seconds; an attack that unpacks gigabytes takes more
MOST_MEMORY = 32 << 20


class World(NamedTuple):
    """The folder that is filled, and everything around it."""

    root: Path
    place: Path
    contents: dict[str, bytes]

    @property
    def outside(self) -> Path:
        return self.root / "outside"

    def good(self) -> list[bytes]:
        """Return the members of an honest archive."""
        files = (attacks.member(f"{INSIDE}/{n}", data) for n, data in self.contents.items())
        return [*files, attacks.member(f"{INSIDE}/batches.meta.txt", b"names")]

    def tree(self) -> dict[str, object]:
        """Return all there is outside the folder that is filled."""
        found: dict[str, object] = {}
        for path in sorted(self.root.rglob("*")):
            if path != self.place and self.place not in path.parents:
                state = path.lstat()
                data = path.read_bytes() if path.is_file() and not path.is_symlink() else None
                found[str(path)] = (state.st_mode, state.st_size, state.st_mtime_ns, data)
        return found


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Return a folder to be filled, three levels deep, beside one that is not to be touched."""
    rng = philox(0, "F14")
    contents = {file.name: rng.bytes(700) for file in SOURCES["cifar10"].files}
    world = World(tmp_path, tmp_path / "target" / "of" / "all", contents)
    world.outside.mkdir()
    (world.outside / "secret").write_bytes(b"secret")
    (world.outside / "cwd").mkdir()
    world.place.parent.mkdir(parents=True)
    monkeypatch.chdir(world.outside / "cwd")
    monkeypatch.setenv("VITKIT_OFFLINE", "1")
    return world


def attempt(world: World, archive: bytes, monkeypatch: pytest.MonkeyPatch) -> str:
    """Prepare from an archive that is taken for the original; return the error, if there is one."""
    digest = hashlib.sha256
    files = tuple(
        dataclasses.replace(f, size=len(data), sha256=digest(data).hexdigest())
        for f in SOURCES["cifar10"].files
        for data in [world.contents[f.name]]
    )
    known = Archive(NAME, len(archive), digest(archive).hexdigest(), ("batches.meta.txt",))
    source = dataclasses.replace(SOURCES["cifar10"], files=files, archive=known)
    monkeypatch.setitem(SOURCES, "cifar10", source)
    world.place.mkdir(exist_ok=True)
    for path in world.place.iterdir():
        path.unlink()
    (world.place / NAME).write_bytes(archive)
    before, error = world.tree(), ""
    try:
        prepare("cifar10", world.place)
    except DataError as refused:
        error = str(refused)
    assert world.tree() == before
    left = {path.name: path for path in world.place.iterdir()}
    kept = set() if error else {*world.contents, "batches.meta.txt"}
    assert set(left) == {".lock", NAME, *kept}, error
    for name, data in {} if error else world.contents.items():
        state = left[name].lstat()
        assert (left[name].read_bytes(), state.st_mode & 0o177111, state.st_nlink) == (
            data,
            0o100000,
            1,
        )
    return error


def test_an_honest_archive_is_unpacked(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert attempt(world, gzip.compress(attacks.tar(world.good())), monkeypatch) == ""
    assert verify("cifar10", world.place) == []


def test_members_of_a_tar_gz(
    world: World, monkeypatch: pytest.MonkeyPatch, injected: Injected
) -> None:
    first = world.contents["data_batch_1.bin"]
    given = attacks.hostile(world.outside, first)
    for name, (bad, said) in given.items():
        alone, before, after = (
            attempt(world, gzip.compress(attacks.tar(*order)), monkeypatch)
            for order in ([bad], [bad, world.good()], [world.good(), bad])
        )
        assert re.search(f"missing|{said}", alone), (name, alone)
        if not said:
            assert (before, after) == ("", ""), name
        elif said != attacks.EITHER:
            assert re.search(said, before), (name, before)
            assert after, name
    injected("hostile archives, tar.gz", 3 * len(given), at_least=140)


def test_of_another_format(
    world: World, monkeypatch: pytest.MonkeyPatch, injected: Injected
) -> None:
    given = attacks.hostile(world.outside, world.contents["data_batch_1.bin"])
    for name, (bad, _) in given.items():
        assert "cannot be read" in attempt(world, attacks.tar(bad, world.good()), monkeypatch), name
    zips = attacks.hostile_zips(world.outside)
    good = [(attacks.entry(f"{INSIDE}/{n}"), data) for n, data in world.contents.items()]
    for name, entries in zips.items():
        for archive in (attacks.zipped([*entries, *good]), attacks.zipped([*good, *entries])):
            assert "cannot be read" in attempt(world, archive, monkeypatch), name
    injected("hostile archives, tar and zip", len(given) + 2 * len(zips), at_least=75)


@pytest.mark.parametrize("name", attacks.endless())
def test_that_hardly_end(
    world: World, monkeypatch: pytest.MonkeyPatch, name: str, injected: Injected
) -> None:
    make, said = attacks.endless()[name]
    archive = make()
    tracemalloc.start()
    start = time.process_time()
    try:
        end = attempt(world, archive, monkeypatch)
        seconds, memory = time.process_time() - start, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert said in end
    assert seconds < LONGEST
    assert memory - len(archive) < MOST_MEMORY
    injected("archives of gigabytes", 1)


def arrays_of(path: Path) -> tuple[np.ndarray | None, str]:
    """Return the training images of a ``.npz``, or the error."""
    try:
        train = npz(path).train
    except DataError as refused:
        return None, str(refused)
    return train.images(np.arange(len(train)))[:, 0], ""


def test_a_zip_of_arrays(world: World, injected: Injected) -> None:
    """Of a ``.npz`` four arrays are read into memory, and nothing is ever written."""
    labels = np.arange(20) % 2
    images = philox(0, "F14 zip").integers(0, 256, (20, 8, 8), np.uint8)
    arrays = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    good = [(attacks.entry(f"{n}.npy"), attacks.npy(each)) for n, each in arrays.items()]
    path = world.root / "arrays.npz"
    zips = attacks.hostile_zips(world.outside)
    for name, entries in zips.items():
        for order in ((*entries, *good), (*good, *entries), (*entries,)):
            path.write_bytes(attacks.zipped(order))
            before = world.tree()
            images_read, error = arrays_of(path)
            if len(order) == len(entries) or error:
                assert "x_train" in error, name
            else:
                np.testing.assert_array_equal(images_read, images)
            assert world.tree() == before, name
    injected("hostile archives, zip of arrays", 3 * len(zips), at_least=45)


def test_a_zip_with_an_array_twice(world: World, injected: Injected) -> None:
    images, labels = np.zeros((20, 8, 8), np.uint8), np.arange(20) % 2
    good = [(attacks.entry("x_train.npy"), attacks.npy(images + 9))]
    good += [(attacks.entry("y_train.npy"), attacks.npy(labels))]
    path = world.root / "arrays.npz"
    for again in ("x_train.npy", "x_train", "x_train.npy\0.txt"):
        for order in (1, -1):
            twice = [*good, (attacks.entry(again), attacks.npy(images + 7))][::order]
            path.write_bytes(attacks.zipped(twice))
            assert "x_train is in it 2 times" in arrays_of(path)[1], again
    injected("ambiguous zips", 6)


def test_a_zip_of_a_million_names(world: World, injected: Injected) -> None:
    path = world.root / "arrays.npz"
    path.write_bytes(attacks.zip_of_names(1_000_000))
    tracemalloc.start()
    start = time.process_time()
    try:
        error = arrays_of(path)[1]
        seconds, memory = time.process_time() - start, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "list of members of 51000000 bytes" in error
    assert seconds < 1
    assert memory < 4 << 20
    injected("zips of a million members", 1)
