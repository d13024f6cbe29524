"""Graphs and uploads beside what else a GPU is asked, on a GPU that never hurries.

Each scenario is played with the module as it is, and must fail with any of its protective lines
taken away.
"""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from vitkit.backend import graph, upload

sys.path.insert(0, str(Path(__file__).parent))
import fake_cuda
import fake_cupy
from fake_cuda import ordered

KIB = 1024
CAPACITY = 64 * KIB
Scenario = Callable[[Any, Any], None]


def device() -> fake_cuda.Device:
    return fake_cuda.device


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
    what_the_pool_kept_makes_room,
    an_error_of_the_function_is_the_error,
    a_wait_amid_a_recording_is_the_error,
    too_little_memory_is_an_error_and_frees_nothing_that_is_recorded,
    the_default_stream_may_be_asked_meanwhile,
)


def uploads_are_in_order_and_only_the_last_but_one_is_waited_for(cupy: Any, upload: Any) -> None:
    target, host, seen = cupy.zeros((4, 3), "int64"), np.zeros((4, 3), "int64"), []
    write = upload.PinnedUpload(target)
    for number in range(6):
        host[...] = number
        write(host)
        host[...] = -1  # may be changed at once
        seen.append(target * 1)
        copies = device().named("copy to device")
        assert [work.done for work in copies] == [each <= number - 2 for each in range(number + 1)]
    assert [int(each.get()[3, 2]) for each in seen] == list(range(6))


def a_copy_runs_beside_what_is_computed(cupy: Any, upload: Any) -> None:
    target, weights = cupy.zeros((3,)), cupy.zeros((3,))
    write = upload.PinnedUpload(target)
    for _ in range(3):
        weights += 1
        write(np.ones(3, "float32"))
        target += weights
    adds, copies = device().named("add"), device().named("copy to device")
    assert not ordered(adds[0], copies[0])
    assert not ordered(adds[2], copies[1])
    assert not ordered(adds[4], copies[2])
    assert ordered(copies[2], adds[5])
    assert target.get().tolist() == [4, 4, 4]


def memory_that_was_in_use_is_not_written_too_early(cupy: Any, upload: Any) -> None:
    target = cupy.zeros((3,))
    for _ in range(2):
        old = cupy.zeros((3,))
        target += old  # reads it
        del old
    write = upload.PinnedUpload(target)
    for _ in range(2):
        write(np.ones(3, "float32"))
    assert target.get().tolist() == [1, 1, 1]


def pinned_memory_is_read_before_another_has_it(cupy: Any, upload: Any) -> None:
    targets = [cupy.zeros((3,)) for _ in range(4)]
    for number, target in enumerate(targets):
        write = upload.PinnedUpload(target)
        for more in (0, 10):
            write(np.full(3, number + more, "float32"))
        del write
    assert [target.get()[0] for target in targets] == [10, 11, 12, 13]


def an_array_of_the_device_takes_no_detour(cupy: Any, upload: Any) -> None:
    target, given = cupy.zeros((3,)), cupy.zeros((3,))
    write = upload.PinnedUpload(target)
    given += 1
    write(given)
    given += 1
    assert device().named("copy to device") == []
    assert target.get().tolist() == [1, 1, 1]


def shapes_and_dtypes(cupy: Any, upload: Any) -> None:
    for shape in ((), (0, 3), (2, 3, 4, 5), (1025,)):
        for dtype in ("uint8", "int64", "float32"):
            target = cupy.zeros(shape, dtype)
            write = upload.PinnedUpload(target)
            host = np.arange(2 * math.prod(shape), dtype=dtype)[::2].reshape(shape)
            write(host)
            assert np.array_equal(target.get(), host)
            with pytest.raises(ValueError, match="broadcast"):
                write(np.zeros((7, 9), dtype))


def steps_with_uploads_and_a_graph(cupy: Any, upload: Any) -> None:
    images, weights = cupy.zeros((3,)), cupy.zeros((3,))
    write = upload.PinnedUpload(images)

    def step() -> Any:
        weights.__iadd__(images)
        return weights * 1

    recording, found = graph.record_on_gpu(step)
    seen = [found * 1]
    for number in range(1, 6):
        write(np.full(3, number, "float32"))
        recording.replay()
        seen.append(found * 1)
    assert [float(each.get()[0]) for each in seen] == [0, 1, 3, 6, 10, 15]


