"""What keeps a plugin's code from doing harm while it is loaded."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from vitkit.signals import leave, leaves


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Run somebody else's code: what it prints goes to stderr, and only a key press interrupts.

    A KeyboardInterrupt that the code raises by itself becomes a RuntimeError; the one of a real
    Ctrl-C stays what it is.
    """
    pressed: list[int] = []
    before = signal.getsignal(signal.SIGINT)

    def on_signal(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        leave(number, frame)

    watching = threading.current_thread() is threading.main_thread() and leaves(before)
    if watching:
        signal.signal(signal.SIGINT, on_signal)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except KeyboardInterrupt:
        if pressed or not watching:
            raise
        raise RuntimeError("it raised KeyboardInterrupt") from None
    finally:
        if watching:
            signal.signal(signal.SIGINT, before)
