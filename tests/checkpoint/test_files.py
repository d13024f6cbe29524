"""A checkpoint is whole or absent, and nothing damaged is believed."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import vitkit.checkpoint.files as files
from vitkit.checkpoint import Unreadable
from vitkit.errors import CheckpointError

ARRAYS = {
    "model": {
        "blocks.0.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "transposed": np.arange(6.0).reshape(2, 3).T,
        "empty": np.zeros((0, 3), np.float32),
    },
    "optim": {"step": np.asarray(7, np.int64)},
}
DOCUMENTS = {"trainer": {"state": {"step": 7}, "classes": ["Ä", "b"]}}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoints" / "step-00000007"
    files.save(path, ARRAYS, DOCUMENTS)
    return path


def test_what_was_saved_comes_back(saved: Path) -> None:
    checkpoint = files.load(saved)
    assert checkpoint.path == saved
    assert checkpoint.documents == DOCUMENTS
    assert checkpoint.arrays.keys() == ARRAYS.keys()
    for stem, arrays in ARRAYS.items():
        assert checkpoint.arrays[stem].keys() == arrays.keys()
        for name, array in arrays.items():
            found = checkpoint.arrays[stem][name]
            assert (found.shape, found.dtype) == (array.shape, array.dtype), name
            np.testing.assert_array_equal(found, array)


def test_a_checkpoint_is_plain_files_that_other_tools_open(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == [
        "manifest.json",
        "model.safetensors",
        "optim.safetensors",
        "trainer.json",
    ]
    assert os.listdir(saved.parent) == [saved.name]
    assert safetensors.numpy.load_file(saved / "optim.safetensors")["step"] == 7
    manifest = json.loads((saved / "manifest.json").read_text())
    assert manifest["format"] == 1
    assert manifest["files"].keys() == {"model.safetensors", "optim.safetensors", "trainer.json"}


def test_nothing_is_written_over(saved: Path) -> None:
    with pytest.raises(CheckpointError, match="there already"):
        files.save(saved, {"model": {"x": np.ones(2)}}, {})
    assert files.load(saved).documents == DOCUMENTS
    assert os.listdir(saved.parent) == [saved.name]


def test_what_it_was_computed_with_comes_back(tmp_path: Path) -> None:
    files.save(tmp_path / "new", ARRAYS, DOCUMENTS, {"threads": "2"})
    assert files.load(tmp_path / "new").environment == {"threads": "2"}
    assert files.verify(tmp_path / "new").keys() == {
        *("model.safetensors", "optim.safetensors", "trainer.json")
    }


def test_two_values_of_one_name_are_refused(saved: Path) -> None:
    manifest = saved / "manifest.json"
    manifest.write_text(manifest.read_text().replace("{", '{"format": 1, ', 1))
    with pytest.raises(CheckpointError, match="two values of one name"):
        files.load(saved)


def edit_manifest(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def flip_a_bit(path: Path) -> None:
    content = bytearray((path / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "model.safetensors").write_bytes(content)


def truncate(path: Path) -> None:
    content = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(content[:-1])


def link_outside(path: Path) -> None:
    outside = path.parent / "outside.safetensors"
    (path / "model.safetensors").rename(outside)
    (path / "model.safetensors").symlink_to(outside)


def climb(path: Path) -> None:
    (path / "model.safetensors").rename(path.parent / "model.safetensors")
    edit_manifest(
        path,
        lambda m: m["files"].update({"../model.safetensors": m["files"].pop("model.safetensors")}),
    )


def claim_json_is_safetensors(path: Path) -> None:
    (path / "trainer.json").rename(path / "trainer.safetensors")
    edit_manifest(
        path, lambda m: m["files"].update({"trainer.safetensors": m["files"].pop("trainer.json")})
    )


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "flipped bit": (flip_a_bit, r"content of model\.safetensors has changed"),
    "truncated": (truncate, r"model\.safetensors has \d+ of \d+ bytes"),
    "missing file": (lambda p: (p / "trainer.json").unlink(), "'trainer.json' is missing"),
    "missing manifest": (lambda p: (p / "manifest.json").unlink(), "there is no such file"),
    "half a manifest": (lambda p: (p / "manifest.json").write_text('{"format"'), "cannot be read"),
    "no object": (lambda p: (p / "manifest.json").write_text("[]"), "holds no JSON object"),
    "not UTF-8": (lambda p: (p / "manifest.json").write_bytes(b"\xff\xfe"), "cannot be read"),
    "deep": (lambda p: (p / "manifest.json").write_text("[" * 99999), "cannot be read"),
    "folder": (
        lambda p: (p / "model.safetensors").unlink() or (p / "model.safetensors").mkdir(),
        "missing or no plain file",
    ),
    "link": (link_outside, "'model.safetensors' is missing or no plain file"),
    "climbing name": (climb, r"'\.\./model\.safetensors' is missing or no plain file"),
    "wrong content": (claim_json_is_safetensors, "Cannot trust"),
    "no files": (lambda p: edit_manifest(p, lambda m: m.update(files={})), "lists no files"),
    "files is a list": (lambda p: edit_manifest(p, lambda m: m.update(files=[1])), "lists no"),
    "null in a name": (
        lambda p: edit_manifest(p, lambda m: m["files"].update({"a\0b.json": {}})),
        "Cannot trust",
    ),
    "entry": (
        lambda p: edit_manifest(p, lambda m: m["files"].update({"trainer.json": 3})),
        "entry of 'trainer.json' is not understood",
    ),
    "edited hash": (
        lambda p: edit_manifest(p, lambda m: m["files"]["trainer.json"].update(sha256="0" * 64)),
        "has changed",
    ),
    "no format": (lambda p: edit_manifest(p, lambda m: m.pop("format")), "its format is None"),
    "newer": (
        lambda p: edit_manifest(p, lambda m: m.update(format=2)),
        "has format 2, and this vitkit reads format 1: upgrade vitkit",
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_named(kind: str, saved: Path) -> None:
    damage, message = DAMAGES[kind]
    damage(saved)
    with pytest.raises(CheckpointError, match=message) as raised:
        files.load(saved)
    assert str(saved) in str(raised.value)


def test_every_bit_of_a_small_file_matters(saved: Path) -> None:
    path = saved / "optim.safetensors"
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(CheckpointError):
            files.load(saved)
    path.write_bytes(content)
    assert files.load(saved).arrays["optim"]["step"] == 7


def test_a_document_too_large_to_be_ours_is_not_read(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LARGEST_DOCUMENT", 10)
    with pytest.raises(CheckpointError, match="larger than 10 bytes"):
        files.load(saved)


CALLS = ["_sync", "_sha256", "_as_json", "safetensors.numpy.save_file", "Path.rename"]


def failing_at(count: int, original: Callable[..., Any], error: BaseException) -> Any:
    """Return a function that raises ``error`` when it is called for the ``count``-th time."""
    calls = itertools.count(1)

    def call(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == count:
            raise error
        return original(*args, **kwargs)

    return call


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "disk full"), KeyboardInterrupt("killed")])
@pytest.mark.parametrize("call", CALLS)
def test_an_end_at_any_moment_leaves_the_checkpoints_before_as_they_were(
    call: str, error: BaseException, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fail at the first call, then at the second, and so on, until saving succeeds."""
    owner, _, name = call.rpartition(".")
    holder: Any = {"": files, "Path": Path, "safetensors.numpy": safetensors.numpy}[owner]
    new = saved.with_name("step-00000008")
    messages = []
    while not messages or messages[-1]:
        with monkeypatch.context() as patch:
            patch.setattr(holder, name, failing_at(len(messages) + 1, getattr(holder, name), error))
            try:
                files.save(new, ARRAYS, DOCUMENTS)
            except (CheckpointError, KeyboardInterrupt) as raised:
                messages.append(str(raised))
            else:
                messages.append("")
        assert files.load(saved).documents == DOCUMENTS
        if new.exists():  # the rename was made; only what follows it failed
            assert files.load(new).documents == DOCUMENTS
            shutil.rmtree(new)
        assert [path.name for path in saved.parent.iterdir()] == [saved.name]
    assert len(messages) > 1
    if isinstance(error, OSError):
        assert all("disk full" in each and str(new) in each for each in messages[:-1])


