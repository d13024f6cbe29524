"""A race on a GPU: batches, budgets, who is wrong, and what is read of it; by stand-ins."""

from __future__ import annotations

import math
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest


def order_of(gpu_modules: Any, **changes: Any) -> Any:
    return gpu_modules.task.Order("train", "tiny", device="dry", **changes)


class Answering:
    """Stands in for a process: answers from a list, and remembers what it was asked."""

    def __init__(self, gpu_modules: Any, seconds: dict[int, float], too_large: int = 10**9) -> None:
        self.modules, self.seconds, self.too_large = gpu_modules, seconds, too_large
        self.prepared: list[int] = []

    def ask(self, do: str, patience: float, **request: Any) -> dict[str, Any]:
        if do == "prepare":
            size = request["batch_size"]
            if size >= self.too_large:
                raise self.modules.process.NoMemory("OutOfMemoryError: CUDA out of memory")
            self.prepared.append(size)
            return {"seconds": 1.0, "notes": {"attention": "cuDNN"}}
        spent = self.seconds[self.prepared[-1]]
        if do == "first":
            return {"seconds": [1.0, spent], "numbers": [[2.0, 1.0]]}
        return {"seconds": [spent]} if do == "time" else {"bytes": 1000 * self.prepared[-1]}

    def close(self) -> None:
        """Nothing to end."""


class Gone(dict[int, float]):
    """Times of batches, and a contender that says nothing any more of others."""

    def __init__(self, gpu_modules: Any, seconds: dict[int, float]) -> None:
        super().__init__(seconds)
        self.modules = gpu_modules

    def __missing__(self, size: int) -> float:
        raise self.modules.process.Dropped("skipped", "no answer within 9 s", answers=False)


def race_of(gpu_modules: Any, racer: Answering, batches: tuple[int, ...], tmp_path: Path) -> Any:
    arguments = SimpleNamespace(budget=100.0, batches=batches, rounds=3, out=None)
    race = gpu_modules.gpu_race.Race(order_of(gpu_modules), arguments, tmp_path)
    race.racers["eager"] = racer
    race.found["eager"] = {"title": "PyTorch", "status": "ran", "batches": {}, "turns": {}}
    race.found["eager"] |= {"precision": "bfloat16", "states": {}}
    return race


def test_the_batch_with_most_images_a_second_is_taken(gpu_modules: Any, tmp_path: Path) -> None:
    racer = Answering(gpu_modules, {256: 0.1, 512: 0.19, 128: 0.06}, too_large=1024)
    race = race_of(gpu_modules, racer, (256, 512, 128, 1024), tmp_path)
    race._search("eager", math.inf)
    found = race.found["eager"]
    assert found["batch_size"] == 512
    assert racer.prepared == [256, 512, 128, 512]  # back to it for the race
    assert found["batches"]["1024"] == {"reason": "OutOfMemoryError: CUDA out of memory"}
    assert found["batches"]["512"]["peak_bytes"] == 512000
    assert found["notes"] == {"attention": "cuDNN"}
    assert found["numbers"] == [[2.0, 1.0]]


def test_a_batch_that_fails_leaves_nothing_to_time(gpu_modules: Any, tmp_path: Path) -> None:
    racer = Answering(gpu_modules, {256: 0.1}, too_large=512)
    race = race_of(gpu_modules, racer, (256, 512), tmp_path)
    race._search("eager", math.inf)
    assert racer.prepared == [256, 256]
    racer = Answering(gpu_modules, {256: 0.1})
    race = race_of(gpu_modules, racer, (256, 512), tmp_path)
    racer.seconds = Gone(gpu_modules, {256: 0.1})
    with pytest.raises(gpu_modules.process.Dropped, match="no answer within 9 s"):
        race._search("eager", math.inf)


def test_batches_that_there_is_no_time_for_are_said(gpu_modules: Any, tmp_path: Path) -> None:
    racer = Answering(gpu_modules, {256: 0.1, 512: 0.1})
    race = race_of(gpu_modules, racer, (256, 512), tmp_path)
    race._search("eager", -math.inf)
    assert race.found["eager"]["batch_size"] == 256
    assert race.found["eager"]["batches"]["512"] == {"reason": "not tried, for want of time"}


def test_nobody_without_memory_for_any_batch(gpu_modules: Any, tmp_path: Path) -> None:
    race = race_of(gpu_modules, Answering(gpu_modules, {}, too_large=1), (256, 512), tmp_path)
    race.racers["compiled"], race.found["compiled"] = race.racers["eager"], race.found["eager"]
    race.enter("compiled", [], None)
    assert race.found["compiled"]["status"] == "failed"
    assert race.found["compiled"]["reason"] == "out of memory at every batch"
    assert set(race.found["compiled"]["batches"]) == {"256", "512"}
    assert "compiled" not in race.racers


