"""The checkpoints of a run folder: their order, and which are trusted."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import vitkit.checkpoint.files as files
from vitkit.checkpoint import NewerFormat, Unreadable, entries, latest, load_latest, runs
from vitkit.errors import CheckpointError

NAMES = """step-00000002 step-00000010 step-00000010-open step-00000010-2 step-00000009
step-00000011-partial step-123456789""".split()
OTHERS = """step-1 step-00000001-other .tmp-step-00000001-7 .old-step-00000001 mine
step-00000001-partial-open""".split()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for name in NAMES:
        trainer = {"callbacks": {"checkpointing": {"best_name": "step-00000002"}}}
        files.save(
            tmp_path / "checkpoints" / name, {"model": {"x": np.ones(2)}}, {"trainer": trainer}
        )
    for name in OTHERS:
        (tmp_path / "checkpoints" / name).mkdir()
    return tmp_path


def spoil(run: Path, name: str, file: str = "model.safetensors") -> None:
    path = run / "checkpoints" / name / file
    path.write_bytes(path.read_bytes() + b" ")


def test_the_latest_come_first(run: Path) -> None:
    assert [entry.path.name for entry in entries(run)] == [
        *("step-123456789", "step-00000010-2", "step-00000010", "step-00000010-open"),
        *("step-00000009", "step-00000002", "step-00000011-partial"),
    ]
    assert entries(run / "nothing") == []


def test_a_damaged_one_is_passed_over_and_said(run: Path) -> None:
    spoil(run, "step-123456789")
    checkpoint, refused = load_latest(run)
    assert checkpoint.path.name == "step-00000010-2"
    assert len(refused) == 1
    assert "step-123456789: model.safetensors has" in refused[0]
    assert latest(run).name == "step-123456789"  # only its position was looked at
    spoil(run, "step-123456789", "trainer.json")
    assert latest(run).name == "step-00000010-2"


def test_what_is_partial_is_better_than_nothing(run: Path) -> None:
    for name in NAMES:
        if "partial" not in name:
            spoil(run, name)
    checkpoint, refused = load_latest(run)
    assert checkpoint.path.name == "step-00000011-partial"
    assert len(refused) == len(NAMES) - 1


def test_where_none_can_be_trusted_each_is_named(run: Path, tmp_path: Path) -> None:
    for name in NAMES:
        spoil(run, name)
    with pytest.raises(CheckpointError, match="has no checkpoint that can be trusted") as error:
        load_latest(run)
    assert all(name in str(error.value) for name in NAMES)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        load_latest(run)
    with pytest.raises(CheckpointError, match="There is no"):
        load_latest(tmp_path / "nothing")


def test_one_of_a_later_version_is_not_passed_over(run: Path) -> None:
    manifest = run / "checkpoints/step-123456789/manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(NewerFormat, match="has format 2, and this vitkit reads format 1"):
        load_latest(run)


def test_a_name_is_never_used_twice(run: Path) -> None:
    assert runs.free_name(run, 3) == "step-00000003"
    assert runs.free_name(run, 10) == "step-00000010-3"
    assert runs.free_name(run, 10, ended=False) == "step-00000010-open-2"
    assert runs.free_name(run, 11, partial=True) == "step-00000011-partial-2"


def test_what_is_kept(run: Path) -> None:
    assert runs.to_keep(run, 1, 10, ["step-00000009"]) - {""} == {
        *("step-00000010-2", "step-00000009", "step-00000002")
    }
    assert "step-123456789" not in runs.to_keep(run, 9, 10, [])  # of a run that was given up
    runs.tidy(run, {"step-00000002", "step-00000011-partial"})
    left = {path.name for path in (run / "checkpoints").iterdir()}
    assert left == {
        *("step-00000002", "step-00000011-partial", "step-1", "step-00000001-other", "mine"),
        "step-00000001-partial-open",
    }


def test_one_that_cannot_be_read_now_is_not_passed_over(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(file: Path) -> str:
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(files, "_sha256", broken)
    with pytest.raises(Unreadable, match="step-123456789"):
        load_latest(run)


def test_a_run_that_was_ended_before_its_first_checkpoint_is_told_how_to_begin(
    tmp_path: Path,
) -> None:
    (tmp_path / "config.toml").write_text("")
    with pytest.raises(CheckpointError, match=r"vitkit train --config .*config\.toml"):
        load_latest(tmp_path)
