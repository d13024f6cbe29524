"""What a finished run has left, to be compared with that of another."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from forking import TINY, Server, quick_folder, serving

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


class Undisturbed(NamedTuple):
    """A server, where to work, what a run that nobody disturbs leaves, and how long it takes."""

    server: Server
    folder: Path
    whole: dict[str, Any]
    seconds: float


@contextmanager
def undisturbed(
    otherwise: Path, arguments: Sequence[str] = TINY, **environment: str
) -> Iterator[Undisturbed]:
    """Have such a run in ``undisturbed`` of a folder in memory, if there is such a place."""
    with quick_folder(otherwise) as folder, serving(**environment) as server:
        (place := folder / "undisturbed").mkdir()
        started = time.monotonic()
        end = server.run(*arguments, cwd=place)
        seconds = time.monotonic() - started
        assert (end.code, end.stderr) == (0, "")
        yield Undisturbed(server, folder, finished(place), seconds)


def stop(found: Undisturbed, step: int) -> None:
    """Leave in ``stopped/runs/a`` a run that SIGTERM has ended at a step."""
    (place := found.folder / "stopped").mkdir()
    at = {"inject": "injections:stop_after", "step": step}
    assert found.server.run(*TINY, cwd=place, **at).code == 143
    (run,) = (place / "runs").iterdir()
    run.rename(run.with_name("a"))
