"""What ends a process from outside, and how it leaves: cleaning up, with the exit code of that."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPED = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
"""What a run is called that a signal has stopped."""


class Terminated(SystemExit):
    """SIGTERM has come: the process cleans up and ends, with exit code 143.

    It is no error, and no plugin's attempt to end the program.
    """

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


def terminate(number: int, frame: FrameType | None) -> None:
    """Leave; the handler of SIGTERM where there is nothing to be saved."""
    raise Terminated


def leaves(handler: object) -> bool:
    """Whether a handler only ends the process, so that whoever saves first may do without it."""
    return handler in (signal.default_int_handler, terminate)


@contextmanager
def leaving_on_sigterm() -> Iterator[None]:
    """Have SIGTERM end a block by :class:`Terminated`, as Ctrl-C ends it by KeyboardInterrupt.

    One that is ignored stays ignored, as does one that somebody else handles; signals are left
    alone outside the main thread.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