@pytest.mark.parametrize(("system", "mode"), [("nt", os.O_RDWR), ("posix", os.O_RDONLY)])
def test_a_file_is_open_as_its_system_needs_it_to_sync(
    system: str, mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"w")
    modes: list[int] = []

    def opened(path: Path, flags: int) -> int:
        modes.append(flags)
        return os.open(path, flags)

    known = {name: getattr(os, name) for name in ("O_RDWR", "O_RDONLY", "fsync", "close")}
    monkeypatch.setattr(files, "os", SimpleNamespace(name=system, open=opened, **known))
    files._sync(file)
    assert modes == [mode]


def test_everything_is_synced_before_the_name_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, str]] = []
    sync, rename = files._sync, Path.rename

    def synced(path: Path) -> None:
        done.append(("sync", path.name.split("-")[0]))
        sync(path)

    def renamed(self: Path, target: Path) -> Path:
        done.append(("rename", target.name))
        return rename(self, target)

    monkeypatch.setattr(files, "_sync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    files.save(tmp_path / "new", ARRAYS, DOCUMENTS)
    names = {"manifest.json", "model.safetensors", "optim.safetensors", "trainer.json"}
    assert set(done[:4]) == {("sync", name) for name in names}
    assert done[4:6] == [("sync", ".tmp"), ("rename", "new")]
    assert done[6][0] == "sync"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="Cannot write the checkpoint"):
        files.save(tmp_path / "file" / "step-1", ARRAYS, DOCUMENTS)
    with pytest.raises(CheckpointError, match="Cannot write"):
        files.write_pointer(tmp_path / "file" / "last.json", "step-1")


