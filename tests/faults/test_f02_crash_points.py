"""F2: a process that ends before any call of the system leaves a run that can be trusted.

The calls that change a disk are numbered while an operation runs, and the process ends before the
first, then before the second, and so on, in a child each: what it leaves is what a kill leaves.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from injecting import Injected

import vitkit.checkpoint.files as files
from vitkit.checkpoint import load_latest, runs
from vitkit.models import ViT
from vitkit.optim import AdamW
from vitkit.train import TrainState
from vitkit.train.callbacks import Checkpointing, JsonLines

if not hasattr(os, "fork"):
    pytest.skip("a child that ends at a call is made by fork", allow_module_level=True)

ENDED = 70


class Counter:
    """Ends the process before the call of a number."""

    def __init__(self, at: int) -> None:
        self.left = at

    def wrapped(self, call: Callable[..., object]) -> Callable[..., object]:
        def counted(*args: object, **kwargs: object) -> object:
            self.left -= 1
            if self.left < 0:
                os._exit(ENDED)
            return call(*args, **kwargs)

        return counted


def number_the_calls(at: int) -> None:
    """Have this process end before its call number ``at`` that changes the disk."""
    import safetensors.numpy

    counter = Counter(at)
    for name in ("mkdir", "rename", "replace", "fsync", "unlink", "rmdir", "write"):
        setattr(os, name, counter.wrapped(getattr(os, name)))
    # What pathlib and safetensors do without these names.
    Path.write_text = counter.wrapped(Path.write_text)  # type: ignore[method-assign]
    Path.open = counter.wrapped(Path.open)  # type: ignore[method-assign]
    safetensors.numpy.save_file = counter.wrapped(safetensors.numpy.save_file)


def ends_at(at: int, operation: Callable[[], None]) -> bool:
    """Run an operation in a child; return whether it ended at that call, and not of itself."""
    child = os.fork()
    if not child:
        code = 1
        try:
            number_the_calls(at)
            operation()
            code = 0
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, ENDED), f"the operation failed at call {at}"
    return status == ENDED


def every_crash(
    folder: Path, operation: Callable[[Path], None], whole_after: Callable[[Path, bool], None]
) -> int:
    """End an operation on copies of a folder at every call; return at how many it was ended."""
    at = 0
    while True:
        copy = folder.with_name(f"{folder.name}-{at}")
        shutil.copytree(folder, copy)
        ended = ends_at(at, lambda copy=copy: operation(copy))  # type: ignore[misc]
        whole_after(copy, ended)
        shutil.rmtree(copy)
        if not ended:
            return at
        at += 1


class Run:
    """A run folder with a model, that can be saved at any step."""

    def __init__(self) -> None:
        self.model = ViT(
            "Ti/4", image_size=4, in_channels=1, num_classes=2, dim=8, depth=1, num_heads=1
        )
        self.optimizer = AdamW(1e-3).attach(self.model)

    def saver(self, folder: Path, keep: int = 2) -> Checkpointing:
        return Checkpointing(folder, self.model, self.optimizer, [], {}, keep=keep)

    def save(
        self, folder: Path, step: int, loss: float, *, saver: Checkpointing | None = None
    ) -> None:
        saver = saver or self.resumed(folder)
        for _, parameter in self.model.named_parameters():
            parameter.value[...] = step
        saver.on_epoch_end(TrainState(epochs=99, step=step, epoch=step, metrics={"val_loss": loss}))

    def resumed(self, folder: Path) -> Checkpointing:
        saver = self.saver(folder)
        trainer = load_latest(folder)[0].documents["trainer"]
        saver.load_state_dict(trainer["callbacks"]["checkpointing"])
        return saver


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    """Return a run with three checkpoints: the best, and the latest two."""
    run, folder = Run(), tmp_path_factory.mktemp("f02") / "run"
    folder.mkdir()
    run.save(folder, 1, 0.5, saver=run.saver(folder))
    run.save(folder, 2, 0.9)
    run.save(folder, 3, 0.8)
    return run, folder


def trusted(folder: Path, steps: set[int]) -> int:
    """Return the step of the latest checkpoint, all of whose weights are of that step."""
    checkpoint, refused = load_latest(folder)
    assert not refused, "what a killed process leaves is whole, or not there"
    step = int(checkpoint.documents["trainer"]["state"]["step"])
    assert step in steps
    for array in checkpoint.arrays["model"].values():
        assert np.all(array == step)
    best = files.read_pointer(folder / "best.json")["checkpoint"]
    files.verify(folder / "checkpoints" / best)
    return step


@pytest.mark.parametrize(("loss", "best"), [(0.1, 4), (0.9, 1)], ids=["new best", "not the best"])
def test_saving(made: tuple[Run, Path], injected: Injected, loss: float, best: int) -> None:
    run, folder = made

    def after(copy: Path, ended: bool) -> None:
        assert trusted(copy, {3, 4}) == 4 or ended
        run.save(copy, 5, 0.7)  # the next process goes on, and cleans up
        trusted(copy, {5})
        names = {path.name for path in (copy / "checkpoints").iterdir()}
        assert not [name for name in names if name.startswith(runs.LEFT)]
        found = {runs.best_of(copy / "checkpoints" / "step-00000005")}
        assert found <= {f"step-{best:08d}", "step-00000001"}

    points = every_crash(folder, lambda copy: run.save(copy, 4, loss), after)
    injected("crash points of a save with its pointers and rotation", points, at_least=25)


def test_saving_where_nothing_is_yet(
    made: tuple[Run, Path], injected: Injected, tmp_path: Path
) -> None:
    run = made[0]
    folder = tmp_path / "run"
    folder.mkdir()

    def after(copy: Path, ended: bool) -> None:
        if not runs.entries(copy):
            assert ended
        else:
            trusted_first(copy)

    def trusted_first(copy: Path) -> None:
        checkpoint, refused = load_latest(copy)
        assert not refused
        assert checkpoint.path.name == "step-00000001"

    points = every_crash(folder, lambda copy: run.save(copy, 1, 0.5, saver=run.saver(copy)), after)
    injected("crash points of a first save", points, at_least=15)


def test_pruning(made: tuple[Run, Path], injected: Injected) -> None:
    folder = made[1]

    def after(copy: Path, ended: bool) -> None:
        trusted(copy, {3})
        assert ended or len(runs.entries(copy)) == 2

    def prune(copy: Path) -> None:
        runs.remove(runs.prunable(copy, 1))

    injected("crash points of pruning", every_crash(folder, prune, after), at_least=4)


def test_a_pointer(made: tuple[Run, Path], injected: Injected) -> None:
    folder = made[1]

    def after(copy: Path, ended: bool) -> None:
        found = files.read_pointer(copy / "last.json")["checkpoint"]
        assert found == "step-00000001" or (ended and found == "step-00000003")

    points = every_crash(
        folder, lambda copy: files.write_pointer(copy / "last.json", "step-00000001"), after
    )
    injected("crash points of a pointer", points, at_least=4)


def test_metrics(injected: Injected, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    rows = [{"event": "step", "step": n, "epoch": 0, "train_loss": 0.5} for n in range(1, 9)]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows[:6]))

    def resume(copy: Path) -> None:
        sink = JsonLines(copy / "metrics.jsonl", TrainState(step=4))
        for row in rows[4:]:
            sink(row)

    def after(copy: Path, ended: bool) -> None:
        again = JsonLines(copy / "metrics.jsonl", TrainState(step=4))
        for row in rows[4:]:
            again(row)
        found = (copy / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in found] == rows

    injected("crash points of metrics", every_crash(folder, resume, after), at_least=6)


def test_a_small_file(injected: Injected, tmp_path: Path) -> None:
    """What other code commits with :func:`vitkit.checkpoint.write_file` is old or new."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.toml").write_text("seed = 1\n")

    def after(copy: Path, ended: bool) -> None:
        text = (copy / "config.toml").read_text()
        assert text == "seed = 2\n" or (ended and text == "seed = 1\n")

    points = every_crash(
        folder, lambda copy: files.write_file(copy / "config.toml", "seed = 2\n"), after
    )
    injected("crash points of a small file", points, at_least=4)
