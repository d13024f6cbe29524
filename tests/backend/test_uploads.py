"""Uploads beside what else a GPU is asked, on a GPU that never hurries.

Each scenario is played with the module as it is, and one must fail with any of its protective
lines taken away.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitkit.backend import graph, upload

sys.path.insert(0, str(Path(__file__).parent))
from fake_cuda import ordered
from playing import Scenario, device, play, who_notices


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


@pytest.mark.parametrize("scenario", UPLOADS, ids=lambda scenario: scenario.__name__)
def test_uploads(scenario: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    play(scenario, upload, monkeypatch)


FAULTS = {
    "pinned memory is written while it is read": (
        "        slot.arrived.synchronize()  # the pinned memory has been read\n",
        "",
    ),
    "a copy does not wait for who reads": (
        "        self._stream.wait_event(slot.taken)\n",
        "",
    ),
    "who reads does not wait for the copy": ("        current.wait_event(slot.arrived)\n", ""),
    "an arrival is not recorded": ("        self._stream.record(slot.arrived)\n", ""),
    "a reading is not recorded": ("        current.record(slot.taken)\n", ""),
    "memory of others": ("        cuda.get_current_stream().record(taken)", "        #"),
    "one slot": ("for _ in range(2)]", "for _ in range(1)]"),
    "the same slot again": ("        self._slots.reverse()\n", ""),
    "copies in order with the default stream": ("(non_blocking=True)", "()"),
    "the copy in the current stream": ("slot.pinned, stream=self._stream", "slot.pinned"),
    "pinned memory goes back while it is read": (
        "            event.synchronize()\n",
        "            pass\n",
    ),
    "over the host what is there": ("isinstance(host, self._cupy.ndarray)", "False"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_noticed(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert who_notices(upload, FAULTS[fault], UPLOADS, monkeypatch)
