"""The programs in benchmarks/ run, compare what they say, and find out who is wrong."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TORCH = "ran" if find_spec("torch") else "skipped"

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="no signal stops a process between its turns there"
)


def run(tmp_path: Path, program: str, *arguments: str) -> tuple[dict[str, Any], str]:
    """Return what a program wrote and what it printed."""
    out = tmp_path / "found.json"
    end = subprocess.run(
        [sys.executable, str(BENCHMARKS / program), "--dry", *arguments, "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert end.returncode == 0, end.stderr + end.stdout
    return json.loads(out.read_text()), end.stdout


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the parts of the programs that can be tried by themselves."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    names = ("race", "report", "process", "cpu_kernels", "contenders.entries")
    before = set(sys.modules)
    found = {name.rpartition(".")[2]: __import__(name, fromlist=["x"]) for name in names}
    yield SimpleNamespace(**found)
    for name in set(sys.modules) - before:  # their names are common words
        if str(BENCHMARKS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["train", "infer"])
def test_a_race(tmp_path: Path, task: str) -> None:
    found, shown = run(tmp_path, f"cpu_{task}.py", "--only", "reference,kernels,fused")
    assert found["command"].startswith(f"python benchmarks/cpu_{task}.py --dry --only")
    assert str(tmp_path) not in json.dumps(found)
    assert {"python", "vitkit", "numpy"} <= set(found["versions"])
    contenders = found["contenders"]
    assert {name: one["status"] for name, one in contenders.items()} == {
        "eager": TORCH,
        "fused": TORCH,
        "reference": "ran",
        "kernels": "ran" if find_spec("numba") else "skipped",
    }
    for name, row in found["summary"].items():
        assert row["gflops"] == pytest.approx(found["flop"] / row["median_ms"] / 1e6, rel=1e-3)
        assert 0 <= contenders[name]["check"]["difference"]["later"] < 1e-3
        assert row["share_of_products"] > 0
        assert len(contenders[name]["turns"]) == 1
        assert contenders[name]["title"] in shown
    assert found["summary"][found["against"]]["times_as_fast"]["median"] == 1
    assert found["products"]["numpy"]["status"] == "ran"
    named = {"train": "adamw_update_inplace", "infer": "patchify"}
    assert named[task] in contenders["reference"]["operations"]


def test_those_who_cannot_run_are_listed_with_the_reason(modules: Any, tmp_path: Path) -> None:
    make, entries = modules.process.Racer, modules.entries
    absent = entries.Entry("Nobody", "no_such_library", "vitkit_contender", "")
    with pytest.raises(modules.process.Dropped, match="no_such_library") as dropped:
        make(absent, 1, tmp_path / "log")
    assert dropped.value.status == "skipped"
    broken = entries.Entry("Broken", "json", "no_such_module", "")
    with pytest.raises(modules.process.Dropped, match="no_such_module") as dropped:
        make(broken, 1, tmp_path / "log")
    assert dropped.value.status == "failed"


def test_a_contender_that_computes_something_else_is_wrong(modules: Any) -> None:
    found = {
        name: {"title": name, "precision": precision, "status": "ran", "numbers": numbers}
        for name, precision, numbers in (
            ("eager", "float32", [[2.0], [1.9], [1.8], [1.7]]),
            ("equal", "float32", [[2.000001], [1.9], [1.8], [1.7001]]),
            ("half", "bfloat16", [[2.005], [1.9], [1.8], [1.71]]),
            ("wrong at once", "float32", [[2.001], [1.9], [1.8], [1.7]]),
            ("wrong later", "float32", [[2.0], [1.9], [1.8], [1.71]]),
            ("nan", "bfloat16", [[2.0], [1.9], [float("nan")], [float("nan")]]),
        )
    }
    race = SimpleNamespace(found=found, order=SimpleNamespace(task="train"))
    modules.race.check(race, "eager")
    right = [name for name, one in found.items() if one["status"] == "ran"]
    assert right == ["eager", "equal", "half"]
    assert found["wrong later"]["reason"].startswith("differs from eager: later 5.9e-03")


def test_ratios_are_those_of_single_rounds(modules: Any) -> None:
    base, own = {"0": 1.0, "1": 4.0, "2": 1.0}, {"1": 2.0, "2": 2.0}  # one heat of two
    assert modules.report.ratios(base, own) == [2.0, 0.5]


def test_only_those_of_one_heat_are_compared(modules: Any) -> None:
    def contender(*rounds: int) -> dict[str, Any]:
        start = {"import_seconds": 1.0, "prepare_seconds": 1.0, "first_seconds": [1.0]}
        return {"turns": {str(each): 2.0 for each in rounds}, "precision": "float32", **start}

    report = {
        "configuration": {"batch_size": 8},
        "flop": 1e9,
        "products": {},
        "contenders": {"base": contender(0, 1), "one": contender(0), "other": contender(1)},
    }
    assert list(modules.report.summary(report, "base")) == ["base", "one", "other"]
    assert list(modules.report.summary(report, "one")) == ["base", "one"]
    with pytest.raises(SystemExit, match="'nobody' did not run; there are base, one, other"):
        modules.report.summary(report, "nobody")


def test_tables(modules: Any) -> None:
    rows = [["vitkit", "1.5"], ["PyTorch, eager", "22"]]
    assert modules.report.table(("who", "ms"), rows).splitlines() == [
        "| who            |  ms |",
        "| -------------- | --: |",
        "| vitkit         | 1.5 |",
        "| PyTorch, eager |  22 |",
    ]
    assert modules.report.table(("who", "ms"), rows, "rst").splitlines() == [
        ".. csv-table::",
        '   :header: "who", "ms"',
        "",
        '   "vitkit", "1.5"',
        '   "PyTorch, eager", "22"',
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("kernels_on")
def test_operations_one_by_one(tmp_path: Path) -> None:
    ops = "linear,linear_backward,layer_norm_backward,mlp_branch_backward_inplace,drop_path"
    ops += ",clip_by_norm_inplace"
    found, shown = run(tmp_path, "cpu_kernels.py", "--only", ops)
    if not find_spec("numba"):
        assert found["cases"] == {}
        return
    assert (
        len(found["cases"]) == 2 * 4 + 1 + 2 + 1 + 1
    )  # of linear four sizes, of branches two kinds
    for name, case in found["cases"].items():
        assert name in shown
        assert case["summary"]["wrong"] == []
        assert "kernel_us" in case["summary"] or "bfloat16" in name
    backward = found["cases"]["linear_backward fc1"]
    assert backward["summary"]["served"]
    assert set(backward["seconds"]) >= {"kernel", "reference"}
    assert backward["flop"] == 2 * found["cases"]["linear fc1"]["flop"]
    if TORCH == "ran":
        assert found["cases"]["drop_path"]["reasons"] == {"torch": "skipped: has no such function"}
    assert found["cases_without_a_kernel"] == found["kernels_without_a_case"] == []


def test_differences_of_results_are_by_their_norms(modules: Any) -> None:
    numbers = {"reference": [10.0, 3.0, 1.0, 0.5], "kernel": [10.0, 3.1, 1.0, 0.5], "torch": []}
    assert modules.cpu_kernels.differences(numbers) == {"kernel": pytest.approx(0.01)}
    numbers["torch"] = [10.0, 3.0, 1.0, float("nan")]
    assert math.isnan(modules.cpu_kernels.differences(numbers)["torch"])


@pytest.mark.slow
def test_starts(tmp_path: Path) -> None:
    chosen = "python,vitkit,help,infer_reference,train_reference,jax"
    found, shown = run(tmp_path, "cpu_import.py", "--only", chosen)
    names = {"python", "vitkit", "help", "infer_reference", "train_reference"}
    assert set(found["cases"]) >= names
    assert set(found["skipped"]) == (set() if find_spec("jax") else {"jax"})
    for case in found["cases"].values():
        assert case["median"] > 0
        assert case["title"] in shown


def test_a_name_that_nobody_has(tmp_path: Path) -> None:
    end = subprocess.run(
        [sys.executable, str(BENCHMARKS / "cpu_train.py"), "--dry", "--only", "eager,kernel"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert end.returncode == 2
    assert "--only: unknown: kernel; known: eager, fused" in end.stderr
