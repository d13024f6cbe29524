"""Steps of a run that are executed again, and compared with what it recorded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import vitkit.checkpoint.files as files
from vitkit.checkpoint import entries
from vitkit.cli.display import Console
from vitkit.config.load import load
from vitkit.config.runner import run
from vitkit.config.verify import verify
from vitkit.errors import CheckpointError, ConfigError
from vitkit.train import plots

SETTINGS = """backend=numpy model.variant=Ti/4 model.dim=16 model.depth=1 model.num_heads=2
model.mlp_dim=32 model.dropout=0.1 train.epochs=2 train.batch_size=270 train.ema_decay=0.9
train.save_every=2 train.log_every=1 train.keep=99""".split()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "available", lambda: False)
        run(load([], SETTINGS, environ={}), folder, Console(quiet=True))
    assert [entry.path.name for entry in entries(folder)] == [
        *("step-00000010", "step-00000008", "step-00000006", "step-00000005"),
        *("step-00000004", "step-00000002"),
    ]
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def spoil(checkpoint: Path, stem: str) -> None:
    """Change one number of a checkpoint, and its manifest too, so that it is believed."""
    found = files.load(checkpoint)
    array = next(each for each in found.arrays[stem].values() if each.dtype.kind == "f")
    array.reshape(-1)[:1] += np.float32(1e-3)
    shutil.rmtree(checkpoint)
    files.save(checkpoint, found.arrays, found.documents, found.environment)


def test_all_that_was_recorded_is_compared(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    found = verify(folder, Console(quiet=True), start="step-00000002")
    assert found.same
    assert (found.start, found.steps, found.twice) == ("step-00000002", 8, False)
    assert [each["what"] for each in found.compared] == [
        *("step-00000004", "step-00000005", "step-00000006", "step-00000008", "step-00000010"),
        "metrics.jsonl",
    ]
    assert all(each["equal"] == ["ema", "model", "optim"] for each in found.compared[:-1])
    assert found.compared[-1]["rows"] == 10  # eight steps and two epochs
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize("stem", ["model", "optim", "ema"])
def test_one_number_that_differs_is_named(stem: str, folder: Path) -> None:
    spoil(folder / "checkpoints/step-00000006", stem)
    found = verify(folder, Console(quiet=True), steps=3, start="step-00000004")
    assert not found.same
    (line,) = next(e["differs"] for e in found.compared if e["what"] == "step-00000006")
    assert line.startswith(f"{stem}: 1 of ")
    assert "by up to 0.001" in line


def test_a_start_that_differs_shows_in_all_that_follows(folder: Path) -> None:
    spoil(folder / "checkpoints/step-00000004", "optim")
    found = verify(folder, Console(quiet=True), steps=3, start="step-00000004")
    assert not found.same
    assert not any(each["same"] for each in found.compared if each["what"].startswith("step"))


def test_numbers_are_compared_where_no_checkpoint_is_in_reach(folder: Path) -> None:
    found = verify(folder, Console(quiet=True), steps=1)
    assert (found.start, found.steps) == ("step-00000008", 1)
    assert [each["what"] for each in found.compared] == ["metrics.jsonl"]
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows:
        if (row["event"], row["step"]) == ("step", 9):
            row["train_loss"] += 1
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    found = verify(folder, Console(quiet=True), steps=1)
    assert not found.same
    assert found.compared[0]["differs"][0].startswith("step 9: train_loss was")


def test_where_nothing_is_recorded_two_executions_are_compared(folder: Path) -> None:
    (folder / "metrics.jsonl").unlink()
    found = verify(folder, Console(quiet=True), steps=1, start="step-00000008")
    assert found.same
    assert found.twice
    assert [each["what"] for each in found.compared] == ["step-00000009"]


def test_there_must_be_a_step_to_execute(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"step-00000010 is the end.*step-00000008\."):
        verify(folder, Console(quiet=True), start="step-00000010")
    with pytest.raises(ConfigError, match=r"--from: got 'best', expected one of step-00000002, "):
        verify(folder, Console(quiet=True), start="best")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        verify(tmp_path / "nothing", Console(quiet=True))
    weights = folder / "checkpoints/step-00000008/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="Cannot trust"):
        verify(folder, Console(quiet=True), start="step-00000008")


def test_another_environment_is_said(folder: Path) -> None:
    path = folder / "checkpoints/step-00000008"
    found = files.load(path)
    shutil.rmtree(path)
    environment = {**found.environment, "threads": "64"}
    files.save(path, found.arrays, found.documents, environment)
    (line,) = verify(folder, Console(quiet=True)).environment
    assert "threads was 64" in line


def test_a_run_that_saved_each_step_is_found_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "available", lambda: False)
    run(
        load([], [*SETTINGS, "train.save_every=1"], environ={}),
        tmp_path / "run",
        Console(quiet=True),
    )
    found = verify(tmp_path / "run", Console(quiet=True), start="step-00000001")
    assert found.same
    assert len(found.compared) == 10
