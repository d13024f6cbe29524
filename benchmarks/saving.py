"""What checkpoints cost: the time of a save beside that of an epoch, of verifying, and of loading.

Usage: python benchmarks/saving.py [Ti|tiny] [--rounds N] [--folder DIR] [--out FILE]

A ViT-Ti/16 at 224 with AdamW and an average of its weights trains on random images, as `vitkit
train` does; then it is saved as at the end of an epoch, with the rotation of older checkpoints. A
round is a few steps and a save. No whole epoch is waited for: its time is that of the steps
measured, times their number. `--folder` says on which disk to save; a temporary one by default.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import command
import machine
import numpy as np
import report
import safetensors.numpy
from command import say

from vitkit import ViT
from vitkit.checkpoint import files, runs
from vitkit.data import Batch
from vitkit.ops import softmax_cross_entropy
from vitkit.optim import EMA, AdamW
from vitkit.train import Preprocess, TrainState, train_step
from vitkit.train.callbacks import Average, Checkpointing
from vitkit.train.callbacks.content import Content
from vitkit.train.restore import documents

TARGET_SHARE, TARGET_VERIFY = 0.02, 0.2  # of training; seconds for 66 MB
EPOCHS = {"1,281 steps": 1281, "1,000 images": None}
"""How many steps an epoch has; None where it is as many images that count."""
PIECES: dict[str, tuple[Any, str]] = {
    "to the host, all finite": (Content, "add_arrays"),
    "written": (safetensors.numpy, "save_file"),
    "hashed": (files, "_sha256"),
    "synced": (files, "_sync"),
    "rotated": (runs, "tidy"),
}
"""Which function does what of a save; what is left are names, JSON and pointers."""


@dataclass(frozen=True)
class Configuration:
    """A model and how it is trained between two saves."""

    variant: str
    image_size: int
    batch_size: int
    steps: int
    options: dict[str, int] = field(default_factory=dict)


TINY = {"dim": 32, "depth": 2, "num_heads": 2, "mlp_dim": 64}
CONFIGURATIONS = {
    "Ti": Configuration("Ti/16", 224, 32, steps=2),
    "tiny": Configuration("Ti/16", 32, 2, steps=1, options=TINY),
}


class Training:
    """A model in training, and what saves it."""

    def __init__(self, configuration: Configuration, folder: Path) -> None:
        size, count = configuration.image_size, configuration.batch_size
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (count, 3, size, size), np.uint8)
        self.batch = Batch(images, rng.integers(0, 10, count), np.arange(count), 0)
        self.preprocess = Preprocess(255.0, (0.5,) * 3, (0.25,) * 3)
        kind = {"num_classes": 10, "image_size": size, **configuration.options}
        self.model = ViT(configuration.variant, backend="numpy", seed=0, **kind)
        self.optimizer = AdamW().attach(self.model)
        self.ema = EMA(self.model, 0.999)
        self.state = TrainState(epochs=10**6, steps_per_epoch=configuration.steps)
        kept = documents(self.model, self.preprocess, tuple("0123456789"))
        self.checkpointing = Checkpointing(
            folder,
            self.model,
            self.optimizer,
            [Average(self.ema)],
            kept,
            ema=self.ema,
            monitor="train_loss",
        )

    def step(self) -> None:
        train_step(
            self.model, self.optimizer, [self.batch], softmax_cross_entropy, self.preprocess,
            lr=1e-3, seed=0, step=self.state.step, max_grad_norm=1.0,
        )  # fmt: skip
        self.ema.update()
        self.state.end_step(1, 0.0)

    def save(self) -> None:
        """Save as at the end of an epoch."""
        self.state.epoch += 1
        self.checkpointing.on_epoch_end(self.state)

    @property
    def last(self) -> Path:
        """The last checkpoint."""
        return self.checkpointing.folder / runs.FOLDER / self.checkpointing.last_name


@contextmanager
def pieces_timed() -> Iterator[dict[str, float]]:
    """Add up the seconds of each piece of a save that is made inside."""
    spent = dict.fromkeys(PIECES, 0.0)
    own = {name: getattr(*where) for name, where in PIECES.items()}

    def timed(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return own[name](*args, **kwargs)
            finally:
                spent[name] += time.perf_counter() - started

        return call

    try:
        for name, (place, attribute) in PIECES.items():
            setattr(place, attribute, timed(name))
        yield spent
    finally:
        for name, (place, attribute) in PIECES.items():
            setattr(place, attribute, own[name])


def seconds_of(call: Callable[..., Any], *args: Any) -> float:
    started = time.perf_counter()
    call(*args)
    return time.perf_counter() - started


def measure(configuration: Configuration, rounds: int, folder: Path) -> dict[str, Any]:
    """Return the seconds of steps, of saves and their pieces, of verifying and of loading."""
    training = Training(configuration, folder)
    # The first three are not rotated out of anything.
    for _ in range(3):
        training.step()
        training.save()
    found: dict[str, Any] = {name: [] for name in ("step", "save", "save, without average")}
    pieces: dict[str, list[float]] = {name: [] for name in (*PIECES, "rest")}
    reading: dict[str, dict[str, Any]] = {}
    for turn in range(rounds):
        say(f"round {turn + 1} of {rounds}")
        found["step"] += [seconds_of(training.step) for _ in range(configuration.steps)]
        with pieces_timed() as spent:
            found["save"].append(seconds_of(training.save))
        for name, seconds in {**spent, "rest": found["save"][-1] - sum(spent.values())}.items():
            pieces[name].append(seconds)
        checkpoint = files.load(training.last)
        smaller = folder / "without-average"
        arrays = {stem: each for stem, each in checkpoint.arrays.items() if stem != "ema"}
        save_smaller = seconds_of(files.save, smaller, arrays, checkpoint.documents)
        found["save, without average"].append(save_smaller)
        for name, path in (("whole", training.last), ("without average", smaller)):
            row = reading.setdefault(name, {"bytes": size_of(path), "verify": [], "load": []})
            row["verify"].append(seconds_of(files.verify, path))
            row["load"].append(seconds_of(files.load, path))
        shutil.rmtree(smaller)
    return {
        "parameters": training.model.num_parameters,
        "kept": len(runs.entries(folder)),
        "seconds": found,
        "pieces": pieces,
        "reading": reading,
    }


def size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir())


def load() -> float | None:
    """Return how many programs have kept processors busy, over a minute; ours at the end."""
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None


def shares(found: dict[str, Any], batch_size: int) -> dict[str, Any]:
    """Return what part of training saving takes, by the length of an epoch, at a save an epoch."""
    step, save = report.spread(found["step"]), report.spread(found["save"])
    made = {}
    for name, steps in EPOCHS.items():
        count = steps or 1000 / batch_size
        epoch = count * step["median"]
        made[name] = {
            "steps": count,
            "epoch_seconds_estimated": epoch,
            "share": save["median"] / (epoch + save["median"]),
            "share_at_worst": save["max"] / (count * step["min"] + save["max"]),
        }
    return made


def main() -> int:
    made = command.parser(__doc__, rounds=10, names=CONFIGURATIONS, name="Ti")
    made.add_argument("--folder", type=Path, help="where to save; a temporary folder by default")
    arguments = command.parse(made, ())
    configuration = CONFIGURATIONS[arguments.name]
    busy = [load()]
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        found = measure(configuration, arguments.rounds, Path(folder))
    busy.append(load())
    seconds = found["seconds"]
    whole: dict[str, Any] = {
        "benchmark": "saving",
        "command": command.command_line(),
        **machine.describe(arguments.threads),
        "load_average": busy,
        "name": arguments.name,
        "configuration": asdict(configuration),
        "rounds": arguments.rounds,
        "parameters": found["parameters"],
        "checkpoints_kept": found["kept"],
        "times": {name: {**report.spread(each), "seconds": each} for name, each in seconds.items()},
        "pieces": {
            name: {**report.spread(each), "seconds": each} for name, each in found["pieces"].items()
        },
        "reading": {
            name: {
                "bytes": row["bytes"],
                **{
                    what: {**report.spread(row[what]), "seconds": row[what]}
                    for what in ("verify", "load")
                },
            }
            for name, row in found["reading"].items()
        },
        "share_of_training": shares(seconds, configuration.batch_size),
        # Whatever the machine that trains: an epoch as long as this spends the target on saving.
        "shortest_epoch_seconds": report.spread(seconds["save"])["median"] * (1 / TARGET_SHARE - 1),
        "targets": {"share_of_training": TARGET_SHARE, "verify_seconds_of_66_mb": TARGET_VERIFY},
    }
    if arguments.out:
        report.write(whole, arguments.out)
    show(whole, arguments.style)
    return 0


def show(found: dict[str, Any], style: str) -> None:
    """Print the tables."""
    spread = ("median", "min", "max")
    size = found["reading"]["whole"]["bytes"] / 1e6
    print(
        f"{found['configuration']['variant']}, {found['parameters']:,} parameters, checkpoints of "
        f"{size:.0f} MB, {found['machine']['threads']} threads, {found['rounds']} rounds; "
        f"{found['machine']['processor']}, {found['date']}; load average "
        f"{' to '.join(map(str, found['load_average']))}\n"
    )
    rows = [("a step", found["times"]["step"]), ("a save", found["times"]["save"])]
    rows += [(f"- {name}", each) for name, each in found["pieces"].items()]
    for name, each in found["reading"].items():
        title = f"{each['bytes'] / 1e6:.0f} MB ({name})"
        if name != "whole":
            rows.append((f"a save of {title}", found["times"][f"save, {name}"]))
        rows += [(f"verifying {title}", each["verify"]), (f"loading {title}", each["load"])]
    cells = [[name, *(f"{1e3 * each[part]:.1f}" for part in spread)] for name, each in rows]
    print(report.table(("what", "ms", "min", "max"), cells, style))
    print("\nA save an epoch; epochs are estimated from steps\n")
    cells = [
        [
            f"{name} of {found['configuration']['batch_size']}" if "steps" in name else name,
            f"{each['epoch_seconds_estimated']:.1f}",
            f"{each['share']:.2%}",
            f"{each['share_at_worst']:.2%}",
        ]
        for name, each in found["share_of_training"].items()
    ]
    print(report.table(("an epoch", "seconds", "saving", "at worst"), cells, style))
    print(
        f"\nAn epoch of {found['shortest_epoch_seconds']:.1f} s or more spends less than "
        f"{found['targets']['share_of_training']:.0%} on its save."
    )


if __name__ == "__main__":
    sys.exit(main())
