"""A contender seen from outside: a process that answers when asked and sleeps otherwise."""

from __future__ import annotations

import json
import os
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
    """

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class Racer:
    """One contender's process.

    Between its turns it is stopped, so that no thread of its pools, which often wait actively,
    takes a core from the others.

    Parameters
    ----------
    entry : Entry
        Which contender.
    threads : int
        How many it may use.
    log : Path
        Where what it prints goes.

    Attributes
    ----------
    import_seconds : float
        How long its library took to import.

    Raises
    ------
    Dropped
        If its library cannot be imported.
    """

    def __init__(self, entry: Entry, threads: int, log: Path) -> None:
        self._log = log
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
        try:
            self.import_seconds: float = self._answer()["import_seconds"]
        except BaseException:
            self.close()
            raise
        self._process.send_signal(signal.SIGSTOP)

    def ask(self, **request: Any) -> dict[str, Any]:
        """Return the answer to an order, see :mod:`contenders.serve`.

        Raises
        ------
        Dropped
            If it cannot do that here, failed at it, or is gone.
        """
        self._process.send_signal(signal.SIGCONT)
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # gone: its last words are better news than this
        answer = self._answer()
        self._process.send_signal(signal.SIGSTOP)
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            raise Dropped("failed", f"ended with {self._process.wait()}: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "skip" in answer:
            raise Dropped("skipped", answer["skip"])
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
