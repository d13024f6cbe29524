"""A graph that is gone gives its memory back: CuPy's pools do not, when they go."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from vitkit.backend import graph, release_memory
from vitkit.backend.graph import CudaGraph, record_on_gpu


class OutOfMemory(RuntimeError):
    """CUDA's error, of any number."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


class Device:
    """How many bytes are taken."""

    taken = 0
    status = 0  # that the next allocation ends in


class Memory:
    size = 0

    def __init__(self, size: int) -> None:
        if Device.status:
            raise OutOfMemory(Device.status)
        self.size = size
        Device.taken += size

    def __del__(self) -> None:
        Device.taken -= self.size


class Pool:
    """As that of CuPy 14.2: a pool that goes with free memory in it keeps that from the device."""

    lost: list[Any] = []  # noqa: RUF012

    def __init__(self, allocator: Any = None) -> None:
        self.allocator = allocator
        self.free: list[Memory] = []
        self.held: weakref.WeakSet[Part] = weakref.WeakSet()
        weakref.finalize(self, self.lost.append, self.free)

    def malloc(self, size: int) -> Part:
        part = Part(self.free.pop() if self.free else self.allocator(size).mem, self.free)
        self.held.add(part)
        return part

    def free_all_blocks(self) -> None:
        self.free.clear()

    def total_bytes(self) -> int:
        return sum(memory.size for memory in [*self.free, *(part.memory for part in self.held)])


class Part:
    """An array's memory, which goes back to the pool with the array."""

    def __init__(self, memory: Memory, free: list[Memory]) -> None:
        self.memory = memory
        weakref.finalize(self, free.append, memory)


class Stream:
    device_id = 0

    def __init__(self, non_blocking: bool = False) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass

    def nothing(self, *given: Any) -> Any:
        return SimpleNamespace(launch=lambda stream: None)

    begin_capture = end_capture = record = wait_event = nothing


class Allocator:
    """What ``using_allocator`` returns, and the allocator inside it."""

    now: Any = None

    def __init__(self, malloc: Any) -> None:
        self.malloc = malloc

    def __enter__(self) -> None:
        Allocator.now = self.malloc

    def __exit__(self, *error: object) -> None:
        Allocator.now = None


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    Device.taken = Device.status = 0
    default = SimpleNamespace(free_all_blocks=lambda: None)
    module = SimpleNamespace(
        __name__="cupy",
        cuda=SimpleNamespace(
            Stream=Stream,
            MemoryPool=Pool,
            Memory=Memory,
            MemoryPointer=lambda mem, offset: SimpleNamespace(mem=mem),
            Event=lambda disable_timing: None,
            using_allocator=Allocator,
            get_current_stream=Stream,
            runtime=SimpleNamespace(CUDARuntimeError=OutOfMemory),
        ),
        get_default_memory_pool=lambda: default,
        get_default_pinned_memory_pool=lambda: default,
    )
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr(graph, "_LEFT", [])
    yield module
    Pool.lost.clear()
    gc.collect()


def work() -> tuple[Part, Part]:
    """Return what stays of some memory that is used."""
    Allocator.now(1000)  # and is free again, in the pool
    return Allocator.now(1000), Allocator.now(500)


def test_a_graph_that_is_gone_has_given_its_memory_back(cupy: Any) -> None:
    recording, result = record_on_gpu(work)
    recording.replay()
    assert Device.taken == 1500
    del result
    assert Device.taken == 1500  # a replay writes there
    del recording
    gc.collect()
    assert Device.taken == 0


@pytest.mark.parametrize("later", ["release", "record"])
def test_what_an_array_holds_longer_goes_back_later(cupy: Any, later: str) -> None:
    recording, result = record_on_gpu(work)
    del recording
    gc.collect()
    assert Device.taken == 1500
    del result  # the memory is in a pool whose graph is gone
    if later == "release":
        release_memory(cupy)
    kept = record_on_gpu(lambda: None) if later == "record" else None
    assert Device.taken == 0
    assert graph._LEFT == []
    del kept


def test_a_graph_may_end_while_the_pool_of_another_is_emptied(cupy: Any) -> None:
    class Ending(Pool):
        """One in whose lock the garbage collector runs, as it does where memory is asked for."""

        inside = False

        def free_all_blocks(self) -> None:
            assert not self.inside  # it would wait for itself
            self.inside = True
            if others:
                graph._leave(others.pop())
            super().free_all_blocks()
            self.inside = False

    others = [Ending(cupy.cuda.MemoryPointer), Ending(cupy.cuda.MemoryPointer)]
    kept = Pool(lambda size: cupy.cuda.MemoryPointer(Memory(size), 0))
    part = kept.malloc(100)
    graph._LEFT.append(kept)
    graph._leave(others.pop())
    assert others == []
    assert list(graph._LEFT) == [kept]  # one that is in use is not lost
    del part
    graph.empty_pools()
    assert (graph._LEFT, Device.taken) == ([], 0)


def test_emptying_may_begin_anew_at_any_line(cupy: Any) -> None:
    """As where the garbage collector ends a graph; newer Pythons run it between any two lines."""

    def lines(at: int) -> int:
        """Empty pools, of which one is in use, and again at a line; return how many there were."""
        kept, *others = (
            Pool(lambda size: cupy.cuda.MemoryPointer(Memory(size), 0)) for _ in range(3)
        )
        part = kept.malloc(100)
        graph._LEFT[:] = [kept, *others]
        count = 0

        def watch(frame: Any, event: str, argument: object) -> Any:
            nonlocal count
            if frame.f_code is not graph.empty_pools.__code__:
                return None
            count += event == "line"
            if event == "line" and count == at:
                sys.settrace(None)
                graph.empty_pools()
            return watch

        before = sys.gettrace()
        sys.settrace(watch)
        try:
            graph.empty_pools()
        finally:
            sys.settrace(before)
        assert list(graph._LEFT) == [kept], at
        del part
        graph.empty_pools()
        assert (graph._LEFT, Device.taken) == ([], 0), at
        return count

    assert [lines(at) for at in range(1, lines(0) + 1)]


def test_an_interrupt_loses_no_pool(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Pool(lambda size: cupy.cuda.MemoryPointer(Memory(size), 0))
    part = kept.malloc(100)
    graph._LEFT.append(kept)
    with monkeypatch.context() as pressed:
        pressed.setattr(Pool, "free_all_blocks", lambda self: _raise(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            graph.empty_pools()
    del part
    graph.empty_pools()
    assert (graph._LEFT, Device.taken) == ([], 0)


def _raise(error: BaseException) -> None:
    raise error


def test_only_too_little_memory_is_called_so(cupy: Any) -> None:
    for status, kind in ((2, MemoryError), (901, OutOfMemory)):
        Device.status = status
        with pytest.raises(kind, match=f"status {status}"):
            CudaGraph(cupy).record(work)
