"""F15: a cache never holds a wrong or a partial file, whatever a server, a signal or a kill does.

The server is on this machine. After each fault every file that has its name is the original, and
preparing again asks for what is missing and for nothing else.
"""

from __future__ import annotations

import hashlib
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from injecting import Injected
from preparing import Child, children, until
from spoiled_answers import EXTRA, LONGEST, PACKED, SPOILED, TAKEN, Pause, Server, originals

from vitkit.data import SOURCES, download, prepare, verify
from vitkit.data.sources import Source
from vitkit.errors import DataError

needs_fork = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork, nor SIGTERM")


class Site(NamedTuple):
    """A server, a folder, and what is known of the files that are served."""

    server: Server
    folder: Path
    sources: dict[str, Source]

    def served(self, dataset: str) -> list[str]:
        """Return what is served of a data set."""
        return [PACKED] if dataset == "cifar10" else [n for n in self.server.files if n != PACKED]

    def whole(self, dataset: str, place: Path) -> set[str]:
        """Return the names in a folder; a file that is not the original fails the test."""
        names = {path.name for path in place.glob("*")} - {".lock", ".partial"}
        known = {name: f for f in self.sources[dataset].files for name in f.spellings()}
        for name in names - {EXTRA, PACKED}:  # which has no hash, and which is no file of its own
            assert not download._problem(known[name], place / name, place), name
        return names

    def recovers(self, dataset: str, place: Path) -> None:
        """Prepare again from a server that is well."""
        self.server.spoiled.clear()
        self.server.asked.clear()
        here = self.whole(dataset, place)
        complete = len(here - {EXTRA, PACKED}) == len(self.sources[dataset].files)
        due = [] if complete else [name for name in self.served(dataset) if name not in here]
        prepare(dataset, place)
        assert self.server.asked == due
        assert verify(dataset, place) == []
        assert not (place / ".partial").exists()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """Return a server of small originals, with the way to the real ones shut."""
    for name in ("VITKIT_OFFLINE", "http_proxy", "https_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server()
    sources = originals(server)
    for name, source in sources.items():
        monkeypatch.setitem(SOURCES, name, source)
    yield Site(server, tmp_path, sources)
    server.close()


@pytest.fixture
def start(site: Site) -> Iterator[Callable[..., Child]]:
    """Return a function that starts ``vitkit data prepare``."""
    with children(site.sources, site.folder) as start:
        yield start


def error_of(dataset: str, place: Path) -> str:
    """Prepare, and return the error, if there is one."""
    try:
        prepare(dataset, place)
    except DataError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("dataset", ["mnist", "cifar10"])
def test_spoiled_answers(site: Site, dataset: str, injected: Injected) -> None:
    names = site.served(dataset)
    for number, (fault, (spoil, said)) in enumerate(SPOILED.items()):
        place, name = site.folder / f"{number}", names[number % len(names)]
        site.server.spoiled[name] = spoil
        error = error_of(dataset, place)
        if error or fault != "reset after the last byte":
            assert error.startswith(f"{name} could not be downloaded:\n  {site.server.url}"), fault
            assert re.search(said, error), (fault, error)
            assert f"copy it to {place}; its SHA-256 must be " in error
            assert all(line.isprintable() for line in error.splitlines()), fault
            before = set(names[: names.index(name)])
            assert site.whole(dataset, place) == before, fault
            assert not (place / ".partial").exists()
        site.recovers(dataset, place)
    assert site.server.encodings == {"identity"}
    injected(f"spoiled answers for {dataset}", len(SPOILED), at_least=45)


def test_odd_answers_that_are_good(site: Site, injected: Injected) -> None:
    for number, (name, spoil) in enumerate(TAKEN.items()):
        for dataset in site.sources:
            site.server.spoiled |= dict.fromkeys(site.served(dataset), spoil)
            place = site.folder / f"{number} {dataset}"
            assert error_of(dataset, place) == "", name
            assert verify(dataset, place) == [], name
    injected("odd answers", 2 * len(TAKEN), at_least=10)


@pytest.mark.parametrize("part", [0, 0.5])
def test_a_server_that_falls_silent(
    site: Site, part: float, monkeypatch: pytest.MonkeyPatch, injected: Injected
) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    pause = site.server.spoiled[PACKED] = Pause(part)
    error = error_of("cifar10", site.folder / "c")
    pause.go.set()
    assert "timed out" in error
    assert site.whole("cifar10", site.folder / "c") == set()
    site.recovers("cifar10", site.folder / "c")
    injected("servers that fall silent", 1)


PAUSES = [
    *[("mnist", file, part) for file in range(4) for part in (0, 0.5, 0.99)],
    *[("cifar10", 0, part) for part in (0, 0.3, 0.6, 0.99)],
]
"""A data set, which of its files is on its way, and how much of it has come."""
POINTS = [
    *[("vitkit.data.download.os.replace", call, False) for call in (1, 2, 7)],
    ("vitkit.data.download._unpack", 1, False),
    ("vitkit.data.archive.tarfile.TarInfo.issparse", 3, False),
    ("vitkit.data.download._refuse", 1, False),
    ("vitkit.data.download.shutil.rmtree", 2, False),
    ("vitkit.data.download._fetch", 1, True),
]
"""A call of a function while CIFAR-10 is unpacked, which of them, and whether it is over then."""


PAIRS = [(n, "") for n in (0, 1, 4, 7, 11, 13, 15)]
PAIRS += [(1, "first"), (14, "first"), (13, "second")]
"""Which pause the first is in when the second comes, and which of them is then killed."""


def paused(
    site: Site, start: Callable[..., Child], number: int, where: str
) -> tuple[Child, Path, Pause]:
    """Start a process and wait until it has a part of a file."""
    dataset, file, part = PAUSES[number]
    place, name = site.folder / where, site.served(dataset)[file]
    pause = site.server.spoiled[name] = Pause(part)
    child = start(dataset, place)
    assert pause.reached.wait(LONGEST), child.wait()
    return child, place, pause


@needs_fork
def test_kill_in_the_middle(site: Site, start: Callable[..., Child], injected: Injected) -> None:
    for number, (dataset, file, _) in enumerate(PAUSES):
        child, place, pause = paused(site, start, number, f"pause {number}")
        child.send(signal.SIGKILL)
        assert child.wait()[0] == -signal.SIGKILL
        pause.go.set()
        assert site.whole(dataset, place) == set(site.served(dataset)[:file])
        assert (place / ".partial").is_dir()
        site.recovers(dataset, place)
    for number, (function, call, after) in enumerate(POINTS):
        place = site.folder / f"point {number}"
        given = {"function": function, "call": call, "number": signal.SIGKILL, "after": after}
        code, *said = start("cifar10", place, "signal_at", **given).wait()
        assert code == -signal.SIGKILL, (function, said)
        assert (place / ".partial").is_dir(), function
        site.recovers("cifar10", place)
    injected("processes killed", len(PAUSES) + len(POINTS), at_least=20)


@needs_fork
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm(
    site: Site, start: Callable[..., Child], number: int, injected: Injected
) -> None:
    expected = {signal.SIGINT: (130, "interrupted"), signal.SIGTERM: (143, "terminated")}[number]

    def check(child: Child, place: Path, dataset: str, said: str = "") -> None:
        code, stdout, stderr = child.wait()
        assert (code, stdout) == (expected[0], ""), stderr
        assert stderr.endswith(f"vitkit: {expected[1]}\n")
        assert "Traceback" not in stderr
        assert not (place / ".partial").exists(), said
        site.recovers(dataset, place)

    for case, (dataset, *_) in enumerate(PAUSES):
        child, place, pause = paused(site, start, case, f"pause {case}")
        child.send(number)
        child.process.join(LONGEST)
        pause.go.set()
        check(child, place, dataset)
    for case, (function, call, after) in enumerate(POINTS):
        place = site.folder / f"point {case}"
        given = {"function": function, "call": call, "number": number, "after": after}
        check(start("cifar10", place, "signal_at", **given), place, "cifar10", function)
    injected("processes stopped by a signal", len(PAUSES) + len(POINTS), at_least=20)


@needs_fork
def test_two_at_once(site: Site, start: Callable[..., Child], injected: Injected) -> None:
    """The second waits until the first has all, or is dead, and asks only for what is missing."""
    for case, (number, killed) in enumerate(PAIRS):
        dataset, file, _ = PAUSES[number]
        first, place, pause = paused(site, start, number, f"pair {case}")
        marker = site.folder / f"waits {case}"
        second = start(dataset, place, "say_when_locking", marker=str(marker))
        until(marker.exists)
        pair = {"first": first, "second": second}
        if killed:
            pair[killed].send(signal.SIGKILL)
            assert pair.pop(killed).wait()[0] == -signal.SIGKILL
        pause.go.set()
        for child in pair.values():
            assert child.wait()[:2] == (0, f"{dataset} is in {place}\n")
        names = site.served(dataset)
        again = [names[file]] if killed == "first" else []
        assert sorted(site.server.asked) == sorted([*names, *again])
        assert verify(dataset, place) == []
        site.server.asked.clear()
        site.server.spoiled.clear()
    injected("pairs of processes", len(PAIRS), at_least=10)


@needs_fork
@pytest.mark.parametrize(("dataset", "size"), [("mnist", 100_000), ("cifar10", 20_000)])
def test_a_full_disk(
    site: Site, start: Callable[..., Child], dataset: str, size: int, injected: Injected
) -> None:
    """It is no fault of the server, nor of the archive, and is not called one."""
    place = site.folder / "p"
    prepare(dataset, site.folder / "other")
    if dataset == "cifar10":  # copied by hand, so that the disk is full when it is unpacked
        place.mkdir()
        (place / PACKED).write_bytes(site.server.files[PACKED])
    site.server.asked.clear()
    code, stdout, stderr = start(dataset, place, "limit_files", size=size).wait()
    assert (code, stdout) == (1, "")
    assert f"vitkit: {place}: cannot be written ([Errno 27] " in stderr
    assert site.whole(dataset, place) <= {PACKED}
    assert not (place / ".partial").exists()
    assert len(site.server.asked) == (dataset == "mnist")
    injected("full disks", 1)


@pytest.mark.parametrize("dataset", ["mnist", "cifar10"])
def test_offline(
    site: Site, dataset: str, monkeypatch: pytest.MonkeyPatch, injected: Injected
) -> None:
    """What to get by hand is said, and works."""
    monkeypatch.setenv("VITKIT_OFFLINE", "1")
    place, names = site.folder / "p", site.served(dataset)
    for number, name in enumerate(names):
        error = error_of(dataset, place)
        assert place.exists() == bool(number)
        assert f"Unset VITKIT_OFFLINE, or get {', '.join(names[number:])} with" in error
        assert f"copy it to {place}, and run `vitkit data prepare {dataset}` again" in error
        for missing in names[number:]:
            content = site.server.files[missing]
            sha256 = hashlib.sha256(content).hexdigest()
            known = f"{missing} ({len(content)} bytes, SHA-256 {sha256}; here: missing)"
            assert f"\n  {site.server.url}{known}" in error
        place.mkdir(exist_ok=True)
        content = site.server.files[name]
        for wrong, said in (
            (content[:-1], "too short"),
            (content + b"x", "too long"),
            (content[::-1], "another, of SHA-256 "),
        ):
            (place / name).write_bytes(wrong)
            assert f"; here: {said}" in error_of(dataset, place)
        (place / name).write_bytes(content)
    prepare(dataset, place)
    assert verify(dataset, place) == []
    assert site.server.asked == []
    injected("files got by hand", 4 * len(names), at_least=4)


def test_what_a_kill_left_of_a_complete_folder(
    site: Site, monkeypatch: pytest.MonkeyPatch, injected: Injected
) -> None:
    place = prepare("mnist", site.folder / "p")
    (place / ".partial").mkdir()
    (place / ".partial" / "tmp").write_bytes(b"half")
    monkeypatch.setenv("VITKIT_OFFLINE", "1")
    prepare("mnist", place)
    assert not (place / ".partial").exists()
    outside = site.folder / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    (place / ".partial").symlink_to(outside)
    prepare("mnist", place)
    assert (outside / "kept").exists()
    injected("leftovers", 2)
