"""F24: a checkpoint of every format there has been loads, and its run is taken up and finished.

``golden/format-N`` was written by the version that began the format (see ``make_golden.py``). Its
arrays load bit for bit everywhere. What is computed from them is compared bit for bit where
everything that the last digits depend on is as it was, and elsewhere to tolerances.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from injecting import Injected
from make_golden import GOLDEN, STOP_AT, Silent, digests, logits

import vitkit
from vitkit.checkpoint import NewerFormat, files, load_latest
from vitkit.config.load import load
from vitkit.config.runner import run
from vitkit.errors import CheckpointError
from vitkit.train import plots
from vitkit.train.environment import numerics
from vitkit.train.restore import restore

ALL = sorted(GOLDEN.glob("format-*"))
SAME_WEIGHTS = 1e-5  # of logits near 1, summed otherwise on another machine
TRAINED_ON = 1e-3  # of logits after three more steps; without moments or average over 0.1 off
VERSIONS = ("vitkit", "python")  # which change no number by themselves

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "available", lambda: False)


@pytest.fixture(params=ALL, ids=lambda path: path.name)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """Return a copy of a golden run folder, and what is expected of it."""
    folder: Path = request.param
    shutil.copytree(folder / "run", tmp_path / "run")
    return tmp_path / "run", json.loads((folder / "expected.json").read_text("utf-8"))


def close(
    found: dict[str, Any], expected: dict[str, Any], made_with: dict[str, str], to: float
) -> None:
    """Compare logits, bit for bit where numbers are made as they were."""
    now = numerics(np)
    same = all(now.get(k) == v for k, v in made_with.items() if k not in VERSIONS)
    assert found.keys() == expected.keys()
    for name, numbers in expected.items():
        np.testing.assert_allclose(found[name], numbers, rtol=0, atol=0 if same else to)


def finish(folder: Path) -> Silent:
    """Take a run up, and train to its end."""
    display = Silent()
    summary = run(load([folder / "config.toml"], environ={}), folder, display, resume=True)
    assert (summary["epochs"], summary["steps"], summary["stopped"]) == (2, 10, None)
    return display


def edit(folder: Path, name: str, change: Change) -> None:
    """Change a JSON file of every checkpoint, with its manifest, as another version wrote it."""
    for checkpoint in (folder / "checkpoints").iterdir():
        file, listing = checkpoint / name, checkpoint / files.MANIFEST
        document = json.loads(file.read_text("utf-8"))
        change(document)
        file.write_text(json.dumps(document), "utf-8")
        if file != listing:
            manifest = json.loads(listing.read_text("utf-8"))
            content = file.read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            manifest["files"][name] = {"bytes": len(content), "sha256": digest}
            listing.write_text(json.dumps(manifest), "utf-8")


def test_there_is_one_of_every_format(injected: Injected) -> None:
    assert [path.name for path in ALL] == [f"format-{n + 1}" for n in range(files.FORMAT)]
    injected("older formats", len(ALL))


def test_it_loads_bit_for_bit(golden: tuple[Path, dict[str, Any]]) -> None:
    folder, expected = golden
    assert digests(folder) == expected["arrays"]
    checkpoint, refused = load_latest(folder)
    assert (checkpoint.path.name[:13], refused) == (f"step-{STOP_AT:08d}", [])
    assert checkpoint.environment == expected["numerics"]


def test_its_model_says_what_it_said(golden: tuple[Path, dict[str, Any]]) -> None:
    folder, expected = golden
    close(logits(folder), expected["logits"], expected["numerics"], SAME_WEIGHTS)


def test_its_run_is_finished(golden: tuple[Path, dict[str, Any]]) -> None:
    folder, expected = golden
    display = finish(folder)
    close(logits(folder), expected["finished"], expected["numerics"], TRAINED_ON)
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    rows = [(row["event"], row["step"]) for row in map(json.loads, lines)]
    steps = [("step", step) for step in (2, 4, 6, 8, 10)]
    assert rows == [*steps[:2], ("epoch", 5), *steps[2:], ("epoch", 10)]
    said = [line for line in display.said if line.startswith("The last digits may differ")]
    assert bool(said) == (numerics(np) != expected["numerics"])


def test_the_command_line_finishes_it(golden: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = golden
    end = vitkit_command("train", "--resume", str(folder), "--json")
    assert end.returncode == 0, end.stderr
    assert json.loads(end.stdout)["steps"] == 10


def vitkit_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    blocked = "import runpy, sys; sys.modules['matplotlib'] = None\n"
    start = "runpy.run_module('vitkit', run_name='__main__', alter_sys=True)"
    return subprocess.run(
        [sys.executable, "-c", blocked + start, *arguments],
        cwd=Path(vitkit.__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=120,
    )


def without(*path: str) -> Change:
    """Return what takes something out of a document."""

    def change(document: dict[str, Any]) -> None:
        for key in path[:-1]:
            document = document[key]
        del document[path[-1]]

    return change


OLDER: dict[str, tuple[str, Change]] = {
    "no environment": (
        "manifest.json",
        lambda d: (d.pop("environment"), d.pop("environment_sha256")),
    ),
    "no precision": ("trainer.json", without("precision")),
    "no plugins": ("trainer.json", without("plugins")),
    "not whether the last was written": (
        "trainer.json",
        without("callbacks", "checkpointing", "written"),
    ),
    **{
        f"state without {name}": ("trainer.json", without("state", name))
        for name in ("skipped", "skipped_in_a_row", "updating")
    },
    **{
        f"recorder without {name}": ("trainer.json", without("callbacks", "recorder", name))
        for name in ("skipped", "in_a_row")
    },
}
"""What versions that wrote format 1 did not write yet."""
LATER: dict[str, tuple[str, Change]] = {
    "more beside the state": ("trainer.json", lambda d: d.update(future={"a": [1, None]})),
    "more in the state": ("trainer.json", lambda d: d["state"].update(future=1)),
    "another callback": ("trainer.json", lambda d: d["callbacks"].update(future={"seen": 3})),
    "more of a callback": ("trainer.json", lambda d: d["callbacks"]["recorder"].update(future=1)),
}
"""What a later version may add without another format; to the manifest it may add nothing."""
OLDER_SETTINGS = ("save_every", "keep", "nonfinite", "graph", "precision")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return what the run of format 1 leaves as it is."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    shutil.copytree(GOLDEN / "format-1" / "run", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "available", lambda: False)
        finish(folder)
    return digests(folder)


def of_format_1(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "format-1" / "run", tmp_path / "run"))


@pytest.mark.parametrize("what", [*OLDER, *LATER])
def test_what_another_version_writes_otherwise(
    what: str, tmp_path: Path, finished: dict[str, str]
) -> None:
    folder = of_format_1(tmp_path)
    edit(folder, *(OLDER | LATER)[what])
    finish(folder)
    assert digests(folder) == finished


def test_all_that_an_older_version_did_not_write(
    tmp_path: Path, finished: dict[str, str], injected: Injected
) -> None:
    folder = of_format_1(tmp_path)
    for name, change in OLDER.values():
        edit(folder, name, change)
    settings = folder / "config.toml"
    lines = settings.read_text("utf-8").splitlines()
    kept = [line for line in lines if line.partition(" = ")[0] not in OLDER_SETTINGS]
    assert len(lines) - len(kept) == len(OLDER_SETTINGS)
    settings.write_text("\n".join(kept) + "\n", "utf-8")
    display = finish(folder)
    assert digests(folder) == finished
    assert not [line for line in display.said if "may differ" in line]  # nothing to compare with
    injected("ways in which another version writes", len(OLDER) + len(LATER), at_least=13)


@pytest.mark.parametrize("by", [1, 41, 10**12])
def test_a_newer_format_says_what_to_do(by: int, tmp_path: Path) -> None:
    folder, newer = of_format_1(tmp_path), files.FORMAT + by
    last = folder / "checkpoints" / files.read_pointer(folder / "last.json")["checkpoint"]
    manifest = json.loads((last / files.MANIFEST).read_text("utf-8"))
    (last / files.MANIFEST).write_text(
        json.dumps({**manifest, "format": newer, "more": 1}), "utf-8"
    )
    before = sorted(folder.rglob("*"))
    said = f"format {newer}, and this vitkit reads format {files.FORMAT}: upgrade vitkit."
    for read in (files.load, files.verify, restore):
        with pytest.raises(NewerFormat, match=f"{last.name} has {said}"):
            read(last)
    with pytest.raises(NewerFormat, match=said):  # and goes on from no older one instead
        load_latest(folder)
    with pytest.raises(CheckpointError, match=said):
        finish(folder)
    assert sorted(folder.rglob("*")) == before
    if by == 1:
        end = vitkit_command("train", "--resume", str(folder))
        assert (end.returncode, end.stdout) == (1, "")
        (line,) = end.stderr.splitlines()
        assert line.startswith("vitkit: ")
        assert said in line
