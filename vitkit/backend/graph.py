"""Work on a GPU recorded once and launched as one CUDA graph.

Memory comes from a pool that belongs to the graph: what CuPy's own pool would hand out again, a
replay would write into. The stream is one of its own, since the default one cannot be recorded; it
is kept in order with the stream that asks for a replay.

A pool of CuPy's that goes with free memory in it takes that along for good: its parts and its lists
hold each other. So the pools of graphs that are gone are kept until they are empty.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")
OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
_LEFT: list[Any] = []
"""Pools of graphs that are gone: an array may hold a part of one yet."""


class CudaGraph:
    """A recorded graph, its stream and its memory.

    Parameters
    ----------
    cupy : module
        CuPy.
    """

    def __init__(self, cupy: Any) -> None:
        self._cupy, self._cuda = cupy, cupy.cuda
        self._stream = self._cuda.Stream(non_blocking=True)
        self._pool = self._cuda.MemoryPool(_block)
        weakref.finalize(self, _leave, self._pool).atexit = False
        self._asked, self._done = (self._cuda.Event(disable_timing=True) for _ in range(2))
        self._graph: Any = None

    def record(self, function: Callable[[], T]) -> T:
        """Call a function and record what it asks of the GPU, which is not done yet."""
        empty_pools()
        # What steps before left in CuPy's pool is as much as the graph's own will take.
        self._cupy.get_default_memory_pool().free_all_blocks()
        self._wait_for(self._cuda.get_current_stream())
        with self._stream, self._cuda.using_allocator(self._pool.malloc):
            self._stream.begin_capture()  # in CuPy's relaxed mode, which lets memory be taken
            try:
                result = function()
            except BaseException:
                with suppress(Exception):  # a recording that was spoilt ends in an error of its own
                    self._stream.end_capture()
                raise
            self._graph = self._stream.end_capture()
        return result

    def replay(self) -> None:
        """Launch the graph between what the current stream was asked before and is asked later."""
        current = self._cuda.get_current_stream()
        self._wait_for(current)
        self._graph.launch(self._stream)
        self._stream.record(self._done)
        current.wait_event(self._done)

    def _wait_for(self, current: Any) -> None:
        current.record(self._asked)
        self._stream.wait_event(self._asked)


def _block(size: int) -> Any:
    """Return new memory; CUDA's own error would have the pool free what the recording uses."""
    cuda = sys.modules["cupy"].cuda
    try:
        return cuda.MemoryPointer(cuda.Memory(size), 0)
    except cuda.runtime.CUDARuntimeError as error:
        if error.status != OUT_OF_MEMORY:
            raise
        raise MemoryError(f"{size:,} bytes for a graph: {error}") from error


def _leave(pool: Any) -> None:
    _LEFT.append(pool)
    empty_pools()


def empty_pools() -> None:
    """Give back to the device what graphs that are gone have left, as far as nothing holds it."""
    waiting: list[Any] = []
    try:
        while True:
            try:
                pool = _LEFT.pop()
            except IndexError:  # the garbage collector may end a graph meanwhile, which comes here
                break
            waiting.append(pool)  # before it is emptied: an interrupt loses none
            pool.free_all_blocks()
            if not pool.total_bytes():
                waiting.pop()
    finally:
        _LEFT.extend(waiting)


def record_on_gpu(function: Callable[[], T]) -> tuple[CudaGraph, T]:
    """Record a function's work and do it once; return the graph and what the function returned."""
    graph = CudaGraph(sys.modules["cupy"])
    result = graph.record(function)
    graph.replay()  # a recording alone computes nothing
    return graph, result
