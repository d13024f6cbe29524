"""F1: a run that is killed again and again ends with the bits of the undisturbed one.

``vitkit train`` of a small model (two batches a step, of which the last is a part; augmentation,
dropout, averaged weights, early stopping; a checkpoint every three steps, validation each epoch)
is killed at random moments, half of them while it saves, and goes on by ``--resume auto`` until it
is done. Nine of ten processes are forked from one that has imported vitkit; the others are new.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from finished_run import finished, undisturbed
from forking import TINY, Child, Server
from injecting import Injected, faults

if not sys.platform.startswith("linux"):
    pytest.skip("children are made by fork, and counted in /proc", allow_module_level=True)

KILLS = faults(100, 2000)
STEPS = 18
LONGEST = 60.0


class Fresh:
    """A new process of the command line, to be killed as a forked one is."""

    def __init__(self, server: Server, arguments: list[str], cwd: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "vitkit", *arguments],
            cwd=cwd,
            env={**server.environment, "VITKIT_DISABLE_PLUGINS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def poll(self) -> bool:
        return self._process.poll() is not None

    def send(self, number: int) -> bool:
        self._process.send_signal(number)
        return True

    def wait(self) -> tuple[int, str]:
        _, errors = self._process.communicate(timeout=LONGEST)
        return self._process.returncode, errors.decode()


def half_written(place: Path) -> bool:
    return any(True for _ in place.glob("runs/*/checkpoints/.tmp-*"))


def wait_for_saves(place: Path, process: Child | Fresh, number: int) -> None:
    """Wait until the process is at its save of a number, or has ended."""
    deadline = time.monotonic() + LONGEST / 2
    before = True  # what another has left is none of this process's
    while number and not process.poll():
        assert time.monotonic() < deadline, "it saves nothing"
        now = half_written(place)
        number -= now and not before
        before = now


class Killing:
    """Counts kills, and those that hit a save."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.random = np.random.Generator(np.random.Philox(1))
        self.kills = self.saving = self.fresh = 0

    def attempts(self, place: Path) -> Iterator[Child | Fresh]:
        """Yield processes that go on with the run, until one is done with it."""
        while True:
            there = any(place.glob("runs/*/checkpoints/step-*"))
            arguments = ["train", "--resume", "auto", "--quiet"] if there else TINY
            if self.kills < KILLS and self.kills % 10 == 9:
                yield Fresh(self.server, arguments, place)
            else:
                # As a disk would; a save takes about 20 ms then.
                slow = {"inject": "injections:slow_sync", "seconds": 0.002}
                yield self.server.start(*arguments, cwd=place, **slow)

    def until_done(self, place: Path, longest: float) -> None:
        """Kill a run until it is done all the same."""
        place.mkdir()
        for process in self.attempts(place):
            if self.kills < KILLS:
                self.wait(process, place, longest)
                process.send(signal.SIGKILL)
            code, *_, errors = process.wait()
            if code == 0:
                return
            assert code == -signal.SIGKILL, errors
            self.kills += 1
            self.saving += half_written(place)
            self.fresh += isinstance(process, Fresh)

    def wait(self, process: Child | Fresh, place: Path, longest: float) -> None:
        """Let a process be until a random moment, every other time one in a save."""
        moment = self.random.uniform()
        if self.kills % 2:
            wait_for_saves(place, process, int(self.random.integers(1, 3)))
            time.sleep(moment * 0.01)
        else:
            start = 0.5 if isinstance(process, Fresh) else 0.0  # imports are no part of a run
            time.sleep(start + moment * longest)


@pytest.mark.timeout(300 + 5 * KILLS)
def test_kills(tmp_path: Path, injected: Injected) -> None:
    with undisturbed(tmp_path, VITKIT_DISABLE_PLUGINS="1") as whole:
        assert whole.whole["summary"]["steps"] == STEPS
        killing, done = Killing(whole.server), 0
        while killing.kills < KILLS:
            place = whole.folder / f"run-{done}"
            killing.until_done(place, whole.seconds)
            found = finished(place)
            for part, expected in whole.whole.items():
                assert found[part] == expected, f"run {done} has other {part}"
            done += 1
    injected(f"kills of {done} runs", killing.kills, at_least=KILLS)
    injected("kills in the middle of a save", killing.saving, at_least=int(0.3 * KILLS))
    injected("kills of processes that were not forked", killing.fresh, at_least=KILLS // 20)
