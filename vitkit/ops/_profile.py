"""Where time goes: to which operation, and to which part of what calls them.

Time is a line that each start and end of an operation cuts; every piece belongs to what runs on
top at that moment. An operation that calls others is thus charged only for what it does itself,
and all pieces add up to the time that went by.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from vitkit.backend import ArrayModule, backend_of
from vitkit.ops._op import Op, watch

Clock = Callable[[], float]


@dataclass
class Spent:
    """How often something ran, and for how long in all.

    Attributes
    ----------
    calls : int
        How often it was begun.
    seconds : float
        Its own time, without that of what it called.
    """

    calls: int = 0
    seconds: float = 0.0


class Profile:
    """The time of operations; see :func:`profiled`.

    Parameters
    ----------
    clock : callable, default time.perf_counter
        Returns seconds.

    Attributes
    ----------
    operations : dict of str to Spent
        By the operation's name.
    sections : dict of str to Spent
        What is no operation and has a name: parts of a training step.
    rest : Spent
        What has no name.
    """

    def __init__(self, *, clock: Clock = time.perf_counter) -> None:
        self.operations: dict[str, Spent] = {}
        self.sections: dict[str, Spent] = {}
        self.rest = Spent()
        self._clock = clock
        self._stack = [self.rest]
        self._since = 0.0
        self._paused = True  # before it is started, and after it is stopped

    @property
    def seconds(self) -> float:
        """All time since the start, that of pauses left out."""
        rows = (self.rest, *self.operations.values(), *self.sections.values())
        return sum(row.seconds for row in rows)

    def start(self) -> None:
        """Start the clock."""
        self._paused, self._since = False, self._clock()

    def stop(self) -> None:
        """Stop the clock."""
        self._cut()
        self._paused = True

    def __call__(self, op: Op[..., Any], xp: ArrayModule) -> Callable[[], None]:
        """Charge what follows to an operation, until what is returned is called."""
        if self._paused:
            return _nothing
        wait = _wait_for(xp)
        wait()  # for what was asked of the device before
        self._enter(self.operations.setdefault(op.__name__, Spent()))

        def done() -> None:
            wait()
            self._leave()

        return done

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Charge what is no operation inside the block to ``name``."""
        if self._paused:
            yield
            return
        self._enter(self.sections.setdefault(name, Spent()))
        try:
            yield
        finally:
            self._leave()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the block out."""
        before = self._paused
        self.stop()
        try:
            yield
        finally:
            if not before:
                self.start()

    def _enter(self, row: Spent) -> None:
        self._cut()
        row.calls += 1
        self._stack.append(row)

    def _leave(self) -> None:
        self._cut()
        self._stack.pop()

    def _cut(self) -> None:
        """Charge the time since the last cut to what runs on top."""
        if not self._paused:
            now = self._clock()
            self._stack[-1].seconds += now - self._since
            self._since = now


@contextmanager
def profiled(*, clock: Clock = time.perf_counter) -> Iterator[Profile]:
    """Measure the time of every operation inside the block, in this thread.

    On a device each operation is waited for, so that its time is its own; the whole then takes
    longer than it does without.

    Parameters
    ----------
    clock : callable, default time.perf_counter
        Returns seconds.

    Yields
    ------
    Profile
        Calls and seconds by operation, while and after the block runs.

    Examples
    --------
    >>> import numpy as np
    >>> from vitkit import ops
    >>> x = np.ones((2, 3), "float32")
    >>> with ops.profiled() as profile:
    ...     y = ops.gelu(ops.gelu(x, xp=np), xp=np)
    >>> profile.operations["gelu"].calls
    2
    """
    profile = Profile(clock=clock)
    token = watch.set(profile)
    profile.start()
    try:
        yield profile
    finally:
        profile.stop()
        watch.reset(token)


def section(name: str) -> AbstractContextManager[None]:
    """Name what is no operation inside the block, for the profile that is being made, if any."""
    profile = watch.get()
    return profile.section(name) if isinstance(profile, Profile) else nullcontext()


def paused() -> AbstractContextManager[None]:
    """Leave the block out of the profile that is being made, if any."""
    profile = watch.get()
    return profile.paused() if isinstance(profile, Profile) else nullcontext()


def _wait_for(xp: ArrayModule) -> Callable[[], None]:
    """Return what waits for the device of an array module; on the host there is nothing to do."""
    backend = None if xp is None else backend_of(xp)
    return _nothing if backend is None or backend.on_host else backend.synchronize


def _nothing() -> None:
    """Do nothing."""
