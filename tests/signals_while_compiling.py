"""Compile a function again and again, each time in a fork that a signal reaches somewhere in it.

It comes as each function of LLVM's bindings is called for the first time, and at as many calls of
anybody, drawn at random, as the argument says. It prints how many were ended so, and where not.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from types import CodeType, FrameType

import numba

from vitkit.signals import Terminated, leaving

LONGEST = 20.0  # seconds that a signal may take to come again, on any machine


class Sender:
    """Sends a signal at a call, counting all of them or the first of each function of LLVM's."""

    def __init__(self, at: int, bindings: bool) -> None:
        self.at, self.bindings, self.count, self.where = at, bindings, 0, ""
        self._called: set[CodeType] = set()

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        if event != "call":
            return
        if self.bindings:
            name = str(frame.f_globals.get("__name__"))
            if not name.startswith("llvmlite.binding") or frame.f_code in self._called:
                return
            self._called.add(frame.f_code)
        self.count += 1
        if self.count == self.at:
            self.where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
            sys.setprofile(None)
            signal.raise_signal(signal.SIGTERM)


def compiled(sender: Sender) -> None:
    function = numba.njit(lambda x: x + 1.5)
    sys.setprofile(sender)
    try:
        function(1.0)
        deadline = time.monotonic() + LONGEST
        while sender.where and time.monotonic() < deadline:
            sum(range(100))
    finally:
        sys.setprofile(None)


def calls(bindings: bool) -> int:
    """Return how many calls there are where nobody sends a signal."""
    compiled(sender := Sender(0, bindings))
    return sender.count


def ended(at: int, bindings: bool) -> bool:
    """Return whether a signal in a fork has come, and say where it has been lost."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    sender, code = Sender(at, bindings), 2
    try:
        with leaving():
            compiled(sender)
    except Terminated:
        code = 0
    if code and sender.where:
        print(f"lost {sender.where}", flush=True)
    sys.stderr.flush()
    os._exit(code)


calls(True)  # the first compilation calls more than others
found = calls(True), calls(False)
drawn = random.Random(3)  # noqa: S311 (it hides nothing)
print("bindings", sum(ended(at, True) for at in range(1, found[0] + 1)), flush=True)
at_random = [drawn.randrange(1, found[1]) for _ in range(int(sys.argv[1]))]
print("anywhere", sum(ended(at, False) for at in at_random))
