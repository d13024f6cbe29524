"""Waits for the strict device, counted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vitkit.testing import recording

_counters: list[list[str]] = []


@contextmanager
def count_syncs() -> Iterator[list[str]]:
    """Yield a list that grows by one word for each wait for the device inside the block.

    The words are ``item``, ``float``, ``int``, ``bool``, ``tolist``, ``repr``,
    ``copy to host`` (``get``, ``asnumpy``, ``to_numpy``), ``boolean mask``, ``synchronize``, and
    the names of functions whose result has a size only the device knows, such as ``nonzero``.
    """
    seen: list[str] = []
    _counters.append(seen)
    try:
        yield seen
    finally:
        _counters[:] = [counter for counter in _counters if counter is not seen]


def wait(what: str) -> None:
    """Note a wait for the device, by a word; refuse it where work is recorded as a graph."""
    recording.refuse(f"a wait for the device ({what})")
    for counter in _counters:
        counter.append(what)
