"""F25: a long run takes no more memory, files or disk in its last hour than in its first.

A small model trains for half an hour with validation, checkpoints within epochs, which take turns,
threads that prepare batches, and pictures now and then. A callback measures the process at the end
of every epoch, always at the same point of the loop. By night only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from injecting import Injected, faults

import vitkit

SECONDS = faults(1800, 1800)
STEPS = SECONDS * 5  # at least; a machine that is busy makes 20 a second
WARM_UP = 0.25  # of the run: compiling, pools of threads and memory, the first pictures
SLOPE = 1.0  # MiB a thousand steps
CHECKPOINTS = 6  # two of the latest and the best of each, the best, and that being written
WORKERS = 2
LIMITED = ("mib", "files", "threads", "checkpoints", "disk")
LEFT = {
    *("config.toml", "env.json", "metrics.jsonl", "log.txt", "summary.json", "last.json"),
    *("best.json", "checkpoints", "plots", "meter.jsonl", "curve.png", "attention.png"),
    *(".lock", "lock.json"),
}
RUN = f"""train --model Ti/4 --backend numpy --batch-size 64 --epochs 1000000 --lr 1e-3 --quiet
--plugin meter.py --set model.dim=16 --set model.depth=2 --set model.num_heads=2
--set model.mlp_dim=32 --set model.dropout=0.1 --set data.num_workers={WORKERS}
--set train.ema_decay=0.99 --set train.log_every=10 --set train.save_every=7
--set train.callbacks=['meter']""".split()
METER = """
import gc, json, os
from pathlib import Path
from vitkit import hookimpl
from vitkit.data import digits
from vitkit.train import Preprocess, plots
from vitkit.train.callbacks import Callback

class Meter(Callback):
    def __init__(self, model, folder):
        self.model, self.folder = model, folder
        self.data = digits()

    def on_epoch_end(self, state):
        if (state.epoch < 5 or state.epoch % 50 == 0) and plots.available():
            plots.learning_curve(self.folder / "metrics.jsonl", self.folder / "curve.png")
            preprocess = Preprocess.of(self.data.train)
            path = self.folder / "attention.png"
            plots.attention_picture(self.model, self.data.test, preprocess, path)
            gc.collect()  # figures are cycles; some would be seen, until it comes by itself
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        place = self.folder / "checkpoints"
        kept = list(place.iterdir()) if place.exists() else []
        row = {
            "step": state.step,
            "mib": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
            "files": len(os.listdir("/proc/self/fd")),
            "threads": len(os.listdir("/proc/self/task")),
            "checkpoints": len(kept),
            "disk": sum(file.stat().st_size for folder in kept for file in folder.iterdir()),
        }
        with (self.folder / "meter.jsonl").open("a") as stream:
            stream.write(json.dumps(row) + "\\n")

@hookimpl
def register_callbacks(register):
    register("meter", Meter)
"""


@pytest.mark.skipif(
    os.environ.get("VITKIT_FAULT_TIER") != "N",
    reason="half an hour: by night only, with VITKIT_FAULT_TIER=N",
)
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="there is no /proc to measure by")
@pytest.mark.timeout(SECONDS + 900)
def test_a_long_run_takes_no_more_and_more(
    tmp_path: Path, injected: Injected, record_property: Callable[[str, object], None]
) -> None:
    (tmp_path / "meter.py").write_text(METER)
    ours = {key: value for key, value in os.environ.items() if not key.startswith("VITKIT_")}
    end = subprocess.run(
        [sys.executable, "-m", "vitkit", *RUN, "--max-time", f"{SECONDS}s"],
        cwd=tmp_path,
        env={**ours, "PYTHONPATH": str(Path(vitkit.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=SECONDS + 600,
    )
    assert end.returncode == 0, end.stderr
    (run,) = (tmp_path / "runs").iterdir()
    rows = [json.loads(line) for line in (run / "meter.jsonl").read_text().splitlines()]
    table = {key: np.array([row[key] for row in rows]) for key in rows[0]}
    warm = table["step"] > WARM_UP * table["step"][-1]
    after = {key: column[warm] for key, column in table.items()}
    slope = 1000 * np.polyfit(after["step"], after["mib"], 1)[0]
    found = {
        "steps": int(table["step"][-1]),
        "MiB a thousand steps": round(float(slope), 4),
        **{key: [int(after[key].min()), int(after[key].max())] for key in LIMITED},
    }
    record_property("injected", f"in {SECONDS} s: {found}")
    assert slope < SLOPE, found
    assert np.ptp(after["files"]) == 0, found
    assert after["threads"].max() <= 1 + WORKERS, found
    assert after["checkpoints"].max() <= CHECKPOINTS, found
    assert after["disk"].max() <= CHECKPOINTS * largest(run), found
    assert {path.name for path in run.iterdir()} <= LEFT, found
    injected("steps with their checkpoints", int(table["step"][-1]), at_least=STEPS)


def largest(run: Path) -> int:
    """Return the bytes of the largest checkpoint, which all have the same arrays."""
    sizes = [
        sum(file.stat().st_size for file in each.iterdir())
        for each in (run / "checkpoints").iterdir()
    ]
    return max(sizes) + 4096  # numbers in documents are longer or shorter
