"""The fake GPU refuses what CUDA refuses; what both can show is asked of a GPU that works too."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitkit.backend import array_module

sys.path.insert(0, str(Path(__file__).parent))
import fake_cuda
import fake_cupy

KIB = 1024


@pytest.fixture(params=["fake", pytest.param("cupy", marks=pytest.mark.gpu)])
def cupy(request: pytest.FixtureRequest) -> Any:
    """Return the fake of CuPy, and CuPy where it works."""
    return fake_cupy.module(64 * KIB) if request.param == "fake" else array_module("cupy")


@pytest.fixture
def fake() -> Any:
    return fake_cupy.module(64 * KIB)


@pytest.fixture
def captured(cupy: Any) -> Iterator[Any]:
    """Return a stream that is being captured, and asked."""
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        try:
            yield stream
        finally:
            with suppress(cupy.cuda.runtime.CUDARuntimeError):  # ended already, or broken
                stream.end_capture()


def status(cupy: Any, function: Callable[[], object]) -> int:
    """Return the number of the error that a call raises."""
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError) as error:
        function()
    return int(error.value.status)


def test_the_default_stream_is_not_captured(cupy: Any) -> None:
    with pytest.raises(RuntimeError, match="cannot capture on the default"):
        cupy.cuda.Stream.null.begin_capture()


def test_an_end_needs_a_beginning_and_a_beginning_an_end(cupy: Any) -> None:
    stream = cupy.cuda.Stream(non_blocking=True)
    status(cupy, stream.end_capture)
    stream.begin_capture()
    assert status(cupy, stream.begin_capture) == fake_cuda.ILLEGAL_STATE
    assert stream.is_capturing()
    stream.end_capture()
    assert not stream.is_capturing()


def test_a_capture_does_nothing_and_a_launch_does_it(cupy: Any) -> None:
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        counts = cupy.zeros((3,), "float32")
        counts += 1  # compiled
        stream.begin_capture()
        counts += 1
        graph = stream.end_capture()
        assert counts.get().tolist() == [1, 1, 1]
        graph.launch()
        graph.launch(stream)
        assert counts.get().tolist() == [3, 3, 3]


def test_a_wait_spoils_a_capture(cupy: Any, captured: Any) -> None:
    assert status(cupy, captured.synchronize) == fake_cuda.UNSUPPORTED
    with pytest.raises(RuntimeError, match="has invalidated the capture sequence"):
        captured.is_capturing()
    assert status(cupy, captured.end_capture) == fake_cuda.INVALIDATED
    assert not captured.is_capturing()


def test_a_captured_event_is_not_waited_for(cupy: Any, captured: Any) -> None:
    event = captured.record(cupy.cuda.Event(disable_timing=True))
    assert status(cupy, event.synchronize) == fake_cuda.CAPTURED_EVENT


def test_a_capture_does_not_come_after_what_is_not_captured(cupy: Any, captured: Any) -> None:
    event = cupy.cuda.Stream.null.record(cupy.cuda.Event(disable_timing=True))
    assert status(cupy, lambda: captured.wait_event(event)) == fake_cuda.ISOLATION


def test_two_captures_are_not_merged(cupy: Any, captured: Any) -> None:
    other = cupy.cuda.Stream(non_blocking=True)
    other.begin_capture()
    event = other.record(cupy.cuda.Event(disable_timing=True))
    assert status(cupy, lambda: captured.wait_event(event)) == fake_cuda.MERGE
    with suppress(cupy.cuda.runtime.CUDARuntimeError):  # CUDA may have spoilt both
        other.end_capture()
    assert not other.is_capturing()


def test_a_fork_must_be_joined(cupy: Any, captured: Any) -> None:
    fork, event = cupy.cuda.Stream(non_blocking=True), cupy.cuda.Event(disable_timing=True)
    fork.wait_event(captured.record(event))
    assert fork.is_capturing()
    assert status(cupy, captured.end_capture) == fake_cuda.UNJOINED


def test_a_fork_that_was_joined_is_part_of_the_graph(cupy: Any) -> None:
    stream, fork = (cupy.cuda.Stream(non_blocking=True) for _ in range(2))
    event = cupy.cuda.Event(disable_timing=True)
    with stream:
        counts = cupy.zeros((3,), "float32")
        counts += 1
        stream.synchronize()
        stream.begin_capture()
        fork.wait_event(stream.record(event))
        with fork:
            counts += 1
        stream.wait_event(fork.record(event))
        stream.end_capture().launch()
        assert counts.get().tolist() == [2, 2, 2]


def test_the_default_stream_and_a_capture_that_it_is_in_order_with(cupy: Any) -> None:
    counts = cupy.zeros((3,), "float32")
    counts += 1
    blocking = cupy.cuda.Stream()
    blocking.begin_capture()
    assert status(cupy, cupy.cuda.Stream.null.is_capturing) == fake_cuda.IMPLICIT

    def add() -> None:
        nonlocal counts
        counts += 1

    with pytest.raises(RuntimeError):  # a launch's error is the driver's, the fake's the runtime's
        add()
    assert status(cupy, blocking.end_capture) == fake_cuda.INVALIDATED
    free = cupy.cuda.Stream(non_blocking=True)
    free.begin_capture()
    add()
    free.end_capture()
    assert counts.get().tolist() == [2, 2, 2]


def test_what_is_never_recorded_is_not_waited_for(cupy: Any) -> None:
    event = cupy.cuda.Event(disable_timing=True)
    event.synchronize()
    cupy.cuda.get_current_stream().wait_event(event)
    assert event.done


def test_arrays_of_the_host_must_fit(cupy: Any) -> None:
    array = cupy.zeros((3,), "float32")
    for given, kind, match in (
        (np.zeros(3), TypeError, "float64 array cannot be set to float32 array"),
        (np.zeros(4, "float32"), ValueError, "Shape mismatch"),
        ([0.0] * 3, TypeError, "Only numpy.ndarray"),
    ):
        with pytest.raises(kind, match=match):
            array.set(given)


def test_kernels_are_given_what_cpp_would_see(cupy: Any) -> None:
    code = "template<typename T> __global__ void f(T* out, T a) { *out = a; }"
    with pytest.raises(ValueError, match=r"need to specify C\+\+ standard"):
        cupy.RawModule(code=code, options=(), name_expressions=("f<float>",))
    module = cupy.RawModule(code=code, options=("-std=c++17",), name_expressions=("f<float>",))
    function = module.get_function("f<float>")
    out = cupy.zeros((1,), "float32")
    with pytest.raises(TypeError, match="Unsupported type"):
        function((1,), (1,), (out, "1"))
    for grid, block, shared in (
        ((1, 70_000), (32,), 0),
        ((1,), (2048,), 0),
        ((1,), (1,), 49 * KIB),
    ):
        with pytest.raises(RuntimeError, match="INVALID_VALUE"):
            function(grid, block, (out, np.float32(1)), shared_mem=shared)
    with pytest.raises(RuntimeError, match="INVALID_VALUE"):
        function.max_dynamic_shared_size_bytes = 1 << 20


def test_two_streams_are_in_no_order_and_an_event_puts_them_in_one(fake: Any) -> None:
    array = fake.zeros((3,))
    other = fake.cuda.Stream(non_blocking=True)
    with other, pytest.raises(fake_cuda.Race, match="'add' may run before 'write'"):
        array += 1
    other.wait_event(fake.cuda.get_current_stream().record())
    with other:
        array += 1
    assert [work.done for work in fake_cuda.device.works] == [False, False]
    with other:
        assert array.get().tolist() == [1, 1, 1]


def test_streams_that_are_blocking_and_the_default_one_are_in_order(fake: Any) -> None:
    array = fake.zeros((3,))
    with fake.cuda.Stream():
        array += 1
    array += 1
    assert array.get().tolist() == [2, 2, 2]


def test_what_the_host_has_waited_for_is_in_order(fake: Any) -> None:
    array = fake.zeros((3,))
    fake.cuda.get_current_stream().synchronize()
    with fake.cuda.Stream(non_blocking=True):
        array += 1


def test_pinned_memory_is_read_late_and_other_memory_at_once(fake: Any) -> None:
    array = fake.zeros((128,))
    host = np.ones(128, "float32")
    array.set(host)
    host[:] = 2
    assert array.get()[0] == 1
    pinned = np.frombuffer(fake.cuda.alloc_pinned_memory(512), "float32")
    pinned[:] = 3
    array.set(pinned)
    pinned[:] = 4
    with pytest.raises(fake_cuda.Race, match="pinned memory was written"):
        array.get()


def test_pinned_memory_goes_back_with_the_last_array_on_it(fake: Any) -> None:
    pinned = np.frombuffer(fake.cuda.alloc_pinned_memory(512), "uint8", 8).reshape(2, 4)
    other = fake.cuda.alloc_pinned_memory(512)
    place = pinned.ctypes.data
    assert np.frombuffer(other, "uint8").ctypes.data != place
    del pinned
    assert np.frombuffer(fake.cuda.alloc_pinned_memory(512), "uint8").ctypes.data == place


def test_too_little_memory_frees_what_a_pool_keeps(fake: Any) -> None:
    pool = fake.get_default_memory_pool()
    kept = fake.empty((16 * KIB,), "uint8")
    fake.empty((32 * KIB,), "uint8")
    assert pool.total_bytes() == 48 * KIB
    larger = fake.empty((40 * KIB,), "uint8")
    assert pool.total_bytes() == 56 * KIB
    with pytest.raises(MemoryError, match="Out of memory allocating 8,704 bytes"):
        fake.empty((8 * KIB + 1,), "uint8")
    assert status(fake, lambda: fake.cuda.Memory(9 * KIB)) == fake_cuda.OUT_OF_MEMORY
    del kept, larger


def test_what_came_back_is_for_the_same_stream(fake: Any) -> None:
    stream = fake.cuda.Stream(non_blocking=True)
    place = fake.zeros((3,)).data.ptr
    with stream:
        assert fake.empty((3,)).data.ptr != place
    assert fake.empty((3,)).data.ptr == place


def test_parts_are_put_together_again_and_those_that_are_not_are_lost(fake: Any) -> None:
    pool = fake.cuda.MemoryPool()
    with fake.cuda.using_allocator(pool.malloc):
        whole = fake.empty((3 * KIB,), "uint8")
        del whole
        parts = [fake.empty((KIB,), "uint8") for _ in range(3)]
        assert pool.total_bytes() == 3 * KIB
        del parts[1], parts[0]
        pool.free_all_blocks()
        assert pool.total_bytes() == 3 * KIB
        del parts[0]
        whole = fake.empty((3 * KIB,), "uint8")
        assert pool.total_bytes() == 3 * KIB
        del whole
        part = fake.empty((KIB,), "uint8")
    del pool, part
    gc.collect()
    assert fake_cuda.device.used == 3 * KIB


def test_memory_of_a_pool_that_is_gone_is_gone(fake: Any) -> None:
    pool = fake.cuda.MemoryPool()
    with fake.cuda.using_allocator(pool.malloc):
        array = fake.zeros((3,))
    assert array.get().tolist() == [0, 0, 0]
    del pool
    assert status(fake, array.get) == fake_cuda.ILLEGAL_ADDRESS


def test_a_graph_reads_memory_where_it_was(fake: Any) -> None:
    stream, array = fake.cuda.Stream(non_blocking=True), fake.zeros((3,))
    stream.wait_event(fake.cuda.get_current_stream().record())
    with stream:
        stream.begin_capture()
        doubled = array * 2
        doubled += 1
        graph = stream.end_capture()
        graph.launch()
        assert doubled.get().tolist() == [1, 1, 1]
        del array
        graph.launch()  # in the pool, and so there yet
        fake.get_default_memory_pool().free_all_blocks()
        assert status(fake, graph.launch) == fake_cuda.ILLEGAL_ADDRESS
