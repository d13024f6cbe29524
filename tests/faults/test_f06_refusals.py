"""F6: a file system that refuses something ends a run with one clear error.

What it refuses is made for real where that can be: modes (which root gives up to ignore), files
where folders should be, links, names that are too long, folders that go. The rest, such as EIO and
what network file systems refuse, is raised in place of the system's own answer. Nothing is written
outside the run folder, what was saved stays whole, and where the refusal is over the run goes on
and ends with the bits of an undisturbed one.
"""

from __future__ import annotations

import errno
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from finished_run import Undisturbed, finished, stop, undisturbed
from forking import TINY
from injecting import Injected

from vitkit.checkpoint import load_latest, runs

if not sys.platform.startswith("linux"):
    pytest.skip("children are made by fork, and counted in /proc", allow_module_level=True)

RUN = ["train", "--quiet", "--resume", "runs/a"]
NEW = [*TINY, "--out", "out/runs"]
OBEY: dict[str, Any] = {"inject": "injections:obey_modes"}
STOPPED_AT = 8


def refuse(call: str, number: int, pattern: str) -> dict[str, Any]:
    return {"inject": "injections:refuse", "call": call, "number": number, "pattern": pattern}


class Case(NamedTuple):
    """What is done to the place of a run, with what it is gone on with, and what is said.

    What ``harm`` returns is what puts it right, after which the run is finished as if nothing had
    been; None where that cannot be.
    """

    says: str  # nothing where the refusal does no harm
    harm: Callable[[Path], Callable[[], object] | None] = lambda place: lambda: None
    arguments: list[str] = RUN
    given: dict[str, Any] = {}  # noqa: RUF012


def mode(path: str, bits: int) -> Callable[[Path], Callable[[], object]]:
    """Change the mode of what is at a path of the place, which is made unless it is there."""

    def harm(place: Path) -> Callable[[], object]:
        target = place / path
        if not target.exists():
            target.mkdir(parents=True)
        before = target.stat().st_mode
        target.chmod(bits)
        return lambda: target.chmod(before)

    return harm


def instead(path: str, folder: bool = False) -> Callable[[Path], Callable[[], object]]:
    """Put a file, or a folder with a file, where something else should be."""

    def harm(place: Path) -> Callable[[], object]:
        target, aside = place / path, place / "aside"
        if target.exists():
            target.rename(aside)
        target.parent.mkdir(exist_ok=True)
        if folder:
            target.mkdir()
        (target / "file" if folder else target).write_text("somebody else's")

        def repair() -> None:
            shutil.rmtree(target) if folder else target.unlink()
            if aside.exists():
                aside.rename(target)

        return repair

    return harm


def link(path: str) -> Callable[[Path], Callable[[], object]]:
    """Put a link where something is, which is elsewhere then."""

    def harm(place: Path) -> Callable[[], object]:
        target, elsewhere = place / path, place / "elsewhere"
        target.rename(elsewhere)
        target.symlink_to(elsewhere)

        def repair() -> None:
            target.unlink()
            elsewhere.rename(target)

        return repair

    return harm


def lost(place: Path) -> None:
    return None


