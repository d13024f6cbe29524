"""What is asked of a GPU beside computing: to wait for it, and how much of its memory was taken."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

LEARNING_RATE = 1e-4
"""Of races on GPUs: at 1e-3 the first losses of a ViT-B jump, and precisions drift apart."""


class HostEvents:
    """Stands in for ``cupy.cuda`` where there is no GPU: nothing is asked for, all is done."""

    class Event:
        """A time that is noted."""

        def record(self) -> None:
            """Note the time."""
            self.at = time.perf_counter()

    @staticmethod
    def get_elapsed_time(start: Event, end: Event) -> float:
        """Return the milliseconds from one time to another."""
        return 1e3 * (end.at - start.at)

    @staticmethod
    def alloc_pinned_memory(size: int) -> bytearray:
        """Return memory of the host."""
        return bytearray(size)


@dataclass
class Device:
    """A GPU as one library sees it, or what stands in for it.

    Attributes
    ----------
    synchronize : callable
        Waits until all that was asked for has been computed.
    free : callable
        Returns how many bytes nobody has taken; 0 where that is not known.
    release : callable
        Gives back what the library keeps for later.
    cuda : object
        ``cupy.cuda``, or what stands in for it.
    taken : int
        The most bytes that computing took of the GPU: what the library keeps for later, workspaces
        and graphs included.
    """

    synchronize: Callable[[], None]
    free: Callable[[], int]
    release: Callable[[], None]
    cuda: Any = HostEvents
    taken: int = 0
    _before: int | None = field(default=None)

    def start(self) -> None:
        """Begin to count memory: nobody else takes any until :meth:`repeat` has returned once."""
        self.rest()
        self._before, self.taken = self.free(), 0

    def rest(self) -> None:
        """Give back all memory that is not in use."""
        gc.collect()
        self.release()

    def mark(self) -> Any:
        """Have a time noted when all that was asked for before has been computed."""
        event = self.cuda.Event()
        event.record()
        return event

    def between(self, begun: Any, ended: Any) -> float:
        """Return the seconds between two times that have been noted."""
        return float(self.cuda.get_elapsed_time(begun, ended)) * 1e-3

    def waited(self, function: Callable[[], Any]) -> Any:
        """Return the result of a function when it has been computed."""
        result = function()
        self.synchronize()
        return result

    def repeat(self, function: Callable[[], Any], count: int) -> float:
        """Return the seconds that calling a function so often takes the GPU, then let go of memory.

        It is called once before that: the memory it needs is asked for anew after each rest.
        """
        self.waited(function)
        started = time.perf_counter()
        for _ in range(count):
            function()
        self.synchronize()
        seconds = time.perf_counter() - started
        if self._before is not None:
            self.taken, self._before = self._before - self.free(), None
        self.release()
        return seconds

    def median(self, function: Callable[[], Any], rounds: int = 5, count: int = 10) -> float:
        """Return the median over rounds of the seconds of one of ``count`` calls."""
        return statistics.median(self.repeat(function, count) / count for _ in range(rounds))

    def ceilings(
        self, product: Callable[[], Any], flop: float, copy: Callable[[], Any], size: int
    ) -> dict[str, float]:
        """Return how fast a product of matrices is, and a copy of memory, read and written."""
        return {
            "product_flops": flop / self.median(product),
            "bytes_per_second": 2.0 * size / self.median(copy),
        }


def of_torch(device: str) -> Device:
    """Return the device of an order as PyTorch sees it."""
    import torch

    if device == "cuda":
        cuda = torch.cuda
        return Device(cuda.synchronize, lambda: cuda.mem_get_info()[0], cuda.empty_cache)
    return Device(lambda: None, lambda: 0, lambda: None)


def of_vitkit(xp: Any) -> Device:
    """Return the device of an array module of vitkit's."""
    from vitkit.backend import memory_left, release_memory, synchronize

    return Device(
        lambda: synchronize(xp),
        lambda: (memory_left(xp) or (0, 0))[0],
        lambda: release_memory(xp),
        xp.cuda if xp.__name__ == "cupy" else HostEvents,
    )
