"""What ends a process from outside, and how it leaves: cleaning up, with the exit code of that."""

from __future__ import annotations

import signal
import threading
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

    Python drops what is raised while an object is finalized, and in what C code calls. An object
    of LLVM's that is left half made complains when it is finalized. The signal then comes again.
    """
    if _not_now(frame):
        again = threading.Timer(0.001, signal.raise_signal, [number])
        again.daemon = True
        again.start()
        return
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated


def _not_now(frame: FrameType | None) -> bool:
    """Whether what is raised in a frame is dropped on its way out, or does harm there."""
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
    alone outside the main thread.
    """
    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in STOPPED:
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                before[number] = signal.signal(number, leave)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
