"""Where a step's time goes on a GPU: what parts cost, what they are charged, and what is read."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vitkit import ops
from vitkit.testing import cuda_on_cpu, strict_device

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_costs_of_small_cases_by_hand(gpu_modules: Any) -> None:
    costs = gpu_modules.costs
    # Three rows of 5 numbers by a matrix of 5 by 7, all of 2 bytes: 21 results of 5 multiply-adds.
    assert costs.product(3, 5, 7) == costs.Cost(210, 2 * 15 + 2 * 35 + 2 * 21)
    # The result in float32, and as much added to it.
    assert costs.product(3, 5, 7, out=4, plus=True).bytes == 100 + 4 * 21 + 4 * 21
    # Two tokens, one head of width 4: 4 scores and 4 shares, 4 multiply-adds each, twice.
    assert costs.attention(1, 2, 1, 4) == costs.Cost(2 * 2 * 4 * 4, 2 * 4 * 8 + 4 * 2)
    # q, k, v, y, dy, dq, dk, dv and statistics; scores again, and the gradients of four operands.
    assert costs.attention_backward(1, 2, 1, 4) == costs.Cost(5 * 2 * 4 * 4, 2 * 8 * 8 + 4 * 2)
    assert costs.norm(10) == costs.Cost(0, 10 * (4 + 2))
    assert costs.norm(10, out=4) == costs.Cost(0, 10 * (4 + 4))
    assert costs.norm(10, flowing=2) == costs.Cost(0, 10 * (2 + 2))
    assert costs.norm_backward(10) == costs.Cost(0, 10 * (2 + 4 + 4 + 4))
    assert costs.norm_backward(10, 4, residual=False) == costs.Cost(0, 10 * (4 + 4 + 4))
    # The gradient, the input, that of the residual, and what is written.
    assert costs.norm_backward(10, flowing=2) == costs.Cost(0, 10 * (2 + 2 + 2 + 2))
    assert costs.add_gained(10) == costs.Cost(0, 10 * (4 + 4 + 4))
    assert costs.add_gained(10, flowing=2) == costs.Cost(0, 10 * (2 + 4 + 2))
    assert costs.activation(10) == costs.Cost(0, 10 * (2 + 2 + 2))
    assert costs.activation(10, keep=False) == costs.Cost(0, 10 * (2 + 2))
    assert costs.through_activation(10) == costs.Cost(0, 10 * (2 + 2 + 2))
    assert costs.narrow(10) == costs.Cost(0, 10 * (4 + 2))
    assert costs.narrow(10, each=2) == costs.Cost(0, 10 * (2 + 2))
    assert costs.sums(10) == costs.Cost(0, 10 * 2)
    assert costs.added(10) == costs.Cost(0, 10 * (4 + 4 + 4))
    # The weight, both means and the gradient are read; all but the last are written.
    assert costs.update("adamw", 10) == costs.Cost(0, 10 * 4 * (4 + 3))
    assert costs.Cost(1, 2) + costs.Cost(10, 20) == costs.Cost(11, 22)
    assert costs.Cost(6, 8).floors(2.0, 16.0) == {"memory": 0.5, "products": 3.0}


def test_costs_of_whole_steps_by_hand(gpu_modules: Any) -> None:
    # Two images of 4 by 4 pixels in patches of 2 by 2: five tokens of width 3, seven classes.
    c = gpu_modules.task.Configuration(4, 2, 3, 1, 1, 6, 7, 2, repeats=1, heat=1)
    found = gpu_modules.costs.operations(c, 100, clips=True)
    assert {name: cost.bytes // 4 for name, cost in found.items()} == {
        "patchify": 2 * (2 * 3 * 16),
        "embed_positions": 2 * 4 * 3 + 2 * 5 * 3,
        "layer_norm": 2 * (2 * 5 * 3),
        "layer_norm_backward": 3 * (2 * 5 * 3),
        "pool_first_backward": 2 * (2 * 3 + 2 * 5 * 3),
        "softmax_cross_entropy": 2 * (2 * 7),
        "embed_positions_backward": 2 * 5 * 3,
        "zeroing gradients": 100,
        "global_norm": 100,
        "clip_by_norm_inplace": 200,
        "adamw_update_inplace": 700,
    }
    # Of 20 images the last block makes two tokens each, which are 32 rows and more.
    many = gpu_modules.costs.operations(replace(c, batch_size=20), 100, clips=True)
    assert many["layer_norm"].bytes == 4 * 2 * (20 * 2 * 3)
    assert many["layer_norm_backward"].bytes == 4 * 3 * (20 * 2 * 3)
    pooled = (20 * 3 + 20 * 2 * 3) + (20 * 3 + 20 * 5 * 3)
    assert many["pool_first_backward"].bytes == 4 * pooled
    within = gpu_modules.costs.operations(c, 100, clips=False)
    assert within["clip_by_norm_inplace"] == gpu_modules.costs.NOTHING


def test_parts_are_charged_what_is_theirs(gpu_modules: Any) -> None:
    now = [0.0]

    def mark() -> float:
        now[0] += 1.0  # between two marks there is a second
        return now[0]

    gpu = SimpleNamespace(mark=mark, between=lambda begun, ended: ended - begun)
    xp, tiny = strict_device.xp, gpu_modules.task.CONFIGURATIONS["tiny"]
    x = xp.asarray(np.ones((2, 3), "float32"))
    with gpu_modules.tape.taped(gpu, tiny, xp) as tape:
        with tape.section("a section"):
            ops.gelu(x, xp=xp)
            done = tape.begin("a part", gpu_modules.costs.Cost(3, 4))
            ops.gelu(x, xp=xp)
            done()
        tape.begin("a part", gpu_modules.costs.Cost(30, 40))()
    now[0] += 1000.0  # nobody's
    found = tape.read()
    assert {name: (one.calls, one.seconds) for name, one in found.items()} == {
        "gelu": (2, 2.0),
        "a part": (2, 3.0),
        "a section": (1, 3.0),
        "the rest": (0, 3.0),
    }
    assert tape.marks == 11  # each ends a lap of a second
    assert tape.costs == {
        "gelu": gpu_modules.costs.NOTHING,
        "a part": gpu_modules.costs.Cost(33, 44),
    }


def test_what_is_wrapped_is_there_again_afterwards(gpu_modules: Any) -> None:
    tape = gpu_modules.tape
    given = gpu_modules.task.CONFIGURATIONS["tiny"], strict_device.xp
    places = [(owner, name) for owner, name, _ in tape.parts(*given)]
    before = [getattr(*place) for place in places]
    gpu = SimpleNamespace(mark=lambda: 0.0, between=lambda begun, ended: 0.0)

    def fail() -> None:
        with tape.taped(gpu, *given):
            assert all(
                getattr(*place) is not one for place, one in zip(places, before, strict=True)
            )
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [getattr(*place) for place in places] == before
    from vitkit.ops._op import watch

    assert watch.get() is None


def test_a_gpu_notes_times_itself(gpu_modules: Any) -> None:
    noted: list[Any] = []
    cuda = SimpleNamespace(
        Event=lambda: SimpleNamespace(record=lambda: noted.append(len(noted))),
        get_elapsed_time=lambda begun, ended: 2500.0,
    )
    gpu = gpu_modules.device.Device(lambda: None, lambda: 0, lambda: None, cuda)
    begun, ended = gpu.mark(), gpu.mark()
    assert noted == [0, 1]
    assert gpu.between(begun, ended) == 2.5  # CUDA's are milliseconds


def found_by_hand() -> dict[str, Any]:
    """Return what a process would have found of a step of three parts."""
    return {
        "ceilings": {"product_flops": 1e12, "bytes_per_second": 1e9},
        "parts": {
            "products: fc1 dw": part(2, [0.004, 0.006, 0.005], flop=2_000_000_000, bytes=1_000_000),
            "norms: again": part(1, [0.004, 0.004, 0.004], bytes=2_000_000),
            "the rest": part(0, [0.002, 0.0005, 0.0005]),
        },
        "marks": {"count": 50, "seconds": 2e-6},
        "eager_seconds": [0.013, 0.012, 0.011],
        "graph_seconds": [0.010],
        "upload": {"seconds": 0.001, "bytes": 3_000_000, "bytes_per_second": 1e10},
        "numbers": {"plain": [2.0, 1.0], "parts": [2.0, 1.0005]},
    }


def part(calls: int, seconds: list[float], **cost: int) -> dict[str, Any]:
    return {"calls": calls, "seconds": seconds, "flop": 0, "bytes": 0, **cost}


def test_what_could_be_won_comes_first(gpu_modules: Any) -> None:
    summary = gpu_modules.gpu_profile.judged(found_by_hand())
    rows = summary["rows"]
    assert list(rows) == ["products: fc1 dw", "norms: again", "the rest"]
    assert rows["products: fc1 dw"] == {
        "calls": 2,
        "ms": 5.0,
        "floor_ms": 2.0,
        "times_floor": 2.5,
        "to_win_ms": 3.0,
        "bound": "products",
    }
    assert rows["norms: again"]["bound"] == "memory"
    assert rows["the rest"]["times_floor"] is None
    assert summary["groups"]["other operations"]["ms"] == 0.5
    assert summary["step"] == pytest.approx(
        {
            "parts_ms": 9.5,
            "marks_ms": 0.1,
            "floor_ms": 4.0,
            "eager_ms": 12.0,
            "eager_gap_ms": 2.6,
            "graph_ms": 10.0,
            "graph_gap_ms": 0.6,
            "upload_ms": 1.0,
            "upload_floor_ms": 0.3,
        }
    )
    assert summary["wrong"] == ""


def test_a_step_in_parts_that_computes_something_else_is_wrong(gpu_modules: Any) -> None:
    wrong = gpu_modules.gpu_profile.wrong
    assert wrong({"plain": [2.0, 1.0], "parts": [2.0, 1.002]}) == "norm 2.0e-03 apart"
    assert wrong({"plain": [2.0, 1.0], "parts": [2.1, 1.0]}) == "loss 5.0e-02 apart"
    assert wrong({"plain": [2.0, 1.0], "parts": [float("nan"), 1.0]}) == "loss nan apart"


def test_lines_for_a_table_of_everything(gpu_modules: Any) -> None:
    found = found_by_hand()
    del found["graph_seconds"]
    found |= {"graph": "no graph: work on NumPy cannot be recorded"}
    found["summary"] = gpu_modules.gpu_profile.judged(found)
    assert list(gpu_modules.gpu_profile.short(found)) == [
        "All parts: 9.5 ms; their floors: 4 ms, 42%. Noting times took 0.1 ms of it.",
        "Asked for part by part: 12 ms, so gaps of 2.6 ms.",
        "As one graph: no graph: work on NumPy cannot be recorded.",
        "Beside a step, which does not wait for it: 1 ms to bring its pixels, 0.3 ms from pinned "
        "memory at best.",
        "To win: products: fc1 dw 3 ms, norms: again 2 ms, the rest 0.5 ms.",
    ]
    assert list(gpu_modules.gpu_profile.short({"cut": ["Not measured."]})) == []


@pytest.mark.slow
@pytest.mark.skipif(
    bool(cuda_on_cpu.why_not()) or sys.platform == "win32",
    reason="kernels need a C++ compiler here, and a pipe that can be waited for",
)
@pytest.mark.parametrize("more", [[], ["--narrow"]], ids=["float32", "bfloat16"])
def test_a_step_on_the_stand_in(more: list[str], tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    program = str(BENCHMARKS / "gpu_profile.py")
    end = subprocess.run(
        [sys.executable, program, "--dry", "--gelu", "erf", *more, "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert end.returncode == 0, end.stderr + end.stdout
    found = json.loads(out.read_text())
    assert found["narrow"] is bool(more)
    assert ("its residual too" in end.stdout.splitlines()[0]) is bool(more)
    check_profile(found, end.stdout)
    again = [sys.executable, str(BENCHMARKS / "report.py"), str(out)]
    shown = subprocess.run(again, capture_output=True, text=True, timeout=60, check=True)
    assert shown.stdout.splitlines()[0] == end.stdout.splitlines()[0]
    assert len(shown.stdout.splitlines()) == len(end.stdout.splitlines())
    depth = found["configuration"]["depth"]
    names = set(found["parts"])
    assert {"GELU: forward", "GELU: backward"} <= names
    for weight in ("qkv", "proj", "fc1", "fc2"):
        for kind in ("forward", "dx", "dw"):
            assert found["parts"][f"products: {weight} {kind}"]["calls"] == depth


def check_profile(found: dict[str, Any], shown: str) -> None:
    """Check that each part was called as often as a step does, and cost what its shapes say."""
    c, parts, summary = found["configuration"], found["parts"], found["summary"]
    batch, depth = c["batch_size"], c["depth"]
    tokens = (c["image_size"] // c["patch_size"]) ** 2 + 1
    calls = {name: part["calls"] for name, part in parts.items()}
    twice = ("norms: forward", "norms: again", "norms: backward")
    assert {calls[name] for name in twice} == {2 * depth}
    assert calls["attention: forward"] == calls["attention: backward"] == depth
    for name in ("patchify", "layer_norm", "softmax_cross_entropy", "layer_norm_backward"):
        assert calls[name] == 1
    assert calls["adamw_update_inplace"] == calls["clip_by_norm_inplace"] == 2  # decayed, and not
    # All products are those of the model, but for the rows that the last block's MLP leaves out;
    # what is made again for attention is half of its forward.
    attention = 4 * batch * tokens**2 * c["dim"] * depth
    assert parts["attention: forward"]["flop"] == attention
    read = min(tokens, -(-32 // batch))
    left_out = batch * (tokens - read)
    expected = found["flop"] + attention // 2 - 3 * 4 * left_out * c["dim"] * c["mlp_dim"]
    assert sum(part["flop"] for part in parts.values()) == expected
    numbers, few = batch * tokens * c["dim"], batch * read * c["dim"]
    rows, flows = (2 * depth - 1) * numbers + few, 2 if found["narrow"] else 4
    assert parts["norms: forward"]["bytes"] == (flows + 2) * rows
    assert parts["norms: again"]["bytes"] == (flows + 2) * rows
    assert parts["norms: backward"]["bytes"] == (2 + 3 * flows) * rows
    assert parts["layer_norm"]["bytes"] == 8 * few
    added = 2 * flows * numbers  # what flows in, and out
    proj = 2 * (numbers + c["dim"] ** 2) + added
    assert parts["products: proj forward"]["bytes"] == depth * proj
    # Bits need no cast on their way to a product, and none to be summed.
    cast = "casts and sums: gradients to bf16, summed"
    assert (cast in parts) is not found["narrow"]
    if found["narrow"]:  # once before the blocks and once after them, there and back
        assert calls["narrowed"] == calls["widened"] == 2
    # Nothing takes time that has no part, and what costs nothing is none that computes much.
    assert summary["step"]["parts_ms"] == pytest.approx(
        1e3 * sum(part["seconds"][0] for part in parts.values()), rel=1e-4
    )
    rows = list(summary["rows"].values())
    assert [row["to_win_ms"] for row in rows] == sorted(
        (r["to_win_ms"] for r in rows), reverse=True
    )
    free = {name for name, part in parts.items() if not part["flop"] + part["bytes"]}
    assert free == {
        "attention_branch", "attention_branch_backward_inplace", "mlp_branch",
        "mlp_branch_backward_inplace", "linear", "linear_backward", "pool_first",
        "layers, between operations", "clipping", "optimizer", "the rest",
        *(("narrowed", "widened") if found["narrow"] else ()),  # whose kernels are told of
    }  # fmt: skip
    assert summary["wrong"] == ""
    assert summary["step"]["graph_ms"] > 0
    assert summary["step"]["upload_floor_ms"] > 0
    for name in parts:
        assert name in shown


def test_a_step_that_is_no_graph_still_has_its_parts(
    gpu_modules: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from contenders import gpu_vitkit_profile

    errors: list[Exception] = [
        gpu_modules.serve.Skip("work on cupy cannot be recorded"),
        RuntimeError("capturing\nand more"),
    ]

    def prepare(mode: str, order: Any) -> Any:
        assert mode == "bfloat16_graph"
        raise errors.pop(0)

    monkeypatch.setattr(gpu_vitkit_profile, "prepare", prepare)
    for name in ("ceilings", "_by_parts", "upload"):
        monkeypatch.setattr(gpu_vitkit_profile, name, lambda *given: {"parts": {}})
    order = gpu_modules.task.Order("train", "tiny", device="dry")
    reasons = []
    for _ in range(2):
        found = gpu_vitkit_profile.profile("bfloat16", order, tmp_path)
        assert "graph_seconds" not in found
        reasons.append(found["graph"])
    assert reasons == [
        "no graph: work on cupy cannot be recorded",
        "no graph: RuntimeError: capturing",
    ]
