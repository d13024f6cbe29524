"""F5: a disk that is full ends a run with one error, and leaves what was there before.

There is no room from some byte of a file on: of the header or the arrays of a checkpoint, of its
manifest, of a pointer, of metrics and log; then a file system in memory that has no page left at
some moment; then stdout on a full device. The checkpoint before is whole, nothing is half written,
the message names the file, and what it says is saved is there. With room again the run goes on, and
ends with the bits of an undisturbed one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from finished_run import Undisturbed, finished, undisturbed
from forking import TINY, End
from injecting import Injected, faults

from vitkit.checkpoint import load, load_latest, runs

if not sys.platform.startswith("linux"):
    pytest.skip("children are made by fork, and counted in /proc", allow_module_level=True)

RESUME = ["train", "--resume", "auto", "--quiet"]
PAGE = 4096


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Undisturbed]:
    with undisturbed(tmp_path_factory.mktemp("f05")) as found:
        yield found


class Full(NamedTuple):
    """A file with no room beyond a number of bytes, from some time of its being written on."""

    name: str
    at: int
    time_: int
    step: int  # of the last checkpoint that is whole; 0 without one


FULL = [
    Full("model.safetensors", 0, 1, 0),
    Full("model.safetensors", 5, 2, 3),
    Full("model.safetensors", 500, 3, 6),
    Full("model.safetensors", 9000, 2, 3),
    Full("optim.safetensors", 1, 2, 3),
    Full("optim.safetensors", 20000, 4, 9),
    Full("ema.safetensors", 3000, 2, 3),
    Full("trainer.json", 0, 2, 3),
    Full("trainer.json", 1000, 5, 12),
    Full("manifest.json", 0, 1, 0),
    Full("manifest.json", 300, 3, 6),
    Full("last.json", 0, 1, 3),
    Full("last.json", 20, 3, 9),
    Full("best.json", 10, 1, 6),
    Full("best.json", 30, 4, 15),
    Full("metrics.jsonl", 0, 4, 3),
    Full("metrics.jsonl", 50, 7, 9),
    Full("log.txt", 0, 4, 3),
    Full("log.txt", 10, 7, 9),
    Full("config.toml", 100, 1, 0),
    Full("env.json", 100, 1, 0),
    Full("summary.json", 10, 1, 18),
]


def assert_as_before(place: Path, end: End) -> int:
    """Check what a run has left that a full disk has ended; return its last step."""
    assert end.code == 1, end
    assert end.stdout == ""
    assert "Traceback" not in end.stderr
    assert not list(place.rglob(".tmp-*"))
    for line in re.findall(r"The last checkpoint is (\S+)\. ", end.stderr):
        load(place / line)
    (run,) = place.glob("runs/*")
    whole = runs.entries(run)
    if not whole:
        assert not (run / "last.json").exists()
        return 0
    for each in whole:
        load(each.path)
    checkpoint, refused = load_latest(run)
    assert not refused
    for pointer in run.glob("*.json"):
        json.loads(pointer.read_text())
    for row in (run / "metrics.jsonl").read_text().splitlines():
        json.loads(row)
    return int(checkpoint.documents["trainer"]["state"]["step"])


def goes_on(found: Undisturbed, place: Path, step: int) -> None:
    """Check that with room again a run is finished as if nothing had been."""
    if not step:  # there is nothing to go on from
        (run,) = place.glob("runs/*")
        run.rename(place / "given up")
    end = found.server.run(*(RESUME if step else TINY), cwd=place)
    assert end.code == 0, end.stderr
    assert finished(place) == found.whole


@pytest.mark.parametrize("fault", FULL, ids=lambda f: f"{f.name} {f.at} {f.time_}")
def test_no_room_in_a_file(fault: Full, found: Undisturbed, injected: Injected) -> None:
    (place := found.folder / f"{fault.name}-{fault.at}-{fault.time_}").mkdir()
    given = {"name": fault.name, "at": fault.at, "time_": fault.time_}
    end = found.server.run(*TINY, cwd=place, inject="injections:full", **given)
    step = assert_as_before(place, end)
    checkpoint = fault.name.endswith(".safetensors") or fault.name in (
        "trainer.json",
        "manifest.json",
    )
    what = r"the checkpoint runs/\S+/step-\d+" if checkpoint else rf"runs/\S+/{fault.name}"
    assert re.match(rf"vitkit: Cannot write {what}: .*File too large", end.stderr), end.stderr
    assert step == fault.step
    goes_on(found, place, step)
    injected(f"full disk at byte {fault.at} of {fault.name}", 1)


def test_every_kind_of_file_is_tried() -> None:
    assert len(FULL) >= 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 256 pages."""
    place = tmp_path / "disk"
    place.mkdir()
    mount, umount = shutil.which("mount"), shutil.which("umount")
    if mount is None or umount is None:
        pytest.skip("no file system can be mounted here: there is no mount or umount")
    mounted = subprocess.run(
        [mount, "-t", "tmpfs", "-o", f"size={256 * PAGE}", "vitkit", str(place)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run([umount, "-l", str(place)], check=True, timeout=60)


def test_no_room_on_the_disk(small_disk: Path, found: Undisturbed, injected: Injected) -> None:
    filler, counted = small_disk / "filler", 0
    for pages in range(6, 6 + 3 * faults(20), 3):
        (place := small_disk / f"run-{pages}").mkdir()
        with filler.open("wb") as stream:
            disk = os.statvfs(small_disk)
            stream.write(b"x" * max(0, disk.f_bavail * disk.f_frsize - pages * PAGE))
        end = found.server.run(*TINY, cwd=place)
        filler.unlink()
        if end.code == 0:  # there was room for all of it
            break
        counted += 1
        step = assert_as_before(place, end)
        said = r"vitkit: Cannot write \D+runs/\S+: .*[Nn]o space left on device.*\. It takes "
        assert re.match(
            said + r"[\d,]+ bytes and some more; [\d,]+ are free: make room", end.stderr
        )
        goes_on(found, place, step)
        shutil.rmtree(place)
    injected("disks full at some moment", counted, at_least=min(10, faults(10)))


COMMANDS = {
    "train": [*TINY, "--epochs", "1"],
    "train --json": [*TINY, "--epochs", "1", "--json"],
    "train --print-config": ["train", "--print-config"],
    "evaluate": ["evaluate", "RUN"],
    "evaluate --json": ["evaluate", "RUN", "--json"],
    "data list": ["data", "list"],
    "plugins": ["plugins"],
    "info": ["info"],
    "--version": ["--version"],
    "--help": ["--help"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_stdout_on_a_full_device(command: str, found: Undisturbed, injected: Injected) -> None:
    (place := found.folder / command.replace(" ", "-")).mkdir()
    (run,) = (found.folder / "undisturbed" / "runs").iterdir()
    arguments = [str(run) if each == "RUN" else each for each in COMMANDS[command]]
    end = found.server.run(*arguments, cwd=place, stdout="/dev/full")
    assert end.code == 1, end
    assert end.stderr == "vitkit: [Errno 28] No space left on device: 'standard output'\n"
    if command in ("train", "train --json"):  # what it could not print is there
        (run,) = place.glob("runs/*")
        assert json.loads((run / "summary.json").read_text())["test_accuracy"] > 0
        assert load_latest(run)[0].documents["trainer"]["state"]["epoch"] == 1
    injected(f"full stdout of vitkit {command}", 1)
