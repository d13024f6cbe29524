"""What a finished run has left, to be compared with that of another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from vitkit.checkpoint import load, runs

CLOCK = ("seconds", "images_per_second")


def finished(place: Path) -> dict[str, Any]:
    """Return all that a finished run has left, but for the clock."""
    (run,) = {path.parents[1] for path in place.glob("runs/*/checkpoints/step-*")}
    left = [path for path in run.rglob("*") if path.name.startswith(runs.LEFT)]
    assert not left, "what a killed process leaves half written is removed"
    pointers = {name: json.loads((run / f"{name}.json").read_text()) for name in ("last", "best")}
    last = load(run / "checkpoints" / pointers["last"]["checkpoint"])
    last.documents["trainer"]["state"].pop("seconds")
    arrays = {
        f"{stem} {name}": (array.dtype.str, array.shape, np.asarray(array).tobytes())
        for stem, named in last.arrays.items()
        for name, array in named.items()
    }
    lines = (run / "metrics.jsonl").read_text().splitlines()
    rows = [{k: v for k, v in json.loads(line).items() if k not in CLOCK} for line in lines]
    summary = json.loads((run / "summary.json").read_text())
    for name in ("seconds", "plots"):  # children draw none
        summary.pop(name)
    return {
        "arrays": arrays,
        "trainer": last.documents["trainer"],
        "rows": rows,
        "pointers": pointers,
        "summary": summary,
    }
