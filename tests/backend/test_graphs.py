"""Graphs beside what else a GPU is asked, on a GPU that never hurries.

Each scenario is played with the module as it is, and one must fail with any of its protective
lines taken away.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any

import pytest

from vitkit.backend import graph

sys.path.insert(0, str(Path(__file__).parent))
import fake_cuda
from playing import CAPACITY, KIB, Scenario, device, play, who_notices


def a_replay_is_between_what_is_asked_before_and_after(cupy: Any, graph: Any) -> None:
    given = cupy.zeros((3,))
    recording, found = graph.record_on_gpu(lambda: given * 2)
    seen = [found * 1]
    for number in (1, 5, 7):
        given[...] = number
        recording.replay()
        seen.append(found * 1)
        given[...] = -1  # not before the replay has read it
    assert not any(work.done for work in device().works)  # and the host waited for none of it
    assert [float(each.get()[0]) for each in seen] == [0, 2, 10, 14]


def a_replay_is_ordered_with_the_stream_that_asks_for_it(cupy: Any, graph: Any) -> None:
    given, seen = cupy.zeros((3,)), []
    recording, found = graph.record_on_gpu(lambda: given * 2)
    event = cupy.cuda.get_current_stream().record()
    other = cupy.cuda.Stream(non_blocking=True)
    other.wait_event(event)
    with other:
        for number in (3, 4):
            given[...] = number
            recording.replay()
            seen.append(float((found * 1).get()[0]))
    assert seen == [6, 8]


def memory_is_of_a_pool_of_the_graph(cupy: Any, graph: Any) -> None:
    given, pool = cupy.zeros((3 * KIB,)), cupy.get_default_memory_pool()
    before = pool.total_bytes()

    def run() -> Any:
        return (given * 2) * 3  # the first product comes back to the pool

    made, found = graph.record_on_gpu(run)
    assert pool.total_bytes() == before
    others = [cupy.zeros((n,)) for n in (1, KIB, 3 * KIB)]
    for other in others:
        other += 1
    pool.free_all_blocks()
    with pytest.raises(MemoryError):  # has CuPy's pool give back what it can
        cupy.empty((CAPACITY,))
    given[...] = 1
    made.replay()
    assert (found.get() == 6).all()
    assert all((other.get() == 1).all() for other in others)


def memory_goes_with_the_graph(cupy: Any, graph: Any) -> None:
    given = cupy.zeros((3 * KIB,))
    before = device().used
    made, found = graph.record_on_gpu(lambda: (given * 2) * 3)
    made.replay()
    assert device().used > before
    del made, found
    gc.collect()
    graph.empty_pools()  # of what an array held longer than the graph
    assert device().used == before
    assert graph._LEFT == []


def memory_in_parts_goes_with_the_graph(cupy: Any, graph: Any) -> None:
    given, small = cupy.zeros((3 * KIB,)), cupy.zeros((3,))

    def run() -> Any:
        given * 2  # comes back, and the next is a part of it
        return small * 3

    before = device().used
    for _ in range(3):
        made, found = graph.record_on_gpu(run)
        assert found.get().tolist() == [0, 0, 0]
        del found, made
        gc.collect()
        assert device().used == before


def an_array_outlives_its_graph(cupy: Any, graph: Any) -> None:
    given = cupy.zeros((KIB,))
    given += 2
    before = device().used
    made, found = graph.record_on_gpu(lambda: given * 3)
    del made
    gc.collect()
    others = [cupy.zeros((KIB,)) for _ in range(3)]
    assert (found.get() == 6).all()
    del found, others
    both = graph.record_on_gpu(lambda: given * 3)  # begins by giving it back
    cupy.get_default_memory_pool().free_all_blocks()
    assert device().used == before + both[1].nbytes


def a_graph_goes_while_it_runs(cupy: Any, graph: Any) -> None:
    given, seen = cupy.zeros((KIB,)), []
    for number in range(3):
        given[...] = number
        made, found = graph.record_on_gpu(lambda: (given * 2) * 3)
        seen.append(found * 1)
        del made, found
    assert [float(each.get()[0]) for each in seen] == [0, 6, 12]


def what_the_pool_kept_makes_room(cupy: Any, graph: Any) -> None:
    given = cupy.zeros((KIB,))
    for stream in (cupy.cuda.Stream(), cupy.cuda.Stream()):
        with stream:
            cupy.empty((CAPACITY * 2 // 5,), "uint8")
    made, found = graph.record_on_gpu(lambda: ((given * 1) * 2, (given * 3) * 4))
    made.replay()
    assert found[1].get().tolist() == [0] * KIB


def nothing_stays_open(cupy: Any, stream: Any) -> None:
    assert cupy.cuda.get_current_stream() is stream
    assert device().captures == []
    assert getattr(device().local, "allocator", None) is None


def an_error_of_the_function_is_the_error(cupy: Any, graph: Any) -> None:
    given, stream = cupy.zeros((3,)), cupy.cuda.get_current_stream()
    for error in (ValueError("of the function"), KeyboardInterrupt()):
        made = graph.CudaGraph(cupy)

        def fail(error: BaseException = error) -> None:
            result = given * 2
            raise error.with_traceback(None) if result is not None else AssertionError

        with pytest.raises(type(error)) as raised:
            made.record(fail)
        assert raised.value is error
        assert not made._stream.is_capturing()
        nothing_stays_open(cupy, stream)
        assert made.record(lambda: given * 2).shape == (3,)  # the same stream records again


def a_wait_amid_a_recording_is_the_error(cupy: Any, graph: Any) -> None:
    given, stream = cupy.zeros((3,)), cupy.cuda.get_current_stream()
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError) as raised:
        graph.record_on_gpu(lambda: (given * 2).get())
    assert raised.value.status == fake_cuda.UNSUPPORTED
    nothing_stays_open(cupy, stream)
    given += 1
    assert given.get().tolist() == [1, 1, 1]


def too_little_memory_is_an_error_and_frees_nothing_that_is_recorded(cupy: Any, graph: Any) -> None:
    given, stream = cupy.zeros((6 * KIB,)), cupy.cuda.get_current_stream()
    most = cupy.empty((12 * KIB,), "uint8")

    def run() -> Any:
        given * 2  # 24 KiB, which come back, and which the graph writes
        return cupy.zeros((7 * KIB,))

    with pytest.raises(MemoryError, match=r"28,672 bytes for a graph: .*out of memory"):
        graph.record_on_gpu(run)
    nothing_stays_open(cupy, stream)
    del most
    gc.collect()
    made, found = graph.record_on_gpu(lambda: given * 2)  # there is room for less
    made.replay()
    assert found.get()[0] == 0


def another_error_of_the_device_stays_itself(cupy: Any, graph: Any) -> None:
    given = cupy.zeros((3,))

    def broken(size: int) -> int:
        raise cupy.cuda.runtime.CUDARuntimeError(fake_cuda.ILLEGAL_ADDRESS)

    def run() -> None:
        device().malloc = broken
        given * 2

    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError) as raised:
        graph.record_on_gpu(run)
    assert raised.value.status == fake_cuda.ILLEGAL_ADDRESS


def the_default_stream_may_be_asked_meanwhile(cupy: Any, graph: Any) -> None:
    given, other = cupy.zeros((3,)), cupy.zeros((3,))

    def run() -> Any:
        found = given * 2
        with cupy.cuda.Stream.null:
            other[...] = 5
        return found

    _, found = graph.record_on_gpu(run)
    assert (found.get()[0], other.get()[0]) == (0, 5)


GRAPHS: tuple[Scenario, ...] = (
    a_replay_is_between_what_is_asked_before_and_after,
    a_replay_is_ordered_with_the_stream_that_asks_for_it,
    memory_is_of_a_pool_of_the_graph,
    memory_goes_with_the_graph,
    memory_in_parts_goes_with_the_graph,
    an_array_outlives_its_graph,
    a_graph_goes_while_it_runs,
    what_the_pool_kept_makes_room,
    an_error_of_the_function_is_the_error,
    a_wait_amid_a_recording_is_the_error,
    too_little_memory_is_an_error_and_frees_nothing_that_is_recorded,
    another_error_of_the_device_stays_itself,
    the_default_stream_may_be_asked_meanwhile,
)


@pytest.mark.parametrize("scenario", GRAPHS, ids=lambda scenario: scenario.__name__)
def test_graphs(scenario: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    play(scenario, graph, monkeypatch)


FAULTS = {
    "a replay does not wait for what was asked before": (
        "        self._wait_for(current)\n        self._graph",
        "        self._graph",
    ),
    "nobody waits for a replay": ("        current.wait_event(self._done)\n", ""),
    "the end of a replay is not recorded": ("        self._stream.record(self._done)\n", ""),
    "an event that was not recorded is waited for": ("current.record(self._asked)", "pass"),
    "CuPy's pool for a graph": (
        "with self._stream, self._cuda.using_allocator(self._pool.malloc):",
        "with self._stream:",
    ),
    "a pool that frees what is recorded": ("MemoryPool(_block)", "MemoryPool()"),
    "a pool that goes with its graph": (
        "        weakref.finalize(self, _leave, self._pool).atexit = False\n",
        "",
    ),
    "a pool that nobody empties later": (
        "        empty_pools()\n        # What",
        "        # What",
    ),
    "every error is too little memory": ("if error.status != OUT_OF_MEMORY:", "if False:"),
    "the pool's memory is kept": (
        "        self._cupy.get_default_memory_pool().free_all_blocks()\n",
        "",
    ),
    "a capture stays open": (
        "self._stream.end_capture()\n                raise",
        "pass\n                raise",
    ),
    "an open end for a signal": ("except BaseException:", "except Exception:"),
    "the error of the end instead of the first": ("suppress(Exception)", "suppress()"),
    "a stream that the default one waits for": ("(non_blocking=True)", "()"),
    "a recording that is not done": (
        "    graph.replay()  # a recording alone computes nothing\n",
        "",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_noticed(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert who_notices(graph, FAULTS[fault], GRAPHS, monkeypatch)
