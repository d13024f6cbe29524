"""F8: a checkpoint that somebody made on purpose, hashes and all, is refused, and nothing runs.

An audit hook watches while it is read: no code is compiled or executed, no module is imported, no
process started, no socket made, and no file opened outside the checkpoint.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from injecting import Injected

from vitkit.checkpoint.files import MANIFEST, _as_json, _sha256
from vitkit.errors import CheckpointError
from vitkit.models import ViT
from vitkit.train import Preprocess, restore
from vitkit.train.restore import documents

FORBIDDEN = ("exec", "compile", "import", "subprocess", "socket", "os.system", "os.exec", "os.fork")
FORBIDDEN += ("os.posix_spawn", "pickle", "ctypes.dlopen", "marshal", "code.")
watched: list[tuple[str, Any]] | None = None


def _watch(event: str, args: tuple[Any, ...]) -> None:
    if watched is not None and (event == "open" or event.startswith(FORBIDDEN)):
        watched.append((event, args[0] if args else None))


sys.addaudithook(_watch)


@contextmanager
def audited(path: Path) -> Iterator[None]:
    """Assert that a block runs nothing, and opens nothing outside a folder."""
    global watched
    watched = []
    try:
        yield
    finally:
        events, watched = watched, None
    opened = [str(arg) for event, arg in events if event == "open"]
    assert [each for each in opened if not each.startswith(str(path))] == []
    assert [event for event, _ in events if event != "open"] == []


class Payload:
    """What unpickling would run."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.mark),))


def sign(path: Path) -> None:
    """Give a folder a manifest with which all its plain files are believed."""
    listed = {
        file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)}
        for file in sorted(path.iterdir())
        if file.is_file() and not file.is_symlink() and file.name != MANIFEST
    }
    (path / MANIFEST).write_text(_as_json({"format": 1, "files": listed}))


def sound(path: Path) -> None:
    """Write a checkpoint that loads."""
    model = ViT("Ti/4", image_size=4, in_channels=1, num_classes=2, dim=8, depth=1, num_heads=1)
    path.mkdir()
    arrays = {name: np.asarray(array) for name, array in model.state_dict().items()}
    safetensors.numpy.save_file(arrays, path / "model.safetensors")
    preprocess = Preprocess(255, (0.5,), (0.5,))
    trainer = documents(model, preprocess, ("a", "b")) | {"state": {"step": 1}, "callbacks": {}}
    (path / "trainer.json").write_text(_as_json(trainer))
    sign(path)


def header(entries: dict[str, Any], data: bytes = b"") -> bytes:
    """Return a safetensors file with a header of our own."""
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + data


