"""Which algorithm is taken, and what is remembered of it."""

from __future__ import annotations

import json
import logging
import math
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock

from vitkit.kernels.cuda import _algorithms, _gpu
from vitkit.kernels.cuda._algorithms import ROUNDS, Memory, digest, fastest
from vitkit.kernels.cuda._cublaslt import Algorithm


def candidates(count: int) -> list[Algorithm]:
    made = [Algorithm() for _ in range(count)]
    for number, algorithm in enumerate(made):
        algorithm.data[3] = number + 1
    return made


class Times:
    """Says how long each candidate takes, by its number, and counts how often it is asked."""

    def __init__(self, *seconds: float) -> None:
        self.seconds, self.asked = seconds, 0

    def __call__(self, algorithm: Algorithm) -> float:
        self.asked += 1
        return self.seconds[algorithm.data[3] - 1]


def test_the_fastest_by_the_median() -> None:
    three = candidates(3)
    noisy = iter([1.0, 2.0, 3.0, 9.0, 2.0, 3.0, 9.0, 2.0, 3.0, 9.0, 2.0, 3.0, 1.0, 2.0, 3.0])
    assert fastest(three, lambda _: next(noisy)) is three[1]
    assert fastest(three, Times(math.inf, 5.0, math.inf)) is three[1]


def test_what_was_found_is_remembered(tmp_path: Path) -> None:
    three, times = candidates(3), Times(2.0, 3.0, 1.0)
    assert Memory("a GPU: 1", tmp_path).choose("key", three, times) is three[2]
    assert times.asked == 3 * ROUNDS
    again = Memory("a GPU: 1", tmp_path)
    assert again.choose("key", three, times) is three[2]
    assert times.asked == 3 * ROUNDS
    assert again.choose("other", three, times) is three[2]
    assert Memory("a GPU: 2", tmp_path).choose("key", three, Times(1.0, 2.0, 3.0)) is three[0]
    assert sorted(file.name for file in tmp_path.glob("*.json")) == [
        "a-GPU-1.json",
        "a-GPU-2.json",
    ]


def test_what_the_library_no_longer_proposes_is_timed_anew(tmp_path: Path) -> None:
    three = candidates(3)
    memory = Memory("gpu", tmp_path)
    assert memory.choose("key", three, Times(2.0, 3.0, 1.0)) is three[2]
    assert memory.choose("key", three[:2], Times(2.0, 1.0)) is three[1]
    assert json.loads(memory.file.read_text())["key"] == digest(three[1])


def test_two_processes_keep_each_others_findings(tmp_path: Path) -> None:
    one, other = Memory("gpu", tmp_path), Memory("gpu", tmp_path)
    two = candidates(2)
    one.choose("a", two, Times(1.0, 2.0))
    other.choose("b", two, Times(2.0, 1.0))
    assert json.loads(one.file.read_text()) == {"a": digest(two[0]), "b": digest(two[1])}


def test_many_writers_at_once(tmp_path: Path) -> None:
    def write(writer: int) -> None:
        memory = Memory("gpu", tmp_path)
        for key in range(10):
            memory.choose(f"{writer} {key}", candidates(2), Times(1.0, 2.0))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert len(json.loads((tmp_path / "gpu.json").read_text())) == 80
    assert not list(tmp_path.glob("*.part"))


def test_nobody_writes_beside_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_algorithms, "SECONDS", 0.05)
    two = candidates(2)
    with FileLock(tmp_path / "gpu.json.lock"), caplog.at_level(logging.INFO, "vitkit"):
        assert Memory("gpu", tmp_path).choose("key", two, Times(2.0, 1.0)) is two[1]
    assert "is not kept in" in caplog.text
    assert not (tmp_path / "gpu.json").exists()


def test_a_write_that_fails_leaves_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = candidates(2)
    Memory("gpu", tmp_path).choose("key", two, Times(1.0, 2.0))
    before = (tmp_path / "gpu.json").read_bytes()

    def refuse(*paths: Path) -> None:
        raise OSError("no room")

    monkeypatch.setattr(os, "replace", refuse)
    assert Memory("gpu", tmp_path).choose("other", two, Times(2.0, 1.0)) is two[1]
    assert (tmp_path / "gpu.json").read_bytes() == before
    assert not list(tmp_path.glob("*.part"))


def test_a_folder_that_may_not_be_read_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError("not yours")

    monkeypatch.setattr(Path, "is_file", refuse)
    with caplog.at_level(logging.WARNING, "vitkit"):
        assert Memory("gpu", tmp_path).choose("key", candidates(2), Times(2.0, 1.0)).data[3] == 2
    assert "is not used and made anew: not yours" in caplog.text


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1, 2]", '"text"', '{"key": 5}', '{"key": "no digest"}', "[" * 100_000, "\0" * 10],
    ids=lambda text: text[:12],
)
def test_a_damaged_file_is_made_anew(text: str, tmp_path: Path) -> None:
    (tmp_path / "gpu.json").write_text(text)
    two, times = candidates(2), Times(2.0, 1.0)
    assert Memory("gpu", tmp_path).choose("key", two, times) is two[1]
    assert times.asked
    assert json.loads((tmp_path / "gpu.json").read_text())["key"] == digest(two[1])


def test_a_file_of_a_stranger_is_said_and_not_believed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "gpu.json").write_text("x" * (5 << 20))
    with caplog.at_level(logging.WARNING, "vitkit"):
        assert Memory("gpu", tmp_path).choose("key", candidates(1), Times(1.0)).data[3] == 1
    assert "gpu.json is not used and made anew: it is larger than" in caplog.text


def test_what_cannot_be_kept_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.INFO, "vitkit"):
        chosen = Memory("gpu", tmp_path / "file").choose("key", candidates(2), Times(2.0, 1.0))
    assert chosen.data[3] == 2
    assert "is not kept in" in caplog.text


def test_no_timing_where_it_is_switched_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITKIT_AUTOTUNE", "off")
    two, times = candidates(2), Times(2.0, 1.0)
    assert Memory("gpu", tmp_path).choose("key", two, times) is two[0]
    assert times.asked == 0
    assert not list(tmp_path.iterdir())


def test_a_device_is_timed_by_events(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    class Event:
        def record(self) -> None:
            done.append("record")

        def synchronize(self) -> None:
            done.append("wait")

    class Cuda:
        def __init__(self) -> None:
            self.Event = Event

        def get_elapsed_time(self, start: Event, end: Event) -> float:
            return 2.5

    monkeypatch.setattr(_gpu.Gpu, "cuda", Cuda())
    assert _gpu.Gpu().seconds(lambda: done.append("run")) == pytest.approx(2.5e-3 / _gpu.RUNS)
    assert done == ["record", *["run"] * _gpu.RUNS, "record", "wait"]
