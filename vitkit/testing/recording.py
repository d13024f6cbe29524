"""What the strict device is asked, recorded and done again on the same memory: a CUDA graph.

A recorded step repeats what was asked of the device and nothing else: numbers that Python knew are
as they were, and arrays lie where they lay. What CuPy refuses while a stream captures is refused:
waiting for the device, bringing arrays to it, and its own matrix products.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")
Replay = Callable[[], Any]

_tapes: list[list[Replay]] = []


class Recording:
    """What was recorded.

    Parameters
    ----------
    steps : list of callable
        Each does one thing again.
    """

    def __init__(self, steps: list[Replay]) -> None:
        self.steps = steps

    def replay(self) -> None:
        """Do all of it again."""
        for step in self.steps:
            step()


def record(function: Callable[[], T]) -> tuple[Recording, T]:
    """Call a function and record what it asks of the device; return that, and what it returned."""
    tape: list[Replay] = []
    _tapes.append(tape)
    try:
        result = function()
    finally:
        _tapes.pop()
    return Recording(tape), result


def note(step: Replay) -> None:
    """Add something that was done to what is being recorded, if anything is."""
    for tape in _tapes:
        tape.append(step)


def note_result(function: Callable[..., Any], args: Any, kwargs: Any, result: Any) -> None:
    """Note a call of a NumPy function whose results belong where they are now.

    A view of an argument, or an argument itself, needs no copy; a new array is written again.
    """
    if not _tapes:
        return
    given = [each for each in (*args, *kwargs.values()) if isinstance(each, np.ndarray)]
    made = result if isinstance(result, (tuple, list)) else (result,)
    is_view = [isinstance(each, np.ndarray) and _lies_in(each, given) for each in made]
    out = kwargs.get("out")
    if all(is_view) and out is None and result is not None:
        return

    def again() -> None:
        fresh = function(*args, **kwargs)
        many = fresh if isinstance(fresh, (tuple, list)) else (fresh,)
        for old, new, view in zip(made, many, is_view, strict=True):
            if isinstance(old, np.ndarray) and not view:
                np.copyto(old, new)

    note(again)


def refuse(what: str) -> None:
    """Raise as CuPy does if something is asked for that cannot be part of a recording."""
    if _tapes:
        raise RuntimeError(f"current stream is capturing: {what} cannot be part of a graph.")


def _lies_in(array: np.ndarray, others: list[np.ndarray]) -> bool:
    return any(np.may_share_memory(array, other) for other in others)