UPLOADS: tuple[Scenario, ...] = (
    uploads_are_in_order_and_only_the_last_but_one_is_waited_for,
    a_copy_runs_beside_what_is_computed,
    memory_that_was_in_use_is_not_written_too_early,
    pinned_memory_is_read_before_another_has_it,
    an_array_of_the_device_takes_no_detour,
    shapes_and_dtypes,
    steps_with_uploads_and_a_graph,
)


def play(scenario: Scenario, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Play a scenario on a new GPU, and have all happen that it asked for."""
    cupy = fake_cupy.module(CAPACITY)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    scenario(cupy, module)
    device().finish()


@pytest.mark.parametrize("scenario", GRAPHS, ids=lambda scenario: scenario.__name__)
def test_graphs(scenario: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    play(scenario, graph, monkeypatch)


@pytest.mark.parametrize("scenario", UPLOADS, ids=lambda scenario: scenario.__name__)
def test_uploads(scenario: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    play(scenario, upload, monkeypatch)


FAULTS: dict[str, tuple[ModuleType, str, str]] = {
    "a replay does not wait for what was asked before": (
        *(graph, "        self._wait_for(current)\n        self._graph", "        self._graph"),
    ),
    "nobody waits for a replay": (graph, "        current.wait_event(self._done)\n", ""),
    "the end of a replay is not recorded": (graph, "        self._stream.record(self._done)\n", ""),
    "an event that was not recorded is waited for": (graph, "current.record(self._asked)", "pass"),
    "CuPy's pool for a graph": (
        *(
            graph,
            "with self._stream, self._cuda.using_allocator(self._pool.malloc):",
        ),
        "with self._stream:",
    ),
    "a pool that frees what is recorded": (graph, "MemoryPool(_block)", "MemoryPool()"),
    "the pool's memory is kept": (
        *(graph, "        self._cupy.get_default_memory_pool().free_all_blocks()\n", ""),
    ),
    "a capture stays open": (
        graph,
        "self._stream.end_capture()\n                raise",
        "pass\n                raise",
    ),
    "an open end for a signal": (graph, "except BaseException:", "except Exception:"),
    "the error of the end instead of the first": (graph, "suppress(Exception)", "suppress()"),
    "a stream that the default one waits for": (graph, "(non_blocking=True)", "()"),
    "a recording that is not done": (
        graph,
        "    graph.replay()  # a recording alone computes nothing\n",
        "",
    ),
    "pinned memory is written while it is read": (
        upload,
        "        slot.arrived.synchronize()  # the pinned memory has been read\n",
        "",
    ),
    "a copy does not wait for who reads": (
        upload,
        "        self._stream.wait_event(slot.taken)\n",
        "",
    ),
    "who reads does not wait for the copy": (
        *(upload, "        current.wait_event(slot.arrived)\n", ""),
    ),
    "an arrival is not recorded": (upload, "        self._stream.record(slot.arrived)\n", ""),
    "a reading is not recorded": (upload, "        current.record(slot.taken)\n", ""),
    "memory of others": (upload, "        cuda.get_current_stream().record(taken)", "        #"),
    "one slot": (upload, "for _ in range(2)]", "for _ in range(1)]"),
    "the same slot again": (upload, "        self._slots.reverse()\n", ""),
    "copies in order with the default stream": (upload, "(non_blocking=True)", "()"),
    "the copy in the current stream": (upload, "slot.pinned, stream=self._stream", "slot.pinned"),
    "pinned memory goes back while it is read": (
        *(upload, "            event.synchronize()\n", "            pass\n"),
    ),
    "over the host what is there": (*(upload, "isinstance(host, self._cupy.ndarray)", "False"),),
}


NOTICED = (AssertionError, fake_cuda.Race, RuntimeError, MemoryError, TypeError, KeyboardInterrupt)
NOTICED += (pytest.fail.Exception,)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_noticed(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, old, new = FAULTS[fault]
    text = Path(str(module.__file__)).read_text("utf-8")
    assert text.count(old) == 1
    changed = ModuleType(module.__name__)
    exec(text.replace(old, new), vars(changed))  # noqa: S102
    noticed = []
    for scenario in GRAPHS if module is graph else UPLOADS:
        try:
            play(scenario, changed, monkeypatch)
        except NOTICED:
            noticed.append(scenario.__name__)
    assert noticed
