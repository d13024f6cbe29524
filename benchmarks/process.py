"""A contender seen from outside: a process that answers when asked and sleeps otherwise."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from contenders.entries import Entry

HERE = Path(__file__).resolve().parent
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


class Dropped(Exception):
    """A contender that takes no further part.

    Parameters
    ----------
    status : str
        ``"skipped"`` if it cannot run here, ``"failed"`` if it should have.
    reason : str
        Why.
    answers : bool, default True
        Whether it can be asked for something else.
    """

    def __init__(self, status: str, reason: str, answers: bool = True) -> None:
        super().__init__(reason)
        self.status, self.reason, self.answers = status, reason, answers


class NoMemory(Dropped):
    """A contender that found too little memory, and may do with a smaller batch.

    Parameters
    ----------
    reason : str
        What its library said.
    """

    def __init__(self, reason: str) -> None:
        super().__init__("failed", reason)


class Racer:
    """One contender's process.

    Between its turns it is stopped, so that no thread of its pools, which often wait actively,
    takes a core from the others. One that computes on a GPU only waits to be asked: what is
    stopped while it holds a GPU's memory may hold up others.

    Parameters
    ----------
    entry : Entry
        Which contender.
    threads : int
        How many it may use.
    log : Path
        Where what it prints goes.
    stops : bool, default True
        Whether it is stopped between its turns.
    waits : bool, default True
        Whether to wait for :meth:`ready`.

    Attributes
    ----------
    import_seconds : float
        How long its library took to import, once it is ready.

    Raises
    ------
    Dropped
        If its library cannot be imported.
    """

    def __init__(
        self, entry: Entry, threads: int, log: Path, stops: bool = True, waits: bool = True
    ) -> None:
        self._log, self._stops = log, stops
        command = [sys.executable, "-m", "contenders"]
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [*command, entry.library, entry.module, entry.mode],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment(threads) | entry.environment,
            )
        if waits:
            self.ready()

    def ready(self) -> None:
        """Wait until its library is imported."""
        try:
            self.import_seconds: float = self._answer()["import_seconds"]
        except BaseException:
            self.close()
            raise
        self._signal(signal.SIGSTOP)

    def ask(self, patience: float | None = None, **request: Any) -> dict[str, Any]:
        """Return the answer to an order, see :mod:`contenders.serve`.

        Parameters
        ----------
        patience : float, optional
            After how many seconds to expect no answer any more.
        **request
            The order.

        Raises
        ------
        Dropped
            If it cannot do that here, failed at it, is gone, or takes too long.
        """
        self._signal(signal.SIGCONT)
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # gone: its last words are better news than this
        answer = self._answer(patience)
        self._signal(signal.SIGSTOP)
        return answer

    def _signal(self, number: int) -> None:
        if self._stops:
            self._process.send_signal(number)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    def _answer(self, patience: float | None = None) -> dict[str, Any]:
        # One answer at a time, each a line: what is not in the pipe is not in its buffer either.
        if patience is not None and not select.select([self._process.stdout], [], [], patience)[0]:
            raise Dropped("skipped", f"no answer within {patience:.0f} s", False)
        line = self._process.stdout.readline()
        if not line:
            words = f"ended with {self._process.wait()}: {self._last_words()}"
            raise Dropped("failed", words, answers=False)
        answer: dict[str, Any] = json.loads(line)
        if "skip" in answer:
            raise Dropped("skipped", answer["skip"])
        if "memory" in answer:
            raise NoMemory(answer["memory"])
        if "error" in answer:
            raise Dropped("failed", answer["error"])
        return answer

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "no word")


def environment(threads: int) -> dict[str, str]:
    """Return the variables that every contender is started with."""
    found = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
    return {**os.environ, **dict.fromkeys(THREADS, str(threads)), "PYTHONPATH": found}
