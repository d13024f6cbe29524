"""F21: whatever happens to a run, what it goes on from, its best and one that is whole stay.

Random sequences of what happens to a run folder: saves within epochs and at their ends, a new best,
a process killed between a checkpoint and its pointers, a checkpoint damaged, a resume with another
``keep``, pruning. Syncing is left out, since no machine fails here; the order is F2's.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_sequences
from injecting import Injected, faults

import vitkit.checkpoint.files as files
from vitkit.checkpoint import entries, load_latest, runs
from vitkit.errors import CheckpointError
from vitkit.train import TrainState
from vitkit.train.callbacks import Checkpointing

PER_EPOCH = 3
seen = {"sequences": 0, "saves": 0, "kills": 0, "damaged": 0, "resumes": 0}


class Numbers:
    """Stands for a model or an optimizer: a few numbers."""

    def state_dict(self) -> dict[str, np.ndarray]:
        return {"w": np.ones(2, np.float32)}


class Killed(BaseException):
    """Ends a process between two calls."""


class Folder(RuleBasedStateMachine):
    """A run folder, and what must be true of it."""

    def __init__(self) -> None:
        super().__init__()
        seen["sequences"] += 1
        self.folder = Path(tempfile.mkdtemp(prefix="vitkit-f21-"))
        self.state = TrainState(epochs=99, steps_per_epoch=PER_EPOCH)
        self.keep = 2
        self.saver = self.new_saver()
        self.damaged: set[str] = set()

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    def new_saver(self) -> Checkpointing:
        numbers: Any = Numbers()
        return Checkpointing(self.folder, numbers, numbers, [], {}, keep=self.keep)

    def whole(self) -> list[str]:
        """Return the checkpoints that can be resumed from, the latest first."""
        names = [entry.path.name for entry in entries(self.folder)]
        return [name for name in names if name not in self.damaged]

    @rule(loss=st.integers(0, 5), saves=st.booleans())
    def step(self, loss: int, saves: bool) -> None:
        """Make a step, or end the epoch after its last."""
        if self.state.position == PER_EPOCH:
            self.state.epoch, self.state.position = self.state.epoch + 1, 0
            self.state.metrics = {"val_loss": float(loss)}
            self.saver.on_epoch_end(self.state)
            seen["saves"] += 1
            self.named_after_save()
            return
        self.state.end_step(1, 0.0)
        if saves:
            self.saver.save(self.state)
            seen["saves"] += 1

    def named_after_save(self) -> None:
        names = [entry.path.name for entry in entries(self.folder)]
        last = files.read_pointer(self.folder / "last.json")["checkpoint"]
        best = files.read_pointer(self.folder / "best.json")["checkpoint"]
        assert last == self.saver.last_name == names[0]
        assert best == self.saver.best_name
        assert best in names, "the best was removed"
        resumed = self.saver.resumed_from
        assert not resumed or resumed in names, "what the run was resumed from was removed"
        assert set(self.whole()[: self.keep]) <= set(names)
        assert len(names) <= 2 * self.keep + 4, "the disk fills up"

    @rule(at=st.sampled_from(["last.json", "best.json", "rotation"]))
    def killed_in_a_save(self, at: str) -> None:
        """End the process after a checkpoint was written, before a pointer or the rotation."""
        if self.state.position == PER_EPOCH:
            return
        self.state.end_step(1, 0.0)
        write = files.write_pointer

        def written(path: Path, *args: Any, **kwargs: Any) -> None:
            if path.name == at:
                raise Killed
            write(path, *args, **kwargs)

        def tidied(*args: Any) -> None:
            raise Killed

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files, "write_pointer", written)
            if at == "rotation":
                patch.setattr(runs, "tidy", tidied)
            try:
                self.saver.save(self.state)
            except Killed:
                seen["kills"] += 1
        (self.folder / "checkpoints" / ".tmp-step-00000001-1").mkdir(exist_ok=True)
        self.resume(self.keep)

    @precondition(lambda self: self.whole())
    @rule(keep=st.integers(1, 3))
    def resume(self, keep: int) -> None:
        """Go on in a new process from the latest that is whole."""
        self.keep, seen["resumes"] = keep, seen["resumes"] + 1
        checkpoint, refused = load_latest(self.folder)
        assert checkpoint.path.name == self.whole()[0]
        names = [entry.path.name for entry in entries(self.folder)]
        assert len(refused) == names.index(checkpoint.path.name)
        trainer = checkpoint.documents["trainer"]
        best = trainer["callbacks"]["checkpointing"]["best_name"]
        assert not best or best in names, "the best of what is resumed from was removed"
        self.state = TrainState.from_dict(trainer["state"])
        self.saver = self.new_saver()
        self.saver.load_state_dict(trainer["callbacks"]["checkpointing"])

    @precondition(lambda self: len(self.whole()) > 1)
    @rule(which=st.integers(0, 3))
    def damage(self, which: int) -> None:
        """Flip a bit of a checkpoint; the process that wrote it goes on, or another does."""
        names = self.whole()
        name = names[which % len(names)]
        weights = self.folder / "checkpoints" / name / "model.safetensors"
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
        self.damaged.add(name)
        seen["damaged"] += 1
        self.resume(self.keep)

    @precondition(lambda self: self.whole())
    @rule(keep=st.integers(1, 2))
    def prune(self, keep: int) -> None:
        """Prune, as the command does; a process that is at work is not let do it."""
        best = runs.pointed_at(self.folder, "best")
        before = self.whole()
        runs.remove(runs.prunable(self.folder, keep))
        assert before[0] in self.whole()
        assert best not in before or best in self.whole()
        self.resume(self.keep)

    @invariant()
    def something_whole_is_there(self) -> None:
        """Never nothing, once there was something."""
        self.damaged &= {entry.path.name for entry in entries(self.folder)}
        if not seen["saves"]:
            return
        if entries(self.folder):
            assert self.whole()
            for name in self.whole()[:1]:
                files.verify(self.folder / "checkpoints" / name)
        else:
            with pytest.raises(CheckpointError):
                load_latest(self.folder)


def test_what_must_stay_stays(injected: Injected, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_sync", lambda path: None)
    count = faults(2_000)
    run_sequences(Folder, settings=settings(max_examples=count, stateful_step_count=12))
    for what, number in seen.items():
        injected(what, number, at_least=count if what == "sequences" else count // 4)
