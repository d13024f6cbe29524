"""Processes of ``vitkit data prepare`` that cost milliseconds, not a second, and end at a point.

They are forked by the fork server of multiprocessing, which has imported all they need.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from spoiled_answers import LONGEST

import vitkit
from vitkit.data import SOURCES
from vitkit.data.sources import Source

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerProcess  # which Windows lacks


class Child:
    """``vitkit data prepare`` as a process of its own."""

    def __init__(self, process: ForkServerProcess, folder: Path) -> None:
        self.process, self.folder = process, folder

    def send(self, number: int) -> None:
        """Send a signal."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def wait(self) -> tuple[int, str, str]:
        """Return its exit code, or the negative number of a signal, and what it said."""
        self.process.join(LONGEST)
        assert self.process.exitcode is not None, "it has not ended"
        stdout, stderr = ((self.folder / name).read_text("utf-8") for name in ("stdout", "stderr"))
        code = self.process.exitcode
        self.process.close()
        return code, stdout, stderr

    def end(self) -> None:
        """Kill it, if it is still there."""
        if not getattr(self.process, "_closed", False) and self.process.is_alive():
            self.process.kill()
            self.process.join(LONGEST)


IMPORTED = ["preparing", "vitkit.cli.main", "vitkit.cli.display", "vitkit.config.run"]
IMPORTED += ["pooch", "requests", "filelock"]
"""What the fork server imports, so that no process has to."""


def until(what: Callable[[], bool]) -> None:
    """Wait until a function returns true."""
    deadline = time.monotonic() + LONGEST
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.001)


@contextmanager
def children(sources: dict[str, Source], folder: Path) -> Iterator[Callable[..., Child]]:
    """Have a function that starts ``vitkit data prepare``; none of them outlives the block."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    path = os.pathsep.join((str(Path(vitkit.__file__).parents[1]), str(Path(__file__).parent)))
    started: list[Child] = []

    def start(name: str, place: Path, inject: str = "", **given: object) -> Child:
        own = folder / f"child{len(started)}"
        own.mkdir()
        arguments = ("data", "prepare", name, "--data-dir", str(place))
        process = context.Process(target=_run, args=(arguments, own, sources, inject, given))
        # The fork server is started by the first process, and finds its modules there.
        with mock.patch.dict(os.environ, PYTHONPATH=path, OPENBLAS_NUM_THREADS="1"):
            process.start()
        started.append(Child(process, own))
        return started[-1]

    try:
        yield start
    finally:
        for child in started:
            child.end()


def _run(
    arguments: tuple[str, ...],
    folder: Path,
    sources: dict[str, Source],
    inject: str,
    given: dict[str, Any],
) -> None:
    """Be ``vitkit``: a function ``inject`` of this module is called first, if one is named."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT, 0o666), number)
    SOURCES.update(sources)
    for variable in [name for name in os.environ if name.startswith("VITKIT_")]:
        del os.environ[variable]
    os.environ["NO_PROXY"] = "127.0.0.1"
    sys.argv = ["vitkit", *arguments]
    if inject:
        globals()[inject](**given)
    from vitkit.cli.main import main

    main()


def say_when_locking(marker: str) -> None:
    """Make a file when the process is about to wait for the lock."""
    import filelock

    acquire = filelock.FileLock.acquire

    def acquiring(self: Any, *args: Any, **kwargs: Any) -> Any:
        Path(marker).touch()
        return acquire(self, *args, **kwargs)

    filelock.FileLock.acquire = acquiring  # type: ignore[method-assign]


def signal_at(function: str, call: int, number: int, *, after: bool = False) -> None:
    """Have the process send itself a signal before, or after, a call of a function."""
    parts, names = function.split("."), []
    while parts and ".".join(parts) not in sys.modules:
        names.insert(0, parts.pop())
    place: Any = sys.modules[".".join(parts)]
    for part in names[:-1]:
        place = getattr(place, part)
    name = names[-1]
    original, calls = getattr(place, name), 0

    def calling(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != call:
            return original(*args, **kwargs)
        result = original(*args, **kwargs) if after else None
        os.kill(os.getpid(), number)
        return result if after else original(*args, **kwargs)

    setattr(place, name, calling)


def limit_files(size: int) -> None:
    """Have the disk be full for files of more bytes."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
