"""Write ``golden/format-N``: an interrupted run, for later versions of vitkit to go on with.

Run by the version whose checkpoints are to be kept, once for each format, and never again::

    OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 python tests/faults/make_golden.py

``run/`` is what the run had left after step 7 of 10, in its second epoch: a best checkpoint, a
last one, and numbers; without ``env.json`` and locks, which tell of the machine. ``expected.json``
has the SHA-256 of the arrays, the logits of a few images, those after the same run undisturbed,
and what they were computed with.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from vitkit.checkpoint import files
from vitkit.cli.display import Console
from vitkit.config.load import load
from vitkit.config.runner import run
from vitkit.data import digits
from vitkit.train import plots
from vitkit.train.environment import numerics
from vitkit.train.restore import find_checkpoint, restore
from vitkit.train.state import TrainState

GOLDEN = Path(__file__).parent / "golden"
SETTINGS = [
    *("name=golden", "backend=numpy", "model.variant=Ti/4", "model.dim=4", "model.depth=1"),
    *("model.num_heads=1", "model.mlp_dim=8", "model.dropout=0.1", "data.augment=[]"),
    *("train.epochs=2", "train.batch_size=270", "train.lr=0.03", "train.ema_decay=0.9"),
    *("train.log_every=2", "train.keep=1"),
]
STOP_AT = 7
LOGITS = {"best": ("ema", "raw"), "last": ("ema", "raw")}
IMAGES = 4


class Silent(Console):
    """A display that keeps what it is told, and can stop the run at a step."""

    def __init__(self, stop_at: int = 0) -> None:
        super().__init__(quiet=True)
        self.stop_at = stop_at
        self.said: list[str] = []

    def on_step_end(self, state: TrainState, log: Any) -> None:
        if state.step == self.stop_at:
            state.stop = "interrupted"

    def say(self, line: str) -> None:
        self.said.append(line)

    def warn(self, line: str) -> None:
        self.say(line)


def logits(run_folder: Path) -> dict[str, list[list[float]]]:
    """Return the logits of a few test images by what the run's checkpoints hold."""
    images = digits().test.images(np.arange(IMAGES))
    found = {}
    for which, kinds in LOGITS.items():
        for kind in kinds:
            restored = restore(run_folder, which=which, weights=kind)
            y = restored.model(restored.preprocess(images, restored.model))
            found[f"{which} {kind}"] = [[float(number) for number in row] for row in y]
    return found


def digests(run_folder: Path) -> dict[str, str]:
    """Return the SHA-256 of what the best and the last checkpoint load as."""
    found = {}
    for which in LOGITS:
        checkpoint = files.load(find_checkpoint(run_folder, which))
        for stem, arrays in sorted(checkpoint.arrays.items()):
            digest = hashlib.sha256()
            for name, array in sorted(arrays.items()):
                digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
                digest.update(array.tobytes())
            found[f"{which} {stem}"] = digest.hexdigest()
    return found


def main() -> None:
    folder = GOLDEN / f"format-{files.FORMAT}"
    if folder.exists():
        sys.exit(f"{folder} is there: what a version has written is not to change.")
    plots.available = lambda: False
    config = load([], SETTINGS, environ={})
    run(config, folder / "run", Silent(STOP_AT))
    with tempfile.TemporaryDirectory() as temporary:
        undisturbed = Path(temporary) / "run"
        run(config, undisturbed, Silent())
        finished = logits(undisturbed)
    for left_out in ("env.json", "lock.json", ".lock"):
        (folder / "run" / left_out).unlink(missing_ok=True)
    expected = {
        "numerics": numerics(np),
        "arrays": digests(folder / "run"),
        "logits": logits(folder / "run"),
        "finished": finished,
    }
    (folder / "expected.json").write_text(json.dumps(expected) + "\n", encoding="utf-8")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{folder}: {size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