def test_a_pointer_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.json"
    files.write_pointer(path, "step-1", step=1)

    def fails(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "_sync", fails)
        with pytest.raises(CheckpointError, match="No space left"):
            files.write_pointer(path, "step-2")
    assert files.read_pointer(path) == {"checkpoint": "step-1", "step": 1}
    assert os.listdir(tmp_path) == ["last.json"]


@pytest.mark.parametrize("target", ["../other", "/etc", "", ".", "..", "a/b", 3, None])
def test_a_pointer_stays_in_its_folder(target: object, tmp_path: Path) -> None:
    path = tmp_path / "last.json"
    path.write_text(json.dumps({"checkpoint": target}))
    with pytest.raises(CheckpointError, match="no folder of this run"):
        files.read_pointer(path)


def test_one_document_can_be_read_alone(saved: Path) -> None:
    (saved / "model.safetensors").unlink()  # which nobody looks at
    assert files.load_document(saved, "trainer") == DOCUMENTS["trainer"]
    with pytest.raises(CheckpointError, match=r"'other\.json' is missing"):
        files.load_document(saved, "other")
    (saved / "other.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"entry of 'other\.json' is not understood"):
        files.load_document(saved, "other")
    (saved / "trainer.json").write_text('{"state": {"step": 8}}')
    with pytest.raises(CheckpointError, match=r"trainer\.json has \d+ of \d+ bytes"):
        files.load_document(saved, "trainer")


def test_what_could_not_be_read_again_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LARGEST_DOCUMENT", 1000)
    with pytest.raises(CheckpointError, match=r"trainer\.json would have .* Keep less"):
        files.save(tmp_path / "new", ARRAYS, {"trainer": {"seen": list(range(1000))}})
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_read_now_may_be_whole(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(file: Path) -> str:
        raise OSError(errno.EIO, "Input/output error", str(file))

    monkeypatch.setattr(files, "_sha256", broken)
    for read in (files.load, files.verify):
        with pytest.raises(Unreadable, match=r"Cannot read .* Input/output error.* Try again"):
            read(saved)