def zipped(names: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in names.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def weights(mark: Path) -> dict[str, bytes]:
    """Return what stands in the place of ``model.safetensors``, by what it is."""
    payload = pickle.dumps(Payload(mark))
    objects = io.BytesIO()
    np.save(objects, np.array([Payload(mark)], dtype=object), allow_pickle=True)
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    odd_entries: dict[str, Any] = {
        "overlap": {"a": entry, "b": entry},
        "gap": {"a": entry, "b": {**entry, "data_offsets": [12, 20]}},
        "outside": {"a": {**entry, "data_offsets": [0, 2**40]}},
        "backwards": {"a": {**entry, "data_offsets": [8, 0]}},
        "negative offset": {"a": {**entry, "data_offsets": [-8, 0]}},
        "negative shape": {"a": {**entry, "shape": [-2]}},
        "overflowing shape": {"a": {**entry, "shape": [2**33, 2**33]}},
        "overflowing to the size": {"a": {**entry, "shape": [2**63, 2**63, 2]}},
        "no such dtype": {"a": {**entry, "dtype": "O"}},
        "a dtype of objects": {"a": {**entry, "dtype": "object"}},
        "a dtype of code": {"a": {**entry, "dtype": "__import__('os').system('true')"}},
        "shape of strings": {"a": {**entry, "shape": ["2"]}},
        "shape of floats": {"a": {**entry, "shape": [2.0]}},
        "huge rank": {"a": {**entry, "shape": [1] * 100_000 + [2]}},
        "no offsets": {"a": {"dtype": "F32", "shape": [2]}},
        "a list": {"a": [1, 2]},
        "metadata of objects": {"__metadata__": {"a": {"b": 1}}, "a": entry},
        "no tensors": {},
        "other tensors": {"a": entry},
    }
    deep = b"[" * 100_000 + b"]" * 100_000
    twice = b'{"a":%b,"a":%b}' % ((json.dumps(entry).encode(),) * 2)
    return {
        "a pickle": payload,
        "a pickle, protocol 0": pickle.dumps(Payload(mark), 0),
        "a zip": zipped({"data.pkl": payload, "../../x": b"x"}),
        "a file of PyTorch": zipped({"archive/data.pkl": payload, "archive/version": b"3"}),
        "an npz": zipped({"a.npy": objects.getvalue()}),
        "an npy of objects": objects.getvalue(),
        "an HDF5": b"\x89HDF\r\n\x1a\n" + bytes(512),
        "a script": b"#!/bin/sh\nmkdir " + str(mark).encode(),
        "ELF": b"\x7fELF" + bytes(100),
        "nothing": b"",
        "text": b"weights",
        "a header of 99 MB": (99_000_000).to_bytes(8, "little") + b"{}",
        "a header of 2^64": b"\xff" * 8 + b"{}",
        "a deep header": len(deep).to_bytes(8, "little") + deep,
        "two tensors of a name": len(twice).to_bytes(8, "little") + twice + bytes(8),
        "a header that is no JSON": (5).to_bytes(8, "little") + b"{'a':",
        "a header that is no UTF-8": (4).to_bytes(8, "little") + b"\xff\xfe\xfd\xfc",
        **{name: header(found, bytes(8)) for name, found in odd_entries.items()},
    }


def trainers(mark: Path) -> Iterator[tuple[str, Any]]:
    """Yield what stands in the place of ``trainer.json``: a change of the sound one, or a text."""
    code = f"__import__('os').mkdir({str(mark)!r})"
    names = ["os.system", "os:mkdir", "builtins.eval", "vitkit.models.ViT", code, "../x", "\0"]
    for name in names:
        for key in ("activation", "mlp", "norm", "attention", "pool", "init"):
            yield f"{key} {name}", lambda t, k=key, n=name: t["model"].update({k: n})
    for key in ("dim", "depth", "num_heads", "mlp_dim", "num_classes", "image_size", "patch_size"):
        for value in (0, -1, 2**31, 2**70, 1.5, float("nan"), "8", None, [8], {"a": 1}, True):
            yield f"{key} {value}", lambda t, k=key, v=value: t["model"].update({k: v})
    for key in ("model", "preprocess", "classes"):
        yield f"no {key}", lambda t, k=key: t.pop(k)
        for value in (None, 1, "x", [], {}):
            if (key, value) != ("classes", []):
                yield f"{key} {value}", lambda t, k=key, v=value: t.update({k: v})
    yield "an unknown key", lambda t: t["model"].update({"__class__": "os.system"})
    yield "a precision", lambda t: t.update({"precision": {"served": "os.system"}})
    for key, value in (("scale", "x"), ("mean", ["a"]), ("std", [0.0]), ("mean", [[1]])):
        yield f"preprocess {key}", lambda t, k=key, v=value: t["preprocess"].update({k: v})
    yield "deep", "[" * 100_000 + "]" * 100_000
    yield "deep objects", '{"a":' * 100_000 + "1" + "}" * 100_000
    yield "a list", "[]"
    yield "no JSON", "import os"
    yield "YAML", "!!python/object/apply:os.system ['true']"
    yield "a huge integer", '{"model": {"dim": ' + "9" * 100_000 + "}}"
    yield "two of a name", '{"model": {}, "model": {}}'


def manifests() -> Iterator[tuple[str, Callable[[dict[str, Any], Path], None]]]:
    """Yield changes of the manifest."""
    other = {"bytes": 0, "sha256": "0" * 64}
    for name in (
        *("../secret.json", "/etc/passwd", "a/b.json", "..", ".", "", "\0.json", "C:\\x.json"),
        *("..\\x.json", "model.safetensors/", "x.pkl", "x.py", "x.so", "trainer.JSON", "~/x.json"),
    ):
        yield f"lists {name!r}", lambda m, p, n=name: m["files"].update({n: other})
    yield "newer", lambda m, p: m.update({"format": 2})
    yield "much newer", lambda m, p: m.update({"format": 10**30})
    for value in (0, -1, "1", None, [1], {"a": 1}, 1.5):
        yield f"format {value}", lambda m, p, v=value: m.update({"format": v})
    yield "no files", lambda m, p: m.update({"files": {}})


def special_files() -> Iterator[tuple[str, Callable[[Path], None]]]:
    """Yield what a member of the folder is made, once the manifest is written."""
    for name in ("model.safetensors", "trainer.json", MANIFEST):
        yield f"{name} a FIFO", lambda p, n=name: (os.remove(p / n), os.mkfifo(p / n))
        yield (
            f"{name} a device",
            lambda p, n=name: (*(os.remove(p / n), (p / n).symlink_to("/dev/zero")),),
        )
        yield (
            f"{name} a symlink",
            lambda p, n=name: (*((p / n).rename(p.parent / n), (p / n).symlink_to(p.parent / n)),),
        )
        yield (
            f"{name} a symlink to itself",
            lambda p, n=name: (*(os.remove(p / n), (p / n).symlink_to(p / n)),),
        )
        yield f"{name} a folder", lambda p, n=name: (os.remove(p / n), (p / n).mkdir())


def refused(path: Path, mark: Path, what: str) -> None:
    """Assert that a checkpoint is refused without a deed."""
    with audited(path), pytest.raises(CheckpointError) as error:
        restore(path)
    assert not mark.exists(), f"{what}: it ran"
    assert len(str(error.value)) < 4000, f"{what}: the message is endless"


@pytest.fixture
def place(tmp_path: Path) -> Callable[[], Path]:
    """Return a maker of sound checkpoints, once reading one has imported what that takes."""
    original = tmp_path / "sound"
    sound(original)
    restore(original)
    with audited(original):
        restore(original)
    with pytest.raises(CheckpointError):  # what an error imports
        restore(tmp_path / "nothing")

    def make() -> Path:
        shutil.rmtree(tmp_path / "case", ignore_errors=True)
        return Path(shutil.copytree(original, tmp_path / "case"))

    return make


def test_weights_that_are_something_else(
    place: Callable[[], Path], tmp_path: Path, injected: Injected
) -> None:
    mark, count = tmp_path / "mark", 0
    for what, content in weights(mark).items():
        path = place()
        (path / "model.safetensors").write_bytes(content)
        sign(path)
        refused(path, mark, what)
        count += 1
    injected("hostile weights", count, at_least=34)


def test_documents_that_name_something_else(
    place: Callable[[], Path], tmp_path: Path, injected: Injected
) -> None:
    mark, count = tmp_path / "mark", 0
    for what, change in trainers(mark):
        path = place()
        file = path / "trainer.json"
        if isinstance(change, str):
            file.write_text(change)
        else:
            trainer = json.loads(file.read_text())
            before = json.dumps(trainer)
            change(trainer)
            assert json.dumps(trainer) != before, what
            file.write_text(json.dumps(trainer))
        sign(path)
        refused(path, mark, what)
        count += 1
    injected("hostile documents", count, at_least=130)


def test_manifests(place: Callable[[], Path], tmp_path: Path, injected: Injected) -> None:
    mark, count = tmp_path / "mark", 0
    for what, change in manifests():
        path = place()
        manifest = json.loads((path / MANIFEST).read_text())
        change(manifest, path)
        (path / MANIFEST).write_text(json.dumps(manifest))
        refused(path, mark, what)
        count += 1
    injected("hostile manifests", count, at_least=20)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no FIFO")
def test_members_that_are_no_files(
    place: Callable[[], Path], tmp_path: Path, injected: Injected
) -> None:
    count = 0
    for what, change in special_files():
        path = place()
        change(path)
        refused(path, tmp_path / "mark", what)
        for left in ("model.safetensors", "trainer.json", MANIFEST):
            (tmp_path / left).unlink(missing_ok=True)
        count += 1
    injected("members that are no plain files", count, at_least=15)
