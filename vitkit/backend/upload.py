"""Arrays brought to a GPU while it computes: by pinned memory, two at a time."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass
class _Slot:
    """Room for one upload: pinned on the host, and on the device, where it waits for its turn."""

    pinned: np.ndarray
    waiting: Any
    arrived: Any = None
    taken: Any = None


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

    def __call__(self, host: np.ndarray) -> None:
        """Ask for the array to become ``host``, which may be changed at once."""
        if isinstance(host, self._cupy.ndarray):  # it is there already
            self._target[...] = host
            return
        slot = self._slots[0]
        self._slots.reverse()
        if slot.arrived is not None:
            slot.arrived.synchronize()  # the pinned memory has been read
            self._stream.wait_event(slot.taken)
        np.copyto(slot.pinned, host)
        slot.waiting.set(slot.pinned, stream=self._stream)
        slot.arrived = self._stream.record()
        current = self._cupy.cuda.get_current_stream()
        current.wait_event(slot.arrived)
        self._target[...] = slot.waiting
        slot.taken = current.record()

    def _slot(self) -> _Slot:
        shape, dtype = self._target.shape, self._target.dtype
        count = math.prod(shape)
        memory = self._cupy.cuda.alloc_pinned_memory(max(count * dtype.itemsize, 1))
        pinned = np.frombuffer(memory, dtype, count).reshape(shape)
        return _Slot(pinned, self._cupy.empty(shape, dtype))