def test_rounds_end_with_the_budget(gpu_modules: Any, tmp_path: Path) -> None:
    race = race_of(gpu_modules, Answering(gpu_modules, {256: 0.1}), (256,), tmp_path)
    race._search("eager", math.inf)
    watch = SimpleNamespace(between=lambda start, end: {"MHz": 1980.0, "W": 600.0})
    race.clock = SimpleNamespace(left=lambda: 0.0, spent=lambda: 100.0, budget=100.0)
    race.run(watch)
    assert race.rounds == 1  # or nothing would have been measured
    assert race.cut == ["Cut after 1 of 3 rounds: the budget of 100 s is spent."]
    assert race.found["eager"]["turns"] == {"0": 0.1 / 256}
    assert race.found["eager"]["states"]["0"]["MHz"] == 1980


def test_who_comes_when_no_time_is_left_is_skipped(gpu_modules: Any, tmp_path: Path) -> None:
    race = race_of(gpu_modules, Answering(gpu_modules, {}), (256,), tmp_path)
    race.clock = SimpleNamespace(left=lambda: 1.0, spent=lambda: 99.0, reserve=20.0)
    race.enter("eager", [], None)
    assert race.found["eager"]["reason"] == "no time was left for it"
    assert not race.racers


def test_a_contender_whose_numbers_differ_is_wrong(gpu_modules: Any, tmp_path: Path) -> None:
    race = race_of(gpu_modules, Answering(gpu_modules, {}), (256,), tmp_path)
    right = [[2.3, 1.5], [2.1, 1.4], [1.9, 1.3], [1.7, 1.2]]
    changes = {
        "compiled": [[2.301, 1.51], [2.1, 9.0], [1.9, 1.3], [1.701, 1.2]],
        "bfloat16": [[2.4, 1.5], *right[1:]],
        "tf32": [[2.3, 1.6], *right[1:]],
        "max_autotune": [*right[:3], [2.0, 1.2]],
        "reference": [*right[:3], [math.nan, 1.2]],
    }
    race.found["eager"]["numbers"] = right
    for name, numbers in changes.items():
        race.racers[name] = Answering(gpu_modules, {})
        race.found[name] = {"title": name, "status": "ran", "numbers": numbers}
    race.compare()
    reasons = {name: one.get("reason") for name, one in race.found.items()}
    assert reasons == {
        "eager": None,
        "compiled": None,  # a norm later on is nobody's evidence
        "bfloat16": "differs from eager: first loss 4.3e-02",
        "tf32": "differs from eager: first norm 6.7e-02",
        "max_autotune": "differs from eager: later losses 9.1e-02",
        "reference": "differs from eager: later losses nan",
    }
    assert set(race.racers) == {"eager", "compiled"}


@pytest.mark.skipif(
    sys.platform == "win32", reason="nobody can wait for a pipe with a time limit there"
)
def test_who_does_not_answer_in_time_is_dropped(gpu_modules: Any, tmp_path: Path) -> None:
    entry = gpu_modules.entries.Entry("Nobody", "json", "vitkit_contender", "float32")
    racer = gpu_modules.process.Racer(entry, 1, tmp_path / "log", stops=False)
    try:
        with pytest.raises(gpu_modules.process.Dropped, match="no answer within 0 s") as dropped:
            racer.ask(patience=0.0, do="peak")
        assert dropped.value.status == "skipped"
    finally:
        racer.close()


