"""``vitkit checkpoint`` and ``vitkit verify``."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vitkit.cli import main, train
from vitkit.config.lock import locked
from vitkit.errors import CheckpointError, ConfigError

SAVES = ["--epochs", "2", "--set", "train.save_every=2", "--set", "train.keep=9"]


def invoke(*arguments: str | Path, code: int = 0) -> str:
    """Return what a command prints to stdout, in this process; its errors are raised."""
    result = CliRunner().invoke(main.app, [str(each) for each in arguments], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, small: list[str], compiled: None) -> Path:
    out = tmp_path_factory.mktemp("checkpoints")
    invoke(*small, *SAVES, "--out", out, "-q")
    (folder,) = out.iterdir()
    return Path(folder)


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def damage(folder: Path, name: str) -> None:
    weights = folder / "checkpoints" / name / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_checkpoints_are_listed(folder: Path) -> None:
    rows = json.loads(invoke("checkpoint", "list", folder, "--json"))
    assert [row["name"] for row in rows] == names(folder)[::-1]
    assert rows[0]["remarks"][0] == "last"
    assert rows[0]["epoch"] == 2
    assert sum("best" in row["remarks"] for row in rows) == 1
    table = invoke("checkpoint", "list", folder).splitlines()
    assert table[0].split() == ["checkpoint", "step", "epoch", "MB", "remarks"]
    assert len(table) == len(rows) + 1
    (folder / "checkpoints" / rows[1]["name"] / "trainer.json").unlink()
    assert "damaged" in invoke("checkpoint", "list", folder).splitlines()[2]


def test_one_damaged_checkpoint_is_found(folder: Path) -> None:
    assert invoke("checkpoint", "verify", folder).count("every hash is right") == len(names(folder))
    name = names(folder)[1]
    damage(folder, name)
    found = invoke("checkpoint", "verify", folder, code=1)
    assert found.count("every hash is right") == len(names(folder)) - 1
    assert "the content of model.safetensors has changed" in found
    assert name in invoke("checkpoint", "verify", folder / "checkpoints" / name, code=1)
    report = json.loads(invoke("checkpoint", "verify", folder, "--json", code=1))
    assert [name in each["checkpoint"] for each in report if each["problem"]] == [True]


def test_pruning_keeps_the_latest_and_the_best(folder: Path) -> None:
    before = names(folder)
    best = json.loads((folder / "best.json").read_text())["checkpoint"]
    assert "would remove" in invoke("checkpoint", "prune", folder, "--dry-run")
    assert names(folder) == before
    removed = json.loads(invoke("checkpoint", "prune", folder, "--json"))["removed"]
    assert set(names(folder)) == {before[-1], best}
    assert len(removed) == len(before) - len(names(folder))
    assert invoke("checkpoint", "prune", folder) == "nothing to remove\n"


def test_pruning_leaves_what_is_whole(folder: Path) -> None:
    before = names(folder)
    damage(folder, before[-1])
    invoke("checkpoint", "prune", folder)
    assert before[-2] in names(folder)
    for name in names(folder):
        damage(folder, name)
    left = names(folder)
    assert invoke("checkpoint", "prune", folder) == "nothing to remove\n"
    assert names(folder) == left


def test_a_run_at_work_is_not_pruned(folder: Path) -> None:
    with locked(folder), pytest.raises(CheckpointError, match=r"Another process \(pid \d+ on "):
        invoke("checkpoint", "prune", folder)
    with pytest.raises(CheckpointError, match="is no run folder"):
        invoke("checkpoint", "prune", folder / "nothing")
    assert not (folder / "nothing").exists()


def test_a_run_is_verified(folder: Path) -> None:
    text = invoke("verify", folder, "-q", "--from", names(folder)[0], "--steps", "3")
    assert text.startswith("3 steps from step-00000002\n")
    assert text.splitlines()[1].split(maxsplit=1) == [
        "step-00000004",
        "the same bits: model, optim",
    ]
    assert text.endswith("\nthe same\n")
    found = json.loads(invoke("verify", folder, "-q", "--steps", "1", "--json"))
    assert found["same"] is True
    assert found["steps"] == 1


def test_a_run_that_differs_has_another_exit_code(folder: Path) -> None:
    path = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[-1]["train_loss"] += 1
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    text = invoke("verify", folder, "-q", code=1)
    assert "train_loss was" in text
    assert text.endswith("\nNOT the same\n")
    with pytest.raises(ConfigError, match="--from: got 'x'"):
        invoke("verify", folder, "-q", "--from", "x")


def test_auto_is_the_run_that_was_saved_last(trained: Path, tmp_path: Path) -> None:
    for age, name in enumerate(("new", "old")):
        folder = Path(shutil.copytree(trained, tmp_path / name))
        for checkpoint in (folder / "checkpoints").iterdir():
            os.utime(checkpoint, (10**9 - age, 10**9 - age))
    os.utime(tmp_path / "old" / "checkpoints")
    assert train._folder_to_resume("auto", tmp_path).name == "new"