CANNOT = "Cannot write "
NO_ENTRY = "Permission denied"
CHECKPOINT = "Cannot write the checkpoint runs/a/checkpoints/step-"
CASES = {
    "folder of runs is read-only": Case(
        f"{CANNOT}the run folder out/runs/.*{NO_ENTRY}", mode("out/runs", 0o555), NEW, OBEY
    ),
    "folder above is closed": Case(NO_ENTRY, mode("out", 0o000), NEW, OBEY),
    "run folder is read-only": Case(
        f"{CANNOT}runs/a/lock.json: .*{NO_ENTRY}", mode("runs/a", 0o555), RUN, OBEY
    ),
    "checkpoints are read-only": Case(
        f"{CHECKPOINT}.*{NO_ENTRY}", mode("runs/a/checkpoints", 0o555), RUN, OBEY
    ),
    "log is read-only": Case(
        f"{CANNOT}runs/a/log.txt: .*{NO_ENTRY}", mode("runs/a/log.txt", 0o444), RUN, OBEY
    ),
    "run folder is closed": Case("runs/a", mode("runs/a", 0o000), RUN, OBEY),
    "a file is where runs should be": Case(
        "(Not a directory|File exists): 'out/runs", instead("out/runs"), NEW
    ),
    "a file is where the folder above should be": Case(
        "Not a directory: 'out", instead("out"), NEW
    ),
    "a file is to be resumed": Case(
        "runs/a/log.txt is no run folder", lost, [*RUN, "--resume", "runs/a/log.txt"]
    ),
    "a file is where checkpoints should be": Case(
        "runs/a holds no checkpoint", instead("runs/a/checkpoints")
    ),
    "a folder is where the log should be": Case(
        f"{CANNOT}runs/a/log.txt: .*Is a directory", instead("runs/a/log.txt", True)
    ),
    "a folder is where metrics should be": Case(
        "Is a directory: 'runs/a/metrics.jsonl'", instead("runs/a/metrics.jsonl", True)
    ),
    "a folder is where the pointer should be": Case(
        f"{CANNOT}runs/a/last.json: .*Is a directory", instead("runs/a/last.json", True)
    ),
    "a name is too long": Case(
        "File name too long: 'out/runs/.*x'", arguments=[*NEW, "--name", "x" * 300]
    ),
    "a path is too long": Case("File name too long: 'y/", arguments=[*TINY, "--out", "y/" * 2500]),
    "checkpoints are a link": Case(
        "runs/a/checkpoints is a symbolic link, and a run writes nowhere but in its folder",
        link("runs/a/checkpoints"),
    ),
    "the log is a link": Case("runs/a/log.txt is a symbolic link", link("runs/a/log.txt")),
    "metrics are a link": Case(
        "runs/a/metrics.jsonl is a symbolic link", link("runs/a/metrics.jsonl")
    ),
    "the run folder is a link": Case("", link("runs/a")),
    "the run folder is removed": Case(
        "(the run folder is gone|No such file or directory: 'runs/)",
        lost,
        TINY,
        {"inject": "injections:lose_the_folder", "move": False},
    ),
    "the run folder is moved": Case(
        "(the run folder is gone|No such file or directory: 'runs/)",
        lost,
        TINY,
        {"inject": "injections:lose_the_folder", "move": True},
    ),
    "EXDEV of a checkpoint": Case(
        f"{CHECKPOINT}.*cross-device", given=refuse("rename", errno.EXDEV, r"\.tmp-step")
    ),
    "EIO of a pointer": Case(
        f"{CANNOT}runs/a/last.json: .*Input/output error",
        given=refuse("replace", errno.EIO, "last.json"),
    ),
    "EIO of a file that is synced": Case(
        f"{CHECKPOINT}.*Input/output error", given=refuse("fsync", errno.EIO, "optim.safetensors")
    ),
    "EIO of a folder that is synced": Case(
        f"{CHECKPOINT}.*Input/output error", given=refuse("fsync", errno.EIO, "checkpoints$")
    ),
    "EINVAL of a file that is synced": Case(
        f"{CHECKPOINT}.*Invalid argument", given=refuse("fsync", errno.EINVAL, "model.safetensors")
    ),
    "EINVAL of folders that are synced": Case(
        "", given=refuse("fsync", errno.EINVAL, r"(a|checkpoints|step-\d+)(-\d+)?$")
    ),
    "ENOTSUP of folders that are synced": Case(
        "", given=refuse("fsync", errno.ENOTSUP, r"(a|checkpoints|step-\d+)(-\d+)?$")
    ),
    "EDQUOT where it is synced": Case(
        f"{CHECKPOINT}.*quota.* bytes and some more; .* free",
        given=refuse("fsync", errno.EDQUOT, "manifest"),
    ),
    "EROFS of a new checkpoint": Case(
        f"{CHECKPOINT}.*Read-only file system", given=refuse("mkdir", errno.EROFS, r"\.tmp-step")
    ),
    "ESTALE of metrics": Case(
        f"{CANNOT}runs/a/metrics.jsonl: .*[Ss]tale",
        given=refuse("replace", errno.ESTALE, "metrics"),
    ),
    "EBUSY of what is rotated out": Case(
        "", given=refuse("rename", errno.EBUSY, r"checkpoints/step-\d+$")
    ),
    "EPERM of the lock": Case(
        f"{CANNOT}the run folder runs/a: .*not permitted",
        given=refuse("open", errno.EPERM, r"\.lock$"),
    ),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Undisturbed]:
    """Return a server, a run that was stopped, and what an undisturbed one leaves."""
    with undisturbed(tmp_path_factory.mktemp("f06")) as found:
        stop(found, STOPPED_AT)
        yield found


def files_outside(place: Path) -> set[Path]:
    """Return what lies in a place, but for its runs."""
    ours = ("runs", "aside", "elsewhere", "moved")
    return {path for path in place.iterdir() if path.name not in ours}


@pytest.mark.parametrize("name", CASES)
def test_a_refusal(name: str, found: Undisturbed, injected: Injected) -> None:
    case = CASES[name]
    place = found.folder / re.sub(r"\W", "-", name)
    place.mkdir()
    if case.arguments[: len(RUN)] == RUN:
        shutil.copytree(found.folder / "stopped", place, dirs_exist_ok=True)
    repair = case.harm(place)
    before = files_outside(place)
    end = found.server.run(*case.arguments, cwd=place, **case.given)
    if repair is not None:
        repair()
    if not case.says:
        assert (end.code, end.stderr) == (0, "")
        assert finished(place) == found.whole
        injected("refusals that do no harm", 1)
        return
    assert end.code == 1, end
    assert end.stdout == ""
    assert "Traceback" not in end.stderr
    assert re.match(rf"vitkit: .*{case.says}", end.stderr), end.stderr
    assert not list(place.rglob(".tmp-*"))
    assert files_outside(place) <= before | {place / "out"}
    for run in (*place.glob("runs/*"), *place.glob("moved")):
        assert not load_latest(run)[1], "all checkpoints are whole"
    if repair is not None and case.arguments == RUN:
        end = found.server.run(*RUN, cwd=place)
        assert end.code == 0, end.stderr
        assert finished(place) == found.whole
    if case.given.get("inject") == "injections:lose_the_folder":
        assert not list(place.glob("runs/*")), "it is not made again"
    injected("refusals", 1)


def test_all_refusals_are_tried(found: Undisturbed) -> None:
    assert len(CASES) >= 24
    names = {path.name for path in (found.folder / "stopped" / "runs/a/checkpoints").iterdir()}
    assert names == {"step-00000006", f"step-{STOPPED_AT:08d}"}
    assert runs.entries(found.folder / "stopped/runs/a")[0].whole
