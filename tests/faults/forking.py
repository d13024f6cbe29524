"""Real processes of the command line, started by fork: each costs milliseconds, not a second.

A server imports vitkit, trains once so that kernels are there, and forks at each request a child
that runs :func:`vitkit.cli.main.main`. It computes on one thread: the other one, of Numba, waits,
and Numba makes another in a child. The module is the client too.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import vitkit

NOT_OURS = 99
"""The exit code of a child that a signal has ended before the command began."""
ONE_THREAD = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "NUMBA_THREADING_LAYER": "workqueue",  # OpenMP refuses to go on after a fork
}
TINY = """train --backend numpy --model Ti/4 --batch-size 120 --epochs 3 --lr 1e-3 --quiet
--set model.dim=16 --set model.depth=1 --set model.num_heads=2 --set model.mlp_dim=32
--set model.dropout=0.1 --set train.ema_decay=0.9 --set train.grad_accum=2 --set train.patience=2
--set train.save_every=3 --set train.log_every=2 --set""".split()
TINY.append("data.augment=['crop(padding=1)', 'flip']")
"""A run of 18 steps: each epoch has 6, the last of them of one batch, which is a part."""
LONGEST = 60.0  # seconds that any child may take
LONGEST_START = 240.0  # and the server until it listens: it may have kernels to compile


class End(NamedTuple):
    """How a child ended: its exit code, or the negative number of a signal, and what it said."""

    code: int
    stdout: str
    stderr: str


class Child:
    """A process that the server has forked."""

    def __init__(self, pid: int, server: Server, folder: Path) -> None:
        self.pid, self._server, self._folder = pid, server, folder
        self.code: int | None = None

    def poll(self, seconds: float = 0.0) -> bool:
        """Return whether it has ended, waiting a while for that."""
        if self.code is None:
            answer = self._server.answer(seconds)
            self.code = None if answer is None else int(answer["code"])
        return self.code is not None

    def send(self, number: int) -> bool:
        """Send a signal; return whether there was somebody to get it."""
        if self.poll():
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
        return True

    def wait(self, seconds: float = LONGEST) -> End:
        """Return how it ended; one that does not in time is killed, and the test fails."""
        if not self.poll(seconds):
            os.kill(self.pid, signal.SIGKILL)
            self.poll(LONGEST)
            raise AssertionError(f"it had not ended after {seconds} s: {self.read('stderr')}")
        assert self.code is not None
        return End(self.code, self.read("stdout"), self.read("stderr"))

    def read(self, stream: str) -> str:
        return (self._folder / stream).read_text(encoding="utf-8", errors="replace")


class Server:
    """The process that forks, one child at a time."""

    def __init__(self, **environment: str) -> None:
        foreign = ("VITKIT_", "PYTHON", "COV_")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
        path = os.pathsep.join([str(Path(vitkit.__file__).parents[1]), str(Path(__file__).parent)])
        self.environment = {**kept, **ONE_THREAD, "PYTHONPATH": path, **environment}
        self._folder = tempfile.TemporaryDirectory(prefix="vitkit-forking-")
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self.environment,
            cwd=self._folder.name,
        )
        self._last: Child | None = None
        try:
            ready = self.answer(LONGEST_START)
            assert ready is not None, "the server did not start"
            assert ready["threads"] <= 2, f"the server cannot fork: {ready}"  # Numba has one more
        except BaseException:
            self._process.kill()
            self.close()
            raise

    def start(self, *arguments: str, cwd: Path, inject: str = "", **given: Any) -> Child:
        """Start ``vitkit`` with these arguments.

        ``inject`` names a function, as ``module:function``, that the child calls first, with what
        else is given.
        """
        assert self._process.stdin is not None
        folder = Path(tempfile.mkdtemp(dir=self._folder.name))
        request = {
            "arguments": arguments,
            "cwd": str(cwd),
            "folder": str(folder),
            "inject": inject,
            "given": given,
        }
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        answer = self.answer(LONGEST)
        assert answer is not None
        self._last = Child(answer["pid"], self, folder)
        return self._last

    def run(self, *arguments: str, cwd: Path, inject: str = "", **given: Any) -> End:
        """Run ``vitkit`` with these arguments to its end."""
        return self.start(*arguments, cwd=cwd, inject=inject, **given).wait()

    def answer(self, seconds: float) -> dict[str, Any] | None:
        """Return what the server says, if it says something in time."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            return None
        line = self._process.stdout.readline()
        assert line, "the server is gone"
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """End the server, and a child that a failed test has left."""
        if self._last is not None and self._last.code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._last.pid, signal.SIGKILL)
        self._process.communicate(timeout=LONGEST)
        self._folder.cleanup()


@contextlib.contextmanager
def serving(**environment: str) -> Iterator[Server]:
    """Have a server while a block runs."""
    server = Server(**environment)
    try:
        yield server
    finally:
        server.close()


@contextlib.contextmanager
def quick_folder(otherwise: Path) -> Iterator[Path]:
    """Have a folder in memory, if there is such a place: a kill does not care for what is synced.

    Processes then wait for no disk, and get further until they are killed.
    """
    memory = Path("/dev/shm")  # noqa: S108
    if not os.access(memory, os.W_OK):
        yield otherwise
        return
    with tempfile.TemporaryDirectory(prefix="vitkit-", dir=memory) as folder:
        yield Path(folder)


def wait_for(what: Any, seconds: float = LONGEST) -> Any:
    """Return what a function returns, as soon as that is true; fail if it is not in time."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.001)
    return found


def _serve() -> None:
    """Fork a child at each line of stdin; say its number, and at its end its exit code."""
    sys.modules["matplotlib"] = None  # type: ignore[assignment]
    # Where fork is the rule Numba shares a lock among the server and its children, and one that is
    # killed with it would hold up those that come after.
    multiprocessing.set_start_method("spawn")
    answers = os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    _warm()
    _say(answers, threads=len(os.listdir("/proc/self/task")))
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if not pid:
            _be_child(request)
        _say(answers, pid=pid)
        _say(answers, code=os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def _say(answers: IO[str], **what: int) -> None:
    answers.write(json.dumps(what) + "\n")
    answers.flush()


def _warm() -> None:
    """Train in this process, which a child then need not begin by compiling."""
    from vitkit.cli.main import main

    streams, arguments = (sys.stdout, sys.stderr), sys.argv
    sys.argv = ["vitkit", *TINY, "--out", "warm"]
    code: object = 0
    try:
        main()
    except SystemExit as error:
        code = error.code
    sys.argv = arguments
    sys.stdout, sys.stderr = streams
    assert not code, code


def _be_child(request: dict[str, Any]) -> None:
    """Become ``vitkit``; never return."""
    code = NOT_OURS
    try:
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        for number, name in ((1, "stdout"), (2, "stderr")):
            file = request["given"].pop(name, None) or f"{request['folder']}/{name}"
            (Path(request["folder"]) / name).touch()
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT, 0o666), number)
        os.chdir(request["cwd"])
        sys.argv = ["vitkit", *request["arguments"]]
        if request["inject"]:
            module, function = request["inject"].split(":")
            getattr(importlib.import_module(module), function)(**request["given"])
        from vitkit.cli.main import main

        try:
            main()
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    _serve()
