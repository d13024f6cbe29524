"""F3: a run resumed from any of its steps ends with the bits of the undisturbed one.

The run has 40 steps in two epochs, two batches a step, of which the last is a part, augmentation,
dropout, validation, early stopping and a best checkpoint; every step writes a checkpoint, and every
one of them is resumed from, for three optimizers, with and without averaged weights.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from injecting import Injected, faults

import vitkit.checkpoint.files as files
from vitkit.checkpoint import Checkpoint, entries, load
from vitkit.cli.display import Console
from vitkit.config.load import load as load_config
from vitkit.config.runner import run
from vitkit.train import plots

OPTIMIZERS = ["adamw", "sgd(momentum=0.9)", "lion"]
STEPS = 40
CLOCK = ("seconds", "images_per_second")
SETTINGS = """backend=numpy model.variant=Ti/4 model.dim=16 model.depth=1 model.num_heads=2
model.mlp_dim=32 model.dropout=0.1 model.drop_path=0.1 data.augment=['crop(padding=1)','flip']
train.epochs=2 train.batch_size=33 train.grad_accum=2 train.lr=1e-3 train.patience=5
train.log_every=3 train.save_every=1""".split()


class Silent(Console):
    """Shows nothing, and lets no run say that its last digits may differ."""

    def warn(self, line: str) -> None:
        assert "differ" not in line, line


def trained(folder: Path, settings: list[str], *, resume: bool = False) -> dict[str, Any]:
    stored = [folder / "config.toml"] if resume else []
    return run(load_config(stored, settings, environ={}), folder, Silent(quiet=True), resume=resume)


def rows(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(each).items() if k not in CLOCK} for each in lines]


def end(folder: Path) -> Checkpoint:
    return load(entries(folder)[0].path)


def assert_same(ours: Checkpoint, theirs: Checkpoint) -> None:
    """Compare two checkpoints bit by bit, but for the clock."""
    assert ours.path.name == theirs.path.name
    assert ours.arrays.keys() == theirs.arrays.keys()
    for stem, arrays in theirs.arrays.items():
        assert ours.arrays[stem].keys() == arrays.keys()
        for name, array in arrays.items():
            same = ours.arrays[stem][name].tobytes() == np.asarray(array).tobytes()
            assert same, f"{stem}: {name} has other bits"
    for document in (ours.documents["trainer"], theirs.documents["trainer"]):
        document["state"].pop("seconds")
    assert ours.documents == theirs.documents


def cut_off(whole: Path, at: int, folder: Path) -> None:
    """Copy a run as it was when the checkpoint of a step had just been written."""
    (folder / "checkpoints").mkdir(parents=True)
    for name in ("config.toml", "metrics.jsonl"):
        shutil.copyfile(whole / name, folder / name)
    for entry in entries(whole):
        if entry.step <= at:
            place = folder / "checkpoints" / entry.path.name
            shutil.copytree(entry.path, place, copy_function=os.link)  # nothing writes over them


@pytest.mark.parametrize("ema", [True, False], ids=["averaged", "raw"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_step(
    optimizer: str, ema: bool, tmp_path: Path, injected: Injected, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "available", lambda: False)
    monkeypatch.setattr(files, "_sync", lambda path: None)  # no machine fails here
    averaged = f"train.ema_decay={0.9 if ema else 'none'}"
    settings = [*SETTINGS, f"optimizer={optimizer}", averaged, "train.keep=1000"]
    whole = tmp_path / "whole"
    summary = trained(whole, settings)
    assert summary["steps"] == STEPS
    steps = sorted({entry.step for entry in entries(whole)})
    assert steps == list(range(1, STEPS + 1))
    every = max(1, round(1 / min(1.0, faults(STEPS) / STEPS)))
    resumed = 0
    for at in steps[:-1:every]:
        folder = tmp_path / f"from-{at}"
        cut_off(whole, at, folder)
        again = trained(folder, ["train.save_every=none"], resume=True)
        assert {**again, "seconds": 0} == {**summary, "seconds": 0}
        assert_same(end(folder), end(whole))
        assert rows(folder) == rows(whole)
        shutil.rmtree(folder)
        resumed += 1
    injected("steps resumed from", resumed, at_least=STEPS - 1 if every == 1 else 1)
