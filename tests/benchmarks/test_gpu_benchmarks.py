"""The programs for GPUs run without one, compare what contenders say, and stay in their budget."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vitkit.testing import cuda_on_cpu

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TORCH = "ran" if find_spec("torch") else "skipped"
EMULATED = "skipped" if cuda_on_cpu.why_not() else "ran"

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="nobody can wait for a pipe with a time limit there"
)


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Return how a program ended that ran without a GPU."""
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / program), "--dry", *arguments],
        capture_output=True,
        text=True,
        timeout=290,
        check=False,
    )


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return the parts of the programs that can be tried by themselves."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    names = "gpu_race gpu_truth gpu_report gpu_machine gpu_all gpu_kernels process report".split()
    names += ["contenders.task", "contenders.entries", "contenders.gpu_cases", "contenders.serve"]
    before = set(sys.modules)
    found = {name.rpartition(".")[2]: __import__(name, fromlist=["x"]) for name in names}
    yield SimpleNamespace(**found)
    for name in set(sys.modules) - before:  # their names are common words
        if str(BENCHMARKS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def check_race(found: dict[str, Any], shown: str) -> None:
    """Check that everyone who ran was right, tried all batches, and is in the table."""
    for name, one in found["contenders"].items():
        if one["status"] != "ran":
            assert "GPU" not in one["reason"]
            continue
        evidence = one["check"]
        assert evidence["wrong"] == ""
        assert 0 < evidence["apart"] <= evidence["tolerance"]["apart"]
        for what, apart in one["peers"]["apart"].items():
            assert 0 <= apart <= one["peers"]["tolerance"][what]
        assert set(one["batches"]) == {"4", "8"}
        assert one["title"] in shown
        row = found["summary"][name]
        assert row["images_per_second"] == pytest.approx(1 / one["turns"]["0"], rel=1e-3)
        assert row["mfu"] == pytest.approx(
            found["flop_per_image"] * row["images_per_second"] / found["peak"]["flops"], rel=1e-3
        )
    assert found["summary"][found["against"]]["times_as_fast"]["median"] == 1


@pytest.mark.slow
@pytest.mark.skipif(TORCH == EMULATED == "skipped", reason="without PyTorch and C++ nobody can run")
def test_everything(tmp_path: Path) -> None:
    end = run("gpu_all.py", "--out", str(tmp_path), "--budget", "250")
    assert end.returncode == 0, end.stderr + end.stdout
    files = {file.stem: json.loads(file.read_text()) for file in tmp_path.glob("*.json")}
    assert set(files) == {"all", "train_tiny", "infer_tiny", "kernels"}
    assert {"python", "vitkit", "numpy"} <= set(files["all"]["versions"])
    assert str(tmp_path) not in json.dumps(files)
    for name in ("train_tiny", "infer_tiny"):
        found = files[name]
        statuses = {who: one["status"] for who, one in found["contenders"].items()}
        assert statuses == {"bfloat16_graph": EMULATED, "eager": TORCH}
        assert not found["cut"]
        if TORCH == "ran":
            check_race(found, end.stdout)
    kernels = files["kernels"]
    assert set(kernels["cases"]) == {
        "attention_own N=17 bfloat16", "product qkv bfloat16", "product fc1 bfloat16",
        "norm_low bfloat16",
    }  # fmt: skip
    for name, case in kernels["cases"].items():
        assert name in end.stdout
        assert case["summary"]["wrong"] == []
        if EMULATED == "ran":
            assert case["summary"]["kernel_us"] > case["summary"]["floor_us"] > 0
            assert case["served"]


@pytest.mark.slow
@pytest.mark.skipif(TORCH == "skipped", reason="it is PyTorch that the references are beside")
@pytest.mark.parametrize("task", ["train", "infer"])
def test_a_race_of_references(tmp_path: Path, task: str) -> None:
    out = tmp_path / "found.json"
    names = "reference,eager"
    end = run(f"gpu_{task}.py", "--only", names, "--gelu", "erf", "--rst", "--out", str(out))
    assert end.returncode == 0, end.stderr + end.stdout
    found = json.loads(out.read_text())
    assert found["activation"] == "gelu"
    assert list(found["contenders"]) == ["eager", "reference"]
    assert found["contenders"]["reference"]["check"]["apart"] < 1e-5
    assert ".. csv-table::" in end.stdout
    check_race(found, end.stdout)
    again = subprocess.run(
        [sys.executable, str(BENCHMARKS / "report.py"), str(out), "--against", "reference"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "ratios to vitkit references" in again.stdout


@pytest.mark.slow
@pytest.mark.skipif(EMULATED == "skipped", reason="there is no C++ compiler to run kernels with")
def test_every_part_of_a_block_has_its_case(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    ops = ["attention_own_backward", "product_dw", "norm_low_backward", "through_activation"]
    ops.append("adamw_update_inplace")
    end = run("gpu_kernels.py", "--only", ",".join(ops), "--out", str(out))
    assert end.returncode == 0, end.stderr + end.stdout
    found = json.loads(out.read_text())
    assert len(found["cases"]) == 1 + 4 + 1 + 1 + 1
    for case in found["cases"].values():
        assert case["served"]
        assert set(case["seconds"]) == ({"kernel", "torch"} if TORCH == "ran" else {"kernel"})
        assert case["summary"]["bound"] in ("memory", "products")


def truth(modules: Any, rng: np.random.Generator) -> Any:
    arrays = {name: rng.standard_normal((30, 20)) for name in ("weight", "bias")}
    return modules.gpu_truth.Truth(2.0, arrays)


def test_evidence_that_is_wrong(modules: Any, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    rng, file = np.random.default_rng(0), tmp_path / "evidence.safetensors"
    right = truth(modules, rng)

    def judge(loss: float, changed: dict[str, np.ndarray]) -> str:
        save_file({name: np.float32(each) for name, each in changed.items()}, file)
        return str(right.check(loss, file, "bfloat16")["wrong"])

    noisy = {k: a + 0.01 * rng.standard_normal(a.shape) for k, a in right.arrays.items()}
    assert judge(2.001, noisy) == ""
    assert judge(2.1, noisy).startswith("loss 5.0e-02 from float64")
    assert judge(math.nan, noisy).startswith("loss nan")
    assert judge(2.0, {**noisy, "bias": -noisy["bias"]}).startswith("arrays 1.4e+00 from float64")
    assert judge(2.0, {**noisy, "bias": noisy["bias"] * math.nan}).startswith("arrays nan")
    assert judge(2.0, {**noisy, "bias": noisy["bias"][:1]}).startswith("arrays inf")
    assert judge(2.0, {"bias": noisy["bias"]}) == "not in both: weight"
    strict = right.check(2.0, file, "float32")
    assert strict["wrong"]


def test_the_truth_is_that_of_pytorch_in_float64(modules: Any, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    race, task = modules.gpu_race, modules.task
    order = task.Order(
        "train", "tiny", str(tmp_path / "weights"), activation="gelu_tanh", data=str(tmp_path)
    )
    race.write_weights(order.sizes, Path(order.weights))
    task.write_data(order.sizes, tmp_path)
    found = modules.gpu_truth.compute(order)
    from contenders.torch_contender import TorchViT
    from safetensors.torch import load_file

    model = TorchViT(order.sizes)
    model.load_state_dict(load_file(order.weights))
    images, labels = map(torch.from_numpy, task.read_data(order))
    loss = torch.nn.functional.cross_entropy(model.double()(images.double()), labels)
    loss.backward()
    assert found.loss == pytest.approx(loss.item(), rel=1e-12)
    gradients = {name: each.grad.numpy() for name, each in model.named_parameters()}
    assert set(gradients) == set(found.arrays)
    for name, gradient in gradients.items():
        apart = np.linalg.norm(gradient - found.arrays[name])
        assert apart <= 1e-11 * np.linalg.norm(gradient), name


def order_of(modules: Any, **changes: Any) -> Any:
    return modules.task.Order("train", "tiny", device="dry", **changes)


class Answering:
    """Stands in for a process: answers from a list, and remembers what it was asked."""

    def __init__(self, modules: Any, seconds: dict[int, float], too_large: int = 10**9) -> None:
        self.modules, self.seconds, self.too_large = modules, seconds, too_large
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


def race_of(modules: Any, racer: Answering, batches: tuple[int, ...], tmp_path: Path) -> Any:
    arguments = SimpleNamespace(budget=100.0, batches=batches, rounds=3, out=None)
    race = modules.gpu_race.Race(order_of(modules), arguments, tmp_path)
    race.racers["eager"] = racer
    race.found["eager"] = {"title": "PyTorch", "status": "ran", "batches": {}, "turns": {}}
    race.found["eager"] |= {"precision": "bfloat16", "states": {}}
    return race


def test_the_batch_with_most_images_a_second_is_taken(modules: Any, tmp_path: Path) -> None:
    racer = Answering(modules, {256: 0.1, 512: 0.19, 128: 0.06}, too_large=1024)
    race = race_of(modules, racer, (256, 512, 128, 1024), tmp_path)
    race._search("eager", math.inf)
    found = race.found["eager"]
    assert found["batch_size"] == 512
    assert racer.prepared == [256, 512, 128, 512]  # back to it for the race
    assert found["batches"]["1024"] == {"reason": "OutOfMemoryError: CUDA out of memory"}
    assert found["batches"]["512"]["peak_bytes"] == 512000
    assert found["notes"] == {"attention": "cuDNN"}
    assert found["numbers"] == [[2.0, 1.0]]


def test_batches_that_there_is_no_time_for_are_said(modules: Any, tmp_path: Path) -> None:
    racer = Answering(modules, {256: 0.1, 512: 0.1})
    race = race_of(modules, racer, (256, 512), tmp_path)
    race._search("eager", -math.inf)
    assert race.found["eager"]["batch_size"] == 256
    assert race.found["eager"]["batches"]["512"] == {"reason": "not tried, for want of time"}


def test_nobody_without_memory_for_any_batch(modules: Any, tmp_path: Path) -> None:
    race = race_of(modules, Answering(modules, {}, too_large=1), (256, 512), tmp_path)
    race.racers["compiled"], race.found["compiled"] = race.racers["eager"], race.found["eager"]
    race.enter("compiled", [], None)
    assert race.found["compiled"]["status"] == "failed"
    assert race.found["compiled"]["reason"] == "out of memory at every batch"
    assert set(race.found["compiled"]["batches"]) == {"256", "512"}
    assert "compiled" not in race.racers


def test_rounds_end_with_the_budget(modules: Any, tmp_path: Path) -> None:
    race = race_of(modules, Answering(modules, {256: 0.1}), (256,), tmp_path)
    race._search("eager", math.inf)
    watch = SimpleNamespace(between=lambda start, end: {"MHz": 1980.0, "W": 600.0})
    race.clock = SimpleNamespace(left=lambda: 0.0, spent=lambda: 100.0, budget=100.0)
    race.run(watch)
    assert race.rounds == 1  # or nothing would have been measured
    assert race.cut == ["Cut after 1 of 3 rounds: the budget of 100 s is spent."]
    assert race.found["eager"]["turns"] == {"0": 0.1 / 256}
    assert race.found["eager"]["states"]["0"]["MHz"] == 1980


def test_who_comes_when_no_time_is_left_is_skipped(modules: Any, tmp_path: Path) -> None:
    race = race_of(modules, Answering(modules, {}), (256,), tmp_path)
    race.clock = SimpleNamespace(left=lambda: 1.0, spent=lambda: 99.0, reserve=20.0)
    race.enter("eager", [], None)
    assert race.found["eager"]["reason"] == "no time was left for it"
    assert not race.racers


def test_a_contender_whose_numbers_differ_is_wrong(modules: Any, tmp_path: Path) -> None:
    race = race_of(modules, Answering(modules, {}), (256,), tmp_path)
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
        race.racers[name] = Answering(modules, {})
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


def test_who_does_not_answer_in_time_is_dropped(modules: Any, tmp_path: Path) -> None:
    entry = modules.entries.Entry("Nobody", "json", "vitkit_contender", "float32")
    racer = modules.process.Racer(entry, 1, tmp_path / "log", stops=False)
    try:
        with pytest.raises(modules.process.Dropped, match="no answer within 0 s") as dropped:
            racer.ask(patience=0.0, do="peak")
        assert dropped.value.status == "skipped"
    finally:
        racer.close()


def test_want_of_memory_is_told_from_other_failures(modules: Any) -> None:
    class Contender:
        def __init__(self, error: Exception) -> None:
            self.error = error

        def prepare(self, mode: str, order: Any) -> Any:
            raise self.error

    def answer(error: Exception) -> dict[str, Any]:
        server = modules.serve.Server(Contender(error), "")
        return server.answer({"do": "prepare", **asdict(order_of(modules))})

    assert set(answer(MemoryError())) == {"memory"}
    assert set(answer(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"))) == {"memory"}
    assert set(answer(RuntimeError("no kernel image"))) == {"error"}
    assert answer(modules.serve.Skip("no GPU")) == {"skip": "no GPU"}


def test_peaks_are_those_of_the_name(modules: Any) -> None:
    peak = modules.gpu_machine.peak
    assert peak("NVIDIA H200", None)[0] == peak("NVIDIA H100 80GB HBM3", 1.0)[0] == 989.5e12
    assert peak("NVIDIA H100 PCIe", None)[0] == 756e12
    assert peak("NVIDIA A100-SXM4-40GB", None)[0] == 312e12
    flops, by = peak("NVIDIA Z9", 7e14)
    assert flops == 7e14
    assert "unknown GPU" in by
    assert peak("NVIDIA Z9", None)[0] is None


def result(modules: Any, rates: dict[str, float]) -> dict[str, Any]:
    """Return what a race of ViT-B would have written, of images a second."""
    entries = modules.entries.GPU_ENTRIES
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


def test_a_table_and_its_goals(modules: Any) -> None:
    rates = {"bfloat16_graph": 5280.0, "bfloat16": 5000.0, "max_autotune": 4400.0}
    found = result(modules, rates)
    row = modules.gpu_report.summary(found, "max_autotune")["bfloat16_graph"]
    assert row["images_per_second"] == pytest.approx(4800)  # the median round is 1.1 times as long
    assert row["mfu"] == pytest.approx(1e11 * 4800 / 989.5e12)
    assert row["times_as_fast"]["median"] == pytest.approx(1.2)
    assert row["state"]["W"] == 650
    shown = modules.gpu_report.race_table(found, "max_autotune")
    assert "vitkit bf16, CUDA graph: batch 512: out of memory." in shown
    assert "Goal: 5200 images/s; vitkit bf16, CUDA graph: 4800, 92% of it." in shown
    assert "max-autotune; vitkit bf16, CUDA graph: 1.2, reached." in shown
    assert modules.gpu_report.base_of(found, "eager") == "max_autotune"  # for want of the other


def test_a_goal_whose_rival_was_not_measured(modules: Any) -> None:
    found = result(modules, {"bfloat16": 5000.0})
    goals = list(modules.gpu_report.goals(found))
    assert goals[1] == "Goal: 1.15 times max_autotune: not measured."
    found["name"] = "tiny"
    assert list(modules.gpu_report.goals(found)) == []


def test_what_an_operation_must_move_and_compute(modules: Any) -> None:
    c = modules.task.Order("", "B", batch_size=256).sizes
    cases, rows = modules.gpu_cases.gpu_cases(c), 256 * 197
    product = cases["product fc1 bfloat16"]
    assert product.flop == 2 * rows * 768 * 3072
    assert product.bytes == 2 * (rows * 768 + rows * 3072 + 768 * 3072)
    attention = cases["attention_own N=197 bfloat16"]
    assert attention.flop == 4 * 256 * 12 * 197**2 * 64
    assert attention.bytes == 2 * 4 * rows * 768 + 4 * 256 * 12 * 197
    assert "attention_cudnn_backward N=65 bfloat16" in cases
    assert cases["adamw_update_inplace"].bytes == 28 * 12 * (4 * 768**2 + 2 * 768 * 3072)
    assert cases["dropout_backward"].bytes == 2 * 4 * rows * 768


def test_parts_share_what_time_is_left(modules: Any, monkeypatch: Any, tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    spent = [0.0]

    def run_part(words: Any, budget: float, out: Path) -> tuple[int | None, str]:
        told.append((words[0], budget))
        spent[0] += 10.0 if words[0] == "short" else budget + 8
        if words[0] == "long":
            return None, "ended after 75 s"
        out.write_text("{}")
        return 0, ""

    monkeypatch.setattr(modules.gpu_all, "run", run_part)
    clock = SimpleNamespace(left=lambda: 100.0 - spent[0], spent=lambda: spent[0])
    chosen = {"a": (1, ("short",)), "b": (2, ("long",)), "c": (1, ("rest",)), "d": (1, ("last",))}
    found = modules.gpu_all.parts(chosen, clock, tmp_path)
    assert told == [("short", 20.0), ("long", 45.0), ("rest", 18.5)]
    assert found["a"]["code"] == 0
    assert found["b"]["reason"] == "ended after 75 s"
    assert found["d"]["reason"] == "no time was left for it"


def test_a_part_that_takes_too_long_is_ended(
    modules: Any, monkeypatch: Any, tmp_path: Path
) -> None:
    (tmp_path / "sleeper.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(modules.gpu_all, "HERE", tmp_path)
    monkeypatch.setattr(modules.gpu_all, "GRACE", 0.5)
    code, reason = modules.gpu_all.run(["sleeper.py"], 0.0, tmp_path / "out.json")
    assert code is None
    assert reason.startswith("ended after")


def test_a_name_that_nobody_has() -> None:
    end = run("gpu_infer.py", "--only", "eager,kernels")
    assert end.returncode == 2
    assert "--only: unknown: kernels; known: bfloat16_graph" in end.stderr
