"""What ends a process from outside, and how it leaves: cleaning up, with the exit code of that."""

from __future__ import annotations

import _thread
import signal
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOPPED = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
"""What a run is called that a signal has stopped."""


class Terminated(SystemExit):
    """SIGTERM has come: the process cleans up and ends, with exit code 143.

    It is no error, and no plugin's attempt to end the program.
    """

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


def leave(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt or :class:`Terminated`: the handler where nothing is to be saved.

    An object that is being finalized is left to that, and LLVM's are not left half made, which
    complain when they are finalized: the signal is sent again a moment later.
    """
    if _not_now(frame):
        _send_again(number)
        return
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated


def _send_again(number: int) -> None:
    def send() -> None:
        time.sleep(0.001)
        signal.raise_signal(number)

    # No Timer: it takes a lock, and whoever is interrupted may have that.
    _thread.start_new_thread(send, ())


def _not_now(frame: FrameType | None) -> bool:
    """Whether what is raised in a frame does harm there."""
    while frame is not None:
        code = frame.f_code
        if code.co_name == "__del__" or code.co_filename in _CALLED_BY_COLLECTOR:
            return True
        if str(frame.f_globals.get("__name__")).startswith("llvmlite.binding"):
            return True
        frame = frame.f_back
    return False


_CALLED_BY_COLLECTOR = {
    weakref.WeakSet.__init__.__code__.co_filename,
    weakref.finalize.__init__.__code__.co_filename,
}


def leaves(handler: object) -> bool:
    """Whether a handler only ends the process, so that whoever saves first may do without it."""
    return handler in (signal.default_int_handler, leave)


@contextmanager
def leaving() -> Iterator[None]:
    """Have a signal end a block by :func:`leave`.

    One that is ignored stays ignored, as does one that somebody else handles; signals are left
    alone outside the main thread. Where Python drops what is raised, as it does in callbacks of
    weak references and in generators that are closed, the signal is sent again.
    """
    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in STOPPED:
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                before[number] = signal.signal(number, leave)
    others = sys.unraisablehook

    def dropped(what: Any) -> None:
        number = DROPPED.get(type(what.exc_value))
        if number in before:
            _send_again(number)
        else:
            others(what)

    try:
        if before:  # not in other threads, which would give the hook back in any order
            sys.unraisablehook = dropped
        yield
    finally:
        if before:
            sys.unraisablehook = others
        for number, handler in before.items():
            signal.signal(number, handler)


DROPPED = {KeyboardInterrupt: signal.SIGINT, Terminated: signal.SIGTERM}
"""Which signal came where such an exception is dropped."""
