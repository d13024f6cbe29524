"""The programs for GPUs run without one, compare what contenders say, and stay in their budget."""

from __future__ import annotations

import json
import math
import subprocess
import sys
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


def check_profile(found: dict[str, Any], shown: str) -> None:
    """Check that a step in parts is all of a step, and that what is to be won is shown."""
    parts, summary = found["parts"], found["summary"]
    assert summary["wrong"] == ""
    remade = parts["attention: forward"]["flop"] // 2  # in backward
    c = found["configuration"]
    rows = c["batch_size"] * ((c["image_size"] // c["patch_size"]) ** 2 + 1)
    left_out = 3 * 4 * (rows - 32) * c["dim"] * c["mlp_dim"]  # by the last block's MLP
    assert sum(part["flop"] for part in parts.values()) == found["flop"] + remade - left_out
    for name in ("products: fc1 forward, through GELU", "products: fc2 dx, through GELU"):
        assert parts[name]["calls"] == found["configuration"]["depth"]
        assert summary["rows"][name]["floor_ms"] > 0
    first = next(iter(summary["rows"]))
    assert f"profile_tiny: To win: {first} " in shown
    assert summary["step"]["graph_ms"] > 0


@pytest.mark.slow
@pytest.mark.skipif(TORCH == EMULATED == "skipped", reason="without PyTorch and C++ nobody can run")
def test_everything(tmp_path: Path) -> None:
    end = run("gpu_all.py", "--out", str(tmp_path), "--budget", "250")
    assert end.returncode == 0, end.stderr + end.stdout
    files = {file.stem: json.loads(file.read_text()) for file in tmp_path.glob("*.json")}
    assert set(files) == {"all", "train_tiny", "infer_tiny", "profile_tiny", "kernels"}
    assert {"python", "vitkit", "numpy"} <= set(files["all"]["versions"])
    assert str(tmp_path) not in json.dumps(files)
    for name in ("train_tiny", "infer_tiny"):
        found = files[name]
        statuses = {who: one["status"] for who, one in found["contenders"].items()}
        ours = {"bfloat16_graph": EMULATED, "bfloat16_narrow_graph": EMULATED}
        assert statuses == {**ours, "eager": TORCH}
        assert not found["cut"]
        if TORCH == "ran":
            check_race(found, end.stdout)
    assert ("summary" in files["profile_tiny"]) == (EMULATED == "ran")
    if EMULATED == "ran":
        check_profile(files["profile_tiny"], end.stdout)
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


def truth(gpu_modules: Any, rng: np.random.Generator) -> Any:
    arrays = {name: rng.standard_normal((30, 20)) for name in ("weight", "bias")}
    return gpu_modules.gpu_truth.Truth(2.0, arrays)


def test_evidence_that_is_wrong(gpu_modules: Any, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    rng, file = np.random.default_rng(0), tmp_path / "evidence.safetensors"
    right = truth(gpu_modules, rng)

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


def test_the_truth_is_that_of_pytorch_in_float64(gpu_modules: Any, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    race, task = gpu_modules.gpu_race, gpu_modules.task
    order = task.Order(
        "train", "tiny", str(tmp_path / "weights"), activation="gelu_tanh", data=str(tmp_path)
    )
    race.write_weights(order.sizes, Path(order.weights))
    task.write_data(order.sizes, tmp_path)
    found = gpu_modules.gpu_truth.compute(order)
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


def test_parts_share_what_time_is_left(gpu_modules: Any, monkeypatch: Any, tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    spent = [0.0]

    def run_part(words: Any, budget: float, out: Path) -> tuple[int | None, str]:
        told.append((words[0], budget))
        spent[0] += 10.0 if words[0] == "short" else budget + 8
        if words[0] == "long":
            return None, "ended after 75 s"
        out.write_text("{}")
        return 0, ""

    monkeypatch.setattr(gpu_modules.gpu_all, "run", run_part)
    clock = SimpleNamespace(left=lambda: 97.0 - spent[0], spent=lambda: spent[0])
    chosen = {"a": (1, ("short",)), "b": (2, ("long",)), "c": (1, ("rest",)), "d": (1, ("last",))}
    found = gpu_modules.gpu_all.parts(chosen, clock, tmp_path)
    assert told == [("short", 19.4), ("long", 43.5), ("rest", 17.75)]
    assert found["a"]["code"] == 0
    assert found["b"]["reason"] == "ended after 75 s"
    assert found["d"]["reason"] == "no time was left for it"


def test_a_part_that_takes_too_long_is_ended(
    gpu_modules: Any, monkeypatch: Any, tmp_path: Path
) -> None:
    (tmp_path / "sleeper.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(gpu_modules.gpu_all, "HERE", tmp_path)
    monkeypatch.setattr(gpu_modules.gpu_all, "GRACE", 0.5)
    code, reason = gpu_modules.gpu_all.run(["sleeper.py"], 0.0, tmp_path / "out.json")
    assert code is None
    assert reason.startswith("ended after")


def test_a_name_that_nobody_has() -> None:
    end = run("gpu_infer.py", "--only", "eager,kernels")
    assert end.returncode == 2
    assert "--only: unknown: kernels; known: bfloat16_graph" in end.stderr
