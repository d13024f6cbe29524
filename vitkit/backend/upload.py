"""Arrays brought to a GPU while it computes: by pinned memory, two at a time."""

from __future__ import annotations

import math
import sys
import weakref
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass
class _Slot:
    """Room for one upload: pinned on the host, and on the device, where it waits for its turn."""

    pinned: np.ndarray
    waiting: Any
    arrived: Any
    taken: Any


class PinnedUpload:
    """Writes to one array on the GPU, from the host, without making either wait for the other.

    The copy over the bus runs on a stream of its own beside what the GPU computes; the array itself
    is written in the order of the current stream. Only the upload before the last is waited for.

    Parameters
    ----------
    target : cupy.ndarray
        What to write to.
    """

    def __init__(self, target: Any) -> None:
        self._cupy = sys.modules["cupy"]
        self._target = target
        self._stream = self._cupy.cuda.Stream(non_blocking=True)
        self._slots = [self._slot() for _ in range(2)]
        # CuPy hands pinned memory out again at once, where the device may still read it.
        weakref.finalize(self, _wait, [slot.arrived for slot in self._slots]).atexit = False

    def __call__(self, host: np.ndarray) -> None:
        """Ask for the array to become ``host``, which may be changed at once."""
        if isinstance(host, self._cupy.ndarray):  # it is there already
            self._target[...] = host
            return
        slot = self._slots[0]
        self._slots.reverse()
        slot.arrived.synchronize()  # the pinned memory has been read
        self._stream.wait_event(slot.taken)
        np.copyto(slot.pinned, host)
        slot.waiting.set(slot.pinned, stream=self._stream)
        self._stream.record(slot.arrived)
        current = self._cupy.cuda.get_current_stream()
        current.wait_event(slot.arrived)
        self._target[...] = slot.waiting
        current.record(slot.taken)

    def _slot(self) -> _Slot:
        cuda, shape, dtype = self._cupy.cuda, self._target.shape, self._target.dtype
        count = math.prod(shape)
        memory = cuda.alloc_pinned_memory(max(count * dtype.itemsize, 1))
        pinned = np.frombuffer(memory, dtype, count).reshape(shape)
        waiting = self._cupy.empty(shape, dtype)
        arrived, taken = (cuda.Event(disable_timing=True) for _ in range(2))
        cuda.get_current_stream().record(taken)  # who had this memory before may still use it
        return _Slot(pinned, waiting, arrived, taken)


def _wait(events: list[Any]) -> None:
    with suppress(Exception):  # a device that has failed reads nothing any more
        for event in events:
            event.synchronize()
