"""What is recorded as graphs, and what becomes of it where that fails or memory is short."""

from __future__ import annotations

import logging
import traceback
import weakref
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

from vitkit.backend import ArrayModule, can_record, release_memory, synchronize
from vitkit.errors import BackendError, first_line
from vitkit.kernels import why_none
from vitkit.ops._op import kernels_off, watch

LOGGER = logging.getLogger("vitkit")
WARM_UP = 2
"""Times that something is done before it is recorded, the last of them in the form that is
recorded. While a stream captures nothing can be timed, and CUDA bears that a kernel is loaded in
the relaxed mode alone, which is the one that CuPy captures in."""
REPAID = 8
"""Replays that pay for a recording. It takes about as long as asking for everything three times:
for the work, for the graph and for memory of its own; a replay saves one such time where the device
waits for Python, and less where it does not. An estimate: no GPU has been timed."""
IN_VAIN = 3  # times in a row that graphs are let go of unpaid, after which there are none
R = TypeVar("R")
T = TypeVar("T")


def wants_graphs(xp: ArrayModule, wanted: bool | None) -> bool:
    """Return whether work on arrays of an array module is to be recorded.

    Parameters
    ----------
    xp : module
        The array module.
    wanted : bool or None
        What somebody asked for; None is where it can be.

    Raises
    ------
    BackendError
        If it is wanted and nothing records for ``xp``.
    """
    if wanted and not can_record(xp):
        raise BackendError(
            f"graph=True needs a GPU to record on; the model is on {xp.__name__}. Leave it out, or "
            "place the model with backend='cupy'."
        )
    if wanted is not None:
        return wanted
    return can_record(xp) and not why_none(xp) and not kernels_off()


class Graphs(Generic[R]):
    """What is recorded by key, and what becomes of it where that fails or memory is short.

    Parameters
    ----------
    xp : module
        The array module.
    what : str
        What is recorded, as lines of the log have it.
    records : bool
        Whether anything is recorded.
    falls_back : bool
        Whether what cannot be recorded is said in one line and run without a graph.
    """

    def __init__(self, xp: ArrayModule, what: str, *, records: bool, falls_back: bool) -> None:
        self.xp, self._what = xp, what
        self._records, self._falls_back = records, falls_back
        self.recorded: dict[Hashable, R] = {}
        self._seen: dict[Hashable, int] = {}
        self._rehearsed: set[Hashable] = set()
        self._unrecordable: set[Hashable] = set()  # shapes
        self._told = False  # that graphs were let go of
        self._alone = False  # while something is done again for which they were
        self._replays = self._in_vain = 0  # since they were let go of; times that these were few
        _ALL.add(self)

    def run(
        self,
        key: Hashable,
        shapes: Hashable,
        said: str,
        *,
        plain: Callable[[], T],
        rehearse: Callable[[], T],
        record: Callable[[], tuple[R, T]],
        replay: Callable[[R], T],
        left: int = REPAID,
        may_repeat: Callable[[], bool] = lambda: True,
    ) -> T:
        """Do something by the graph of its key, or record that if it is due, or do without.

        Parameters
        ----------
        key, shapes : hashable
            What a graph depends on, and what decides whether there can be one.
        said : str
            The shapes in words.
        plain, rehearse, record, replay : callable
            The four ways; ``rehearse`` is as it will be recorded, and ``record`` returns what it
            recorded first.
        left : int
            How many times it is to be done after this, as far as is known.
        may_repeat : callable
            Whether ``plain`` or ``rehearse`` may be begun again where it failed.
        """
        if self._alone or not self._records or watch.get() is not None:
            return self.beside(plain, may_repeat)
        recorded = self.recorded.get(key)
        if recorded is not None:
            self._replays += 1
            return replay(recorded)
        seen = self._seen[key] = self._seen.get(key, 0) + 1
        if seen < WARM_UP or shapes in self._unrecordable or left < REPAID:
            return self.beside(plain, may_repeat)
        rehearsed = key in self._rehearsed
        try:
            if rehearsed:
                self.recorded[key], result = record()
            else:
                result = self.beside(rehearse, may_repeat)
                self._rehearsed.add(key)
            return result
        except Exception as error:
            if not self._falls_back:
                raise
            if not (rehearsed or may_repeat()):  # it has changed what a second time would again
                error.add_note(
                    f"{self._what} is done like this to be recorded as a graph, with numbers that "
                    "change in arrays of the device; if that is why, graph=False does without."
                )
                raise
            LOGGER.warning(
                "%s on images of shape %s cannot be recorded as a graph: %s.",
                self._what,
                said,
                first_line(error),
            )
            traceback.clear_frames(error.__traceback__)  # they hold what the recording took
        self._unrecordable.add(shapes)
        release_memory(self.xp)
        return self.beside(plain, may_repeat)

    def beside(self, plain: Callable[[], T], may_repeat: Callable[[], bool] = lambda: True) -> T:
        """Call a function; where it finds no memory beside graphs, call it again without them."""
        try:
            return plain()
        except MemoryError as error:
            holders = [each for each in _ALL if each.xp is self.xp and each.recorded]
            if not holders or not may_repeat():
                raise
            traceback.clear_frames(error.__traceback__)
            for graphs in holders:
                graphs._let_go(first_line(error))
        release_memory(self.xp)
        self._alone = True
        try:
            return plain()
        finally:
            self._alone = False

    def _let_go(self, reason: str) -> None:
        """Make room, and stay without graphs where that is all that becomes of them."""
        self.clear()
        self._in_vain = self._in_vain + 1 if self._replays < REPAID else 0
        self._replays = 0
        if self._in_vain == IN_VAIN:
            self._records = False
            LOGGER.warning(
                "%s is no longer recorded: %d times in a row its graphs had to make room before "
                "they had saved any time.",
                self._what,
                IN_VAIN,
            )
        elif not self._told:
            self._told = True
            LOGGER.warning(
                "%s: its graphs leave too little memory for what runs without one (%s): they are "
                "let go of for that and recorded again, each time.",
                self._what,
                reason,
            )

    def clear(self) -> None:
        """Free the graphs; what is known of shapes stays."""
        if self.recorded:
            synchronize(self.xp)  # sync: the last replay may still use what is freed
            self.recorded.clear()


_ALL: weakref.WeakSet[Graphs[Any]] = weakref.WeakSet()
"""Whatever holds graphs: the memory that they keep is the device's, and anyone may lack it."""
