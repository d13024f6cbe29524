"""F7: a damaged checkpoint is refused, or it is read as it was written; it is never wrong.

Safetensors has no checksum of its own: a flipped bit would load as a wrong weight without a word.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from injecting import Injected, faults
from mutations import MUTATIONS

from vitkit.backend import philox
from vitkit.checkpoint import Checkpoint, load, save, verify
from vitkit.errors import CheckpointError

COUNT = faults(10_000, 1_000_000)


def content_of(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def write(path: Path, step: int) -> None:
    rng = philox(0, "f07", step)
    model = {
        "blocks.0.attn.qkv.weight": rng.standard_normal((12, 4)).astype("float32"),
        "blocks.0.norm1.bias": rng.standard_normal(4).astype("float32"),
        "head.weight": rng.standard_normal((3, 4)).astype("float32"),
    }
    optim = {f"{name}.exp_avg": array + 1 for name, array in model.items()}
    arrays = {"model": model, "optim": {**optim, "step": np.asarray(step)}, "ema": model}
    state = {"step": step, "epoch": 1, "metrics": {"val_loss": 0.5}}
    callbacks = {"checkpointing": {"best_name": "step-00000001", "best": 0.25}}
    trainer = {"state": state, "callbacks": callbacks, "model": {"dim": 4}}
    save(path, arrays, {"trainer": trainer}, {"numpy": "2.4", "threads": "2"})


def same(one: Checkpoint, two: Checkpoint) -> bool:
    """Whether two checkpoints hold the same, bit by bit."""
    if one.documents != two.documents or one.environment != two.environment:
        return False
    names = {stem: list(arrays) for stem, arrays in one.arrays.items()}
    if {stem: list(arrays) for stem, arrays in two.arrays.items()} != names:
        return False
    return all(
        array.dtype == two.arrays[stem][name].dtype
        and array.shape == two.arrays[stem][name].shape
        and array.tobytes() == two.arrays[stem][name].tobytes()
        for stem, arrays in one.arrays.items()
        for name, array in arrays.items()
    )


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Return a checkpoint, and another of the same run."""
    write(tmp_path / "step-00000002", 2)
    write(tmp_path / "step-00000003", 3)
    return tmp_path / "step-00000002", tmp_path / "step-00000003"


def test_no_mutation_is_silently_wrong(pair: tuple[Path, Path], injected: Injected) -> None:
    path = pair[0]
    whole, content = load(path), content_of(path)
    names = list(content)
    refused = equal = named = 0
    for number in range(COUNT):
        rng = philox(0, "f07", number)
        name = names[int(rng.integers(len(names)))]
        mutated = MUTATIONS[int(rng.integers(len(MUTATIONS)))](content[name], rng)
        (path / name).write_bytes(mutated)
        try:
            found = load(path)
        except CheckpointError as error:
            refused += 1
            named += str(path) in str(error)
        else:
            equal += 1
            assert same(found, whole), f"mutation {number} of {name} loads, and is wrong"
            if name != "manifest.json":
                assert mutated == content[name]
        (path / name).write_bytes(content[name])
    assert same(load(path), whole)
    assert named == refused, "an error does not say which checkpoint it is about"
    injected("damaged files refused", refused, at_least=round(0.8 * COUNT))
    injected("damaged files that are read as they were written", equal, at_least=0)


def test_files_of_another_step_are_told_apart(pair: tuple[Path, Path], injected: Injected) -> None:
    path, other = pair
    content, others = content_of(path), content_of(other)
    count = 0
    for name in content:
        (path / name).write_bytes(others[name])
        if name == "manifest.json" or others[name] != content[name]:
            with pytest.raises(CheckpointError):
                load(path)
            count += 1
        (path / name).write_bytes(content[name])
    for name in content:
        for replaced in content:
            if name != replaced:
                (path / name).write_bytes(content[replaced])
                if content[name] != content[replaced]:
                    with pytest.raises(CheckpointError):
                        load(path)
                    count += 1
                (path / name).write_bytes(content[name])
    injected("files exchanged", count, at_least=15)


def test_edits_of_the_manifest(pair: tuple[Path, Path], injected: Injected) -> None:
    """Values of other types, and entries that are missing or too many, in every place."""
    path = pair[0]
    text = (path / "manifest.json").read_text()
    manifest = json.loads(text)
    odd = [None, True, -1, 2**70, 1e400, "", "../x", [], {}, [[]], {"a": 1}, "\0", "a" * 300]
    count = 0

    def refused(edited: object) -> None:
        nonlocal count
        (path / "manifest.json").write_text(json.dumps(edited))
        for read in (load, verify):
            with pytest.raises(CheckpointError):
                read(path)
        count += 1

    for value in odd:
        refused(value)
        for key in manifest:
            if value != manifest[key] and (key, value) != ("format", True):
                refused({**manifest, key: value})
        for name, entry in manifest["files"].items():
            refused({**manifest, "files": {**manifest["files"], name: value}})
            refused({**manifest, "files": {**manifest["files"], str(value): entry}})
            for key in entry:
                changed = {**entry, key: value}
                refused({**manifest, "files": {**manifest["files"], name: changed}})
    for key in ("format", "files", "environment", "environment_sha256"):
        refused({k: v for k, v in manifest.items() if k != key})
    (path / "manifest.json").write_text(text)
    load(path)
    injected("edits of a manifest refused", count, at_least=200)


def test_what_is_missing_or_no_file(pair: tuple[Path, Path], injected: Injected) -> None:
    path, other = pair
    content = content_of(path)
    count = 0
    for name in content:
        for kind in ("missing", "folder", "symlink", "broken symlink"):
            (path / name).unlink()
            if kind == "folder":
                (path / name).mkdir()
            elif kind == "symlink":
                (path / name).symlink_to(other / name)
            elif kind == "broken symlink":
                (path / name).symlink_to(other / "nothing")
            with pytest.raises(CheckpointError):
                load(path)
            count += 1
            shutil.rmtree(path / name) if kind == "folder" else (path / name).unlink(True)
            (path / name).write_bytes(content[name])
    injected("files missing or of another kind", count, at_least=16)
