"""What code under test must not depend on: global random generators, and other threads."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")

MOST_PAUSES = 200  # for each call, so that decoding a photograph does not take seconds
PAUSE = 1e-6  # seconds; the system makes about 50 microseconds of it
NOT_UNDER_TEST = frozenset(("numpy", "PIL", *sys.stdlib_module_names))


@contextmanager
def global_generators(seed: int) -> Iterator[Callable[[], str]]:
    """Seed the generators of ``np.random`` and ``random``, and put both back after the block.

    Yields
    ------
    callable
        Returns which of them the block has moved so far, as words for a message, or ``""``.
    """
    numpy_before, python_before = np.random.get_state(), random.getstate()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002 (it is the global generator that is watched)
    random.seed(seed)
    start = _states()

    def moved() -> str:
        changed = zip(("np.random", "random"), start, _states(), strict=True)
        return " and ".join(name for name, before, now in changed if before != now)

    try:
        yield moved
    finally:
        np.random.set_state(numpy_before)  # noqa: NPY002
        random.setstate(python_before)


def _states() -> tuple[Any, Any]:
    state: Any = np.random.get_state()  # noqa: NPY002
    return (state[1].tobytes(), *state[2:]), random.getstate()


def interleaved(calls: Sequence[Callable[[], T]], threads: int = 3) -> list[T]:
    """Return the results of calls that threads make at once, changing over at every line.

    Two threads seldom meet in a short function by chance. Here each pauses at every line of
    Python, the standard library's and NumPy's left out, so that what one call leaves behind
    another finds.

    Parameters
    ----------
    calls : sequence of callable
        Each takes nothing.
    threads : int, default 3
        How many run at once.

    Returns
    -------
    list
        What the calls returned, in their order.
    """
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(_with_pauses, calls))


def _with_pauses(call: Callable[[], T]) -> T:
    left = MOST_PAUSES

    def pause(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        if frame.f_globals.get("__name__", "").split(".")[0] in NOT_UNDER_TEST:
            return None
        if left > 0 and event == "line":
            left -= 1
            time.sleep(PAUSE)
        return pause

    before = sys.gettrace()  # that of a debugger, or of a measurement of coverage
    sys.settrace(pause)
    try:
        return call()
    finally:
        sys.settrace(before)
