"""A contender as a process: orders come in as JSON lines, answers go out as JSON lines.

==================================  ===============================================================
``{"do": "prepare", **order}``      make what an :class:`~contenders.task.Order` says
``{"do": "first", "count": n}``     compute n times: seconds of each, compilation included, and the
                                    numbers that came out
``{"do": "time", "repeats": n}``    compute n times: seconds of each
``{"do": "peak"}``                  the most memory that the process had while it computed
``{"do": "profile"}``               milliseconds of each operation of one more time
``{"do": "call", "what": name,      what ``name(mode, order, file)`` of the contender's module
"file": path, **order}``            returns, the work of the last order being gone
==================================  ===============================================================

The first line out is ``{"import_seconds": ...}``. An answer ``{"skip": reason}`` means that the
contender cannot run here, ``{"error": reason}`` that it failed, ``{"memory": reason}`` that it
failed for want of memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class Skip(Exception):
    """Why a contender cannot run here."""


@dataclass
class Work:
    """What a contender made of an order.

    Attributes
    ----------
    run : callable
        Computes once and has waited for the result when it returns it.
    numbers : callable
        ``numbers(result)`` returns as a flat list what is compared between contenders.
    profile : callable, optional
        Computes once more and returns the milliseconds of each operation.
    notes : dict, optional
        What else is worth recording.
    repeat : callable, optional
        ``repeat(n)`` computes n times, waits once and returns the seconds that took in all; where
        each time alone would be waited for otherwise, as a GPU should not be.
    peak : callable, optional
        Returns the most bytes that computing took, where that is not memory of the process.
    """

    run: Callable[[], Any]
    numbers: Callable[[Any], list[float]]
    profile: Callable[[], dict[str, float]] | None = None
    notes: dict[str, Any] | None = None
    repeat: Callable[[int], float] | None = None
    peak: Callable[[], int] | None = None


class Server:
    """Answers one order after the other for a contender's module and mode."""

    def __init__(self, contender: Any, mode: str) -> None:
        self.contender, self.mode = contender, mode
        self.work: Work | None = None

    def prepare(self, **order: Any) -> dict[str, Any]:
        ordered = self._ordered(order)
        seconds, self.work = timed(lambda: self.contender.prepare(self.mode, ordered))
        forget_peak()  # reading weights may take more memory than computing with them
        return {"seconds": seconds, "notes": self.work.notes or {}}

    def call(self, what: str, file: str, **order: Any) -> dict[str, Any]:
        return getattr(self.contender, what)(self.mode, self._ordered(order), Path(file))

    def _ordered(self, order: dict[str, Any]) -> Any:
        from contenders.task import Order  # imports NumPy, after what is timed

        self.work = None  # frees what the last order needed
        order["decayed"] = tuple(order.get("decayed", ()))
        return Order(**order)

    def first(self, count: int) -> dict[str, Any]:
        seconds, numbers = [], []
        for _ in range(count):
            spent, result = timed(self.work.run)
            seconds.append(spent)
            numbers.append(self.work.numbers(result))
        return {"seconds": seconds, "numbers": numbers}

    def time(self, repeats: int) -> dict[str, Any]:
        if self.work.repeat:
            return {"seconds": [self.work.repeat(repeats) / repeats]}
        return {"seconds": [timed(self.work.run)[0] for _ in range(repeats)]}

    def peak(self) -> dict[str, Any]:
        return {"bytes": self.work.peak() if self.work.peak else peak_bytes()}

    def profile(self) -> dict[str, Any]:
        return {"operations": self.work.profile() if self.work.profile else {}}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            return getattr(self, request.pop("do"))(**request)
        except Skip as reason:
            return {"skip": str(reason)}
        except Exception as error:
            traceback.print_exc()
            return {"memory" if short_of_memory(error) else "error": one_line(error)}


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that a call took, and its result."""
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


def one_line(error: BaseException) -> str:
    """Return an error as one short line."""
    first = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {first}"[:300]


def short_of_memory(error: Exception) -> bool:
    """Return whether an error says that there is too little memory, in the words of a library."""
    return isinstance(error, MemoryError) or "out of memory" in str(error).lower()


def forget_peak() -> None:
    """Let the most memory be what it is now, where the system can."""
    gc.collect()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Return the most memory that this process has had since, where the system says so."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def die_with_parent() -> None:
    """Ask Linux to end this process with the one that started it: it may be asleep by then."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def main(library: str, module: str, mode: str) -> None:
    """Import a library, which is timed, then answer until the orders end."""
    die_with_parent()
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        seconds, _ = timed(lambda: importlib.import_module(library))
    except ImportError as error:
        answers.write(json.dumps({"skip": one_line(error)}) + "\n")
        return
    server = Server(importlib.import_module(f"contenders.{module}"), mode)
    answers.write(json.dumps({"import_seconds": seconds}) + "\n")
    for line in sys.stdin:
        answers.write(json.dumps(server.answer(json.loads(line))) + "\n")
