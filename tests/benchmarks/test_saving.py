"""``benchmarks/saving.py`` measures every piece of a save, and leaves what was timed as it was."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PIECES = ("to the host, all finite", "written", "hashed", "synced", "rotated")


def test_what_a_save_costs(tmp_path: Path) -> None:
    out, disk = tmp_path / "found.json", tmp_path / "disk"
    disk.mkdir()
    options = ["--dry", "--folder", str(disk), "--out", str(out)]
    end = subprocess.run(
        [sys.executable, str(BENCHMARKS / "saving.py"), *options],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert end.returncode == 0, end.stderr
    assert list(disk.iterdir()) == []
    found = json.loads(out.read_text())
    assert found["command"].startswith("python benchmarks/saving.py --dry --folder")
    assert {"python", "vitkit", "numpy"} <= set(found["versions"])
    save, pieces = found["times"]["save"]["median"], found["pieces"]
    assert [*pieces] == [*PIECES, "rest"]
    assert sum(piece["median"] for piece in pieces.values()) == pytest.approx(save, rel=1e-3)
    assert all(piece["median"] > 0 for piece in pieces.values())  # each still does its part
    whole, smaller = found["reading"].values()
    arrays = 4 * found["parameters"]
    assert 4 * arrays < whole["bytes"] < 4 * arrays + 40_000  # weights, two moments, average
    assert 3 * arrays < smaller["bytes"] < 3 * arrays + 30_000
    assert found["checkpoints_kept"] == 2
    step = found["times"]["step"]["median"]
    long, short = found["share_of_training"].values()
    for each, steps in ((long, 1281), (short, 500)):
        assert each["epoch_seconds_estimated"] == pytest.approx(steps * step, rel=1e-3)
        assert each["share"] == pytest.approx(save / (steps * step + save), rel=1e-3)
    epoch = found["shortest_epoch_seconds"]
    assert save / (epoch + save) == pytest.approx(0.02, rel=1e-3)
    for said in (*PIECES, "1,281 steps of 2", "epochs are estimated from steps"):
        assert said in end.stdout
