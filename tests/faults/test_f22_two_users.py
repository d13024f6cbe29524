"""F22: of two that want to train in a run folder one does, and the other is told who that is.

Pairs of processes start at the same moment; then one comes to a run that is at work, and then to
one whose process was killed, and whose lock is taken over at once.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from finished_run import finished, stop, undisturbed
from forking import Server, serving, wait_for
from injecting import Injected, faults

import vitkit.checkpoint.files as files
from vitkit.checkpoint import runs

if not sys.platform.startswith("linux"):
    pytest.skip("children are made by fork, and counted in /proc", allow_module_level=True)

PAIRS, DEAD = faults(20), faults(20)
RESUME = ["train", "--quiet", "--resume", "runs/a"]
AT_WORK = (
    r"vitkit: Another process \(pid (\d+) on (\S+), since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\) "
    r"is at work in runs/a: wait for it, or end it\.\n"
)
SLOW: dict[str, Any] = {"inject": "injections:slow_sync", "seconds": 0.01}


class Found(NamedTuple):
    """Two servers, a place with a run that was stopped, and what an undisturbed one leaves."""

    servers: list[Server]
    folder: Path
    whole: dict[str, Any]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Found]:
    with undisturbed(tmp_path_factory.mktemp("f22")) as one, serving() as other:
        stop(one, 4)
        yield Found([one.server, other], one.folder, one.whole)


def place_of(found: Found, name: str) -> Path:
    place = found.folder / name
    shutil.copytree(found.folder / "stopped", place)
    return place


def test_two_start_at_once(found: Found, injected: Injected) -> None:
    random = np.random.Generator(np.random.Philox(22))
    for number in range(PAIRS):
        place = place_of(found, f"pair-{number}")
        children = []
        for server in found.servers:
            children.append(server.start(*RESUME, cwd=place, **SLOW))
            time.sleep(random.uniform(0.0, 0.03))
        ends = [child.wait() for child in children]
        assert sorted(end.code for end in ends) == [0, 1], ends
        loser = int(ends[0].code == 0)
        told = re.fullmatch(AT_WORK, ends[loser].stderr)
        assert told, ends[loser].stderr
        assert told[1] == str(children[1 - loser].pid)
        assert told[2] == platform.node()
        assert finished(place) == found.whole
        assert not (place / "runs/a/lock.json").exists()
        shutil.rmtree(place)
    injected("pairs of trainers", PAIRS, at_least=PAIRS)


def test_a_lock_of_a_dead_process_is_taken_over(found: Found, injected: Injected) -> None:
    random = np.random.Generator(np.random.Philox(23))
    one, other = found.servers
    counted = 0
    while counted < DEAD:
        place = place_of(found, f"dead-{counted}")
        run = place / "runs/a"
        child = one.start(*RESUME, cwd=place, **SLOW)
        holder = wait_for(lambda r=run: (r / "lock.json").exists() and r / "lock.json")
        about = json.loads(holder.read_text())
        assert (about["pid"], about["host"]) == (child.pid, platform.node())
        time.sleep(random.uniform(0.0, 0.2))
        refused = counted % 5 == 0
        if refused:  # while it lives, it is respected
            end = other.run(*RESUME, cwd=place)
            assert end.code == 1
            assert re.fullmatch(AT_WORK, end.stderr), end.stderr
        assert child.send(signal.SIGKILL), "it was done too soon"
        assert child.wait().code == -signal.SIGKILL
        assert json.loads(holder.read_text())["pid"] == child.pid, "what it left is there"
        end = other.run(*RESUME, cwd=place)
        assert (end.code, end.stderr) == (0, "")
        assert finished(place) == found.whole
        shutil.rmtree(place)
        counted += 1
    injected("locks of dead processes", counted, at_least=DEAD)


def test_what_a_killed_process_has_left_is_removed(found: Found) -> None:
    place = place_of(found, "same")
    run = place / "runs/a"
    left = [run / "checkpoints/.tmp-step-00000006-7", run / "checkpoints/.old-step-00000003"]
    for folder in left:
        folder.mkdir()
        (folder / "model.safetensors").write_text("half")
    (run / ".tmp-last.json-7").write_text("{")
    (run / "lock.json").write_text('{"pid": 1')
    end = found.servers[0].run(*RESUME, cwd=place)
    assert (end.code, end.stderr) == (0, "")
    assert finished(place) == found.whole
    assert not [path for path in run.rglob("*") if path.name.startswith(runs.LEFT)]


def test_what_a_process_of_the_same_number_has_left_is_no_hindrance(tmp_path: Path) -> None:
    """As in containers, where a process has the number of the one before it."""
    left = tmp_path / f".tmp-step-00000006-{os.getpid()}"
    left.mkdir()
    (left / "other.safetensors").write_text("half")
    files.save(tmp_path / "step-00000006", {}, {"trainer": {"step": 6}})
    assert files.verify(tmp_path / "step-00000006").keys() == {"trainer.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000006"]