def test_want_of_memory_is_told_from_other_failures(gpu_modules: Any) -> None:
    class Contender:
        def __init__(self, error: Exception) -> None:
            self.error = error

        def prepare(self, mode: str, order: Any) -> Any:
            raise self.error

    def answer(error: Exception) -> dict[str, Any]:
        server = gpu_modules.serve.Server(Contender(error), "")
        return server.answer({"do": "prepare", **asdict(order_of(gpu_modules))})

    assert set(answer(MemoryError())) == {"memory"}
    assert set(answer(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"))) == {"memory"}
    assert set(answer(RuntimeError("no kernel image"))) == {"error"}
    assert answer(gpu_modules.serve.Skip("no GPU")) == {"skip": "no GPU"}


def test_peaks_are_those_of_the_name(gpu_modules: Any) -> None:
    peak = gpu_modules.gpu_machine.peak
    assert peak("NVIDIA H200", None)[0] == peak("NVIDIA H100 80GB HBM3", 1.0)[0] == 989.5e12
    assert peak("NVIDIA H100 PCIe", None)[0] == 756e12
    assert peak("NVIDIA A100-SXM4-40GB", None)[0] == 312e12
    flops, by = peak("NVIDIA Z9", 7e14)
    assert flops == 7e14
    assert "unknown GPU" in by
    assert peak("NVIDIA Z9", None)[0] is None


def result(gpu_modules: Any, rates: dict[str, float]) -> dict[str, Any]:
    """Return what a race of ViT-B would have written, of images a second."""
    entries = gpu_modules.entries.GPU_ENTRIES
    contenders = {
        name: {
            "title": entries[name].title,
            "status": "ran",
            "batch_size": 256,
            "batches": {"256": {"peak_bytes": 3e10}, "512": {"reason": "out of memory"}},
            "turns": {str(number): (1 + 0.1 * number) / rate for number in range(3)},
            "states": {"0": {"MHz": 1900.0, "W": 650.0, "C": 60.0}, "1": {}},
            "import_seconds": 3.0,
            "start_seconds": 20.0,
        }
        for name, rate in rates.items()
    }
    return {
        "benchmark": "gpu_train",
        "name": "B",
        "activation": "gelu_tanh",
        "date": "2026-11-28",
        "gpu": {"name": "NVIDIA H200"},
        "versions": {"torch": "2.11", "cupy-cuda13x": "14.2"},
        "flop_per_image": 1e11,
        "peak": {"flops": 989.5e12, "by": "989.5 TFLOP/s"},
        "rounds": 3,
        "cut": [],
        "contenders": contenders,
    }


def test_a_table_and_its_goals(gpu_modules: Any) -> None:
    rates = {"bfloat16_graph": 5280.0, "bfloat16": 5000.0, "max_autotune": 4400.0}
    found = result(gpu_modules, rates)
    row = gpu_modules.gpu_report.summary(found, "max_autotune")["bfloat16_graph"]
    assert row["images_per_second"] == pytest.approx(4800)  # the median round is 1.1 times as long
    assert row["mfu"] == pytest.approx(1e11 * 4800 / 989.5e12)
    assert row["times_as_fast"]["median"] == pytest.approx(1.2)
    assert row["state"]["W"] == 650
    shown = gpu_modules.gpu_report.race_table(found, "max_autotune")
    assert "vitkit bf16, CUDA graph: batch 512: out of memory." in shown
    assert "Goal: 5200 images/s; vitkit bf16, CUDA graph: 4800, 92% of it." in shown
    assert "max-autotune; vitkit bf16, CUDA graph: 1.2, reached." in shown
    assert gpu_modules.gpu_report.base_of(found, "eager") == "max_autotune"  # for want of the other


def test_a_goal_whose_rival_was_not_measured(gpu_modules: Any) -> None:
    found = result(gpu_modules, {"bfloat16": 5000.0})
    goals = list(gpu_modules.gpu_report.goals(found))
    assert goals[1] == "Goal: 1.15 times max_autotune: not measured."
    found["name"] = "tiny"
    assert list(gpu_modules.gpu_report.goals(found)) == []


def test_what_an_operation_must_move_and_compute(gpu_modules: Any) -> None:
    c = gpu_modules.task.Order("", "B", batch_size=256).sizes
    cases, rows = gpu_modules.gpu_cases.gpu_cases(c), 256 * 197
    product = cases["product fc1 bfloat16"]
    assert product.flop == 2 * rows * 768 * 3072
    assert product.bytes == 2 * (rows * 768 + rows * 3072 + 768 * 3072)
    attention = cases["attention_own N=197 bfloat16"]
    assert attention.flop == 4 * 256 * 12 * 197**2 * 64
    assert attention.bytes == 2 * 4 * rows * 768 + 4 * 256 * 12 * 197
    assert "attention_cudnn_backward N=65 bfloat16" in cases
    assert cases["adamw_update_inplace"].bytes == 28 * 12 * (4 * 768**2 + 2 * 768 * 3072)
    assert cases["clip_by_norm_inplace"].bytes == 8 * 12 * (4 * 768**2 + 2 * 768 * 3072)
    assert cases["dropout_backward"].bytes == 2 * 4 * rows * 768


class Failing(Answering):
    """A contender that is there no more when it is asked."""

    def ready(self) -> None:
        raise self.modules.process.Dropped("skipped", "no module named torch")

    def ask(self, do: str, patience: float, **request: Any) -> dict[str, Any]:
        raise self.modules.process.Dropped("failed", f"gone before it could {do}")


def test_who_is_gone_is_dropped_wherever_it_is_asked(gpu_modules: Any, tmp_path: Path) -> None:
    race = race_of(gpu_modules, Failing(gpu_modules, {}), (256,), tmp_path)
    race.ready()
    assert race.found["eager"]["status"] == "skipped"
    assert race.found["eager"]["reason"] == "no module named torch"
    race = race_of(gpu_modules, Answering(gpu_modules, {256: 0.1}), (256,), tmp_path)
    race._search("eager", math.inf)
    race.racers["eager"] = Failing(gpu_modules, {})
    race._turn("eager", 1.0, SimpleNamespace(between=None))
    assert race.found["eager"]["reason"] == "gone before it could time"
    assert race.found["eager"]["turns"] == {}
    assert not race.racers


def test_whose_gradients_are_wrong_is_dropped(gpu_modules: Any, tmp_path: Path) -> None:
    race = race_of(gpu_modules, Answering(gpu_modules, {}), (256,), tmp_path)

    def ask(name: str, file: str, **request: Any) -> dict[str, Any]:
        Path(file).touch()
        return {"loss": 2.0}

    race._ask = ask
    truth = SimpleNamespace(check=lambda loss, file, precision: {"wrong": f"loss {loss} is wrong"})
    race.enter("eager", [], truth)
    assert race.found["eager"]["status"] == "wrong"
    assert race.found["eager"]["reason"] == "loss 2.0 is wrong"
    assert race.found["eager"]["check"] == {"wrong": "loss 2.0 is wrong"}
    assert not race.racers
