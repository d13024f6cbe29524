"""What of the process code may change for a while, and must put back."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

PATIENCE = 0.1  # seconds that a thread which was left behind may take to end


@contextmanager
def surroundings_kept() -> Iterator[list[str]]:
    """Put back what the block has changed.

    Yields
    ------
    list of str
        What that is, as words for a message; filled when the block ends.
    """
    changed: list[str] = []
    before, threads = _surroundings(), set(threading.enumerate())
    try:
        yield changed
    finally:
        after = _surroundings()
        changed += [name for name, what in before.items() if after[name] != what]
        for thread in set(threading.enumerate()) - threads:
            thread.join(PATIENCE)
            if thread.is_alive():
                changed.append(f"the thread {thread.name!r}")
        _restore(before)


def _surroundings() -> dict[str, Any]:
    handlers = {_handler(each): signal.getsignal(each) for each in signal.Signals}
    return {
        **handlers,
        "sys.excepthook": sys.excepthook,
        "sys.stdout": sys.stdout,
        "sys.stderr": sys.stderr,
        "the current folder": os.getcwd(),
        "numpy.seterr": np.geterr(),
        "the handlers of the root logger": list(logging.getLogger().handlers),
    }


def _handler(number: signal.Signals) -> str:
    return f"the handler of {number.name}"


def _restore(before: dict[str, Any]) -> None:
    if threading.current_thread() is threading.main_thread():
        for each in signal.Signals:
            handler = before[_handler(each)]
            if handler is not None and signal.getsignal(each) != handler:
                signal.signal(each, handler)
    sys.excepthook = before["sys.excepthook"]
    sys.stdout, sys.stderr = before["sys.stdout"], before["sys.stderr"]
    os.chdir(before["the current folder"])
    np.seterr(**before["numpy.seterr"])
    logging.getLogger().handlers[:] = before["the handlers of the root logger"]
