"""What is asked of CuPy about the device at hand, in one place: a test may answer instead."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from vitkit.backend import compute_capability

RUNS = 4  # that are timed as one: asking for a small product takes longer than the product


def wants_same_bits() -> bool:
    """Return whether the environment asks for results that repeat to the bit, at any price."""
    return os.environ.get("VITKIT_DETERMINISTIC") == "1"


class Gpu:
    """The device in use, for arrays of the array module ``name``."""

    name = "cupy"

    @property
    def cuda(self) -> Any:
        """CuPy's own module for it."""
        return sys.modules["cupy"].cuda

    def capability(self) -> int:
        """Return the compute capability times ten, 0 where there is no GPU."""
        return compute_capability()

    def device(self) -> int:
        """Return which device is in use."""
        return int(self.cuda.runtime.getDevice())

    def title(self) -> str:
        """Return what its maker calls it."""
        return str(self.cuda.runtime.getDeviceProperties(self.device())["name"].decode())

    def stream(self) -> int:
        """Return the address of the stream in use."""
        return int(self.cuda.get_current_stream().ptr)

    def capturing(self) -> bool:
        """Return whether what that stream is asked becomes part of a graph."""
        return bool(self.cuda.get_current_stream().is_capturing())

    def lasting(self) -> Any:
        """Return a context whose arrays outlive a graph: its own pool takes its arrays with it."""
        pool = sys.modules["cupy"].get_default_memory_pool()
        return self.cuda.using_allocator(pool.malloc)

    def seconds(self, run: Callable[[], Any]) -> float:
        """Return how long the device takes for what ``run`` asks of it; this waits for it."""
        start, end = self.cuda.Event(), self.cuda.Event()
        start.record()
        for _ in range(RUNS):
            run()
        end.record()
        end.synchronize()
        return float(self.cuda.get_elapsed_time(start, end)) * 1e-3 / RUNS
