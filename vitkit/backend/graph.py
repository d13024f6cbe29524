"""Work on a GPU recorded once and launched as one CUDA graph.

Memory comes from a pool that belongs to the graph: what CuPy's own pool would hand out again, a
replay would write into. The stream is one of its own, since the default one cannot be recorded; it
is kept in order with the stream that asks for a replay.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class CudaGraph:
    """A recorded graph, its stream and its memory.

    Parameters
    ----------
    cuda : module
        ``cupy.cuda``.
    """

    def __init__(self, cuda: Any) -> None:
        self._cuda = cuda
        self._stream = cuda.Stream(non_blocking=True)
        self._pool = cuda.MemoryPool()
        self._graph: Any = None

    def record(self, function: Callable[[], T]) -> T:
        """Call a function and record what it asks of the GPU, which is not done yet."""
        self._stream.wait_event(self._cuda.get_current_stream().record())
        with self._stream, self._cuda.using_allocator(self._pool.malloc):
            self._stream.begin_capture()
            try:
                result = function()
            except BaseException:
                self._abandon()
                raise
            self._graph = self._stream.end_capture()
        return result

    def replay(self) -> None:
        """Launch the graph between what the current stream was asked before and is asked later."""
        current = self._cuda.get_current_stream()
        self._stream.wait_event(current.record())
        self._graph.launch(self._stream)
        current.wait_event(self._stream.record())

    def _abandon(self) -> None:
        try:
            self._stream.end_capture()
        except Exception as error:  # what made the recording fail has spoilt it, and is raised
            self._graph = error


def record_on_gpu(function: Callable[[], T]) -> tuple[CudaGraph, T]:
    """Record a function's work and do it once; return the graph and what the function returned."""
    graph = CudaGraph(sys.modules["cupy"].cuda)
    result = graph.record(function)
    graph.replay()  # a recording alone computes nothing
    return graph, result
