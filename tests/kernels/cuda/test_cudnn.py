"""Attention by cuDNN: what it is told and given, against float64, and against planted faults.

No GPU is needed: a stand-in for the frontend computes what was described to it, on the strict
device.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from fake_cudnn import FakeCudnn, FakeGpu, low, wide

from vitkit import ops
from vitkit.kernels.cuda import _cudnn
from vitkit.testing import recording, strict_device

xp = strict_device.xp
DTYPES = ("uint16", "float16")
ROUNDING = {"uint16": 2.0**-8, "float16": 2.0**-11}
SHAPES = [
    (1, 1, 1, 8),
    (2, 5, 3, 8),
    (1, 65, 2, 32),
    (2, 33, 4, 80),
    (1, 197, 2, 64),
    (3, 17, 1, 128),
]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    made = FakeGpu()
    monkeypatch.setattr(_cudnn, "GPU", made)
    return made


def on_device(values: np.ndarray, gaps: bool) -> Any:
    """Bring an array over; with gaps, as every other number of a larger one."""
    if not gaps:
        return xp.asarray(values)
    spaced = np.zeros((*values.shape[:-1], 2 * values.shape[-1]), values.dtype)
    spaced[..., ::2] = values
    return xp.asarray(spaced)[..., ::2]


def error(found: Any, exact: np.ndarray, rounding: float) -> float:
    """Return the worst error in units of what rounding of results and statistics may do.

    A float32 logarithm of up to 16 is off by up to 2^-20, and so is every probability, relative.
    """
    assert found.shape == exact.shape
    with np.errstate(invalid="ignore"):
        allowed = rounding * np.abs(exact) + 2.0**-20 * np.abs(exact).max()
        errors = np.abs(wide(found.get()) - exact) / allowed
    return float(np.nan_to_num(errors, nan=np.inf).max())


def worst(
    module: Any, dtype: str, shape: tuple[int, ...], gaps: bool, rng: np.random.Generator
) -> float:
    """Return the worst error of both directions, after each kind of forward pass."""
    batch, tokens, heads, width = shape
    dim = heads * width
    qkv, dy = (low(rng.standard_normal((batch, tokens, n)), dtype) for n in (3 * dim, dim))
    given, gradient = on_device(qkv, gaps), on_device(dy, gaps)
    assert module.serves(given, heads, xp)
    y, largest, log_total = module.attend(given, heads, xp)
    assert y.dtype == dtype
    y64, largest64, log_total64 = ops.multi_head_attention.reference(wide(qkv), heads, xp=np)
    errors = [
        error(y, y64, ROUNDING[dtype]),
        error(largest, largest64 + log_total64, 2.0**-24),
        2.0**20 * float(np.abs(log_total.get()).max()),
    ]
    own = [xp.asarray(stats.astype("float32")) for stats in (largest64, log_total64)]
    for stats in ([largest, log_total], own):
        dqkv = module.attend_backward(gradient, given, y, *stats, xp)
        assert dqkv.dtype == dtype
        exact = ops.multi_head_attention_backward.reference(
            wide(dy), wide(qkv), wide(y.get()), largest64, log_total64, xp=np
        )
        errors.append(error(dqkv, exact, ROUNDING[dtype]))
    return max(errors)


@pytest.mark.usefixtures("cudnn")
@pytest.mark.parametrize("gaps", [False, True], ids=["plain", "gaps"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_values(dtype: str, shape: tuple[int, ...], gaps: bool, rng: np.random.Generator) -> None:
    assert worst(_cudnn, dtype, shape, gaps, rng) < 1.01


FAULTS = {
    "q, k and v as if not packed": ("_cudnn_plans", "row = 3 * shape.heads", "row = shape.heads"),
    "heads as if not packed": (
        "_cudnn_plans",
        "    row = shape.heads * shape.width\n    return [shape.tokens * row, shape.width, row, 1]",
        "    row = shape.heads * shape.width\n"
        "    return [shape.tokens * row, shape.tokens * shape.width, shape.width, 1]",
    ),
    "statistics by token": (
        "_cudnn_plans",
        "[shape.heads * shape.tokens, shape.tokens, 1, 1]",
        "[shape.heads * shape.tokens, 1, shape.heads, 1]",
    ),
    "a wrong scale": ("_cudnn_plans", "shape.width**-0.5", "1 / shape.width"),
    "no scale backward": ("_cudnn_plans", "        attn_scale=scale(shape),\n", ""),
    "no statistics": ("_cudnn_plans", "generate_stats=True", "generate_stats=False"),
    "gradients exchanged": ("_cudnn_plans", "(DQ, DK, DV), strict", "(DQ, DV, DK), strict"),
    "another dtype": ("_cudnn_plans", '"uint16": "BFLOAT16"', '"uint16": "HALF"'),
    "half of the statistics": (
        "_cudnn",
        "largest if after_own else largest + log_total",
        "largest",
    ),
    "y for dy": ("_cudnn", "DY: dy.data.ptr", "DY: y.data.ptr"),
    "keys for values": ("_cudnn", "index * step", "(2 * index % 3) * step"),
    "bytes for numbers": ("_cudnn", "len(uids) * array.itemsize", "len(uids)"),
    "gaps in qkv": (
        "_cudnn",
        "_shape(qkv, num_heads), aligned(qkv, xp)",
        "_shape(qkv, num_heads), qkv",
    ),
    "gaps in dy": (
        "_cudnn",
        "(aligned(array, xp) for array in (dy, qkv, y))",
        "(dy, aligned(qkv, xp), y)",
    ),
    "statistics twice": ("_cudnn", 'xp.zeros(stats.shape, "float32")', "stats"),
}


def planted(fault: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the module that calls cuDNN, with a fault in it or in what it plans by."""
    name, old, new = FAULTS[fault]
    text = Path(str(sys.modules[f"vitkit.kernels.cuda.{name}"].__file__)).read_text("utf-8")
    assert text.count(old) == 1, f"{name} does not hold {old!r} once"
    file = folder / f"{name}.py"
    file.write_text(text.replace(old, new), "utf-8")
    spec = importlib.util.spec_from_file_location(f"planted{name}", file)
    assert spec is not None
    assert spec.loader is not None
    changed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(changed)
    if name == "_cudnn_plans":
        monkeypatch.setattr(_cudnn, "_cudnn_plans", changed)
        return _cudnn
    monkeypatch.setattr(changed, "GPU", _cudnn.GPU)
    return changed


@pytest.mark.usefixtures("cudnn")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_noticed(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    module = planted(fault, tmp_path, monkeypatch)
    try:
        found = worst(module, "uint16", (2, 33, 4, 80), True, rng)
    except AssertionError:  # the stand-in, or `serves`, refuses
        found = math.inf
    assert found > 10


def packed_array(batch: int, tokens: int, heads: int, width: int, dtype: str = "uint16") -> Any:
    """Return queries, keys and values of zeros."""
    return xp.zeros((batch, tokens, 3 * heads * width), dtype)


def both(qkv: Any, heads: int) -> tuple[Any, ...]:
    """Run both directions as a model does; return all that they return."""
    assert _cudnn.serves(qkv, heads, xp)
    y, largest, log_total = _cudnn.attend(qkv, heads, xp)
    return y, largest, log_total, _cudnn.attend_backward(y, qkv, y, largest, log_total, xp)


def test_what_is_described(cudnn: FakeCudnn) -> None:
    assert _cudnn.serves(packed_array(4, 197, 12, 64), 12, xp)
    forward, backward = cudnn.graphs
    dim, rows = [4, 12, 197, 64], ([4, 12, 197, 1], [12 * 197, 197, 1, 1])
    packed = [197 * 3 * 768, 64, 3 * 768, 1]
    separate = [197 * 768, 64, 768, 1]
    for graph, names in ((forward, "q k v"), (backward, "q k v dq dk dv")):
        for name in names.split():
            tensor = graph.tensors[name]
            assert (tensor.dim, tensor.stride, tensor.data_type) == (dim, packed, "BFLOAT16")
            assert tensor.output == name.startswith("d")
    for tensor in (forward.tensors["y"], backward.tensors["y"], backward.tensors["dy"]):
        assert (tensor.dim, tensor.stride, tensor.data_type) == (dim, separate, "BFLOAT16")
    for tensor in (forward.tensors["stats"], backward.tensors["stats"]):
        assert (tensor.dim, tensor.stride, tensor.data_type) == (*rows, "FLOAT")
    for graph in (forward, backward):
        assert graph.node["attn_scale"] == 0.125
        assert graph.attributes["compute_data_type"] == "FLOAT"
        assert graph.attributes["intermediate_data_type"] == "FLOAT"
        assert graph.steps[0] == "validate"
        assert graph.steps[-1] == "check_support"
    assert backward.node["use_deterministic_algorithm"] is False
    assert not {"use_causal_mask", "dropout", "bias"} & {*forward.node, *backward.node}


def test_a_shape_is_planned_once(cudnn: FakeCudnn, gpu: FakeGpu) -> None:
    first, second = packed_array(2, 5, 2, 16), packed_array(2, 5, 2, 16)
    results = [both(qkv, 2) for qkv in (first, second, first)]
    assert len(cudnn.graphs) == 2
    assert len(cudnn.handles) == 1
    assert all(result[2] is results[0][2] for result in results)  # no zeros are made again
    for graph in cudnn.graphs:
        assert len({workspace for _, workspace, _, _ in graph.runs}) == 1
    assert cudnn.streams == [(cudnn.handles[0], 5)]  # nor told again
    gpu.current = 7
    both(first, 2)
    assert cudnn.streams == [(cudnn.handles[0], 5), (cudnn.handles[0], 7)]
    both(packed_array(2, 6, 2, 16), 2)
    both(packed_array(2, 5, 2, 16, "float16"), 2)
    assert len(cudnn.graphs) == 6
    assert len(cudnn.streams) == 2
    gpu.number = 1
    both(first, 2)
    assert len(cudnn.graphs) == 8
    assert len(cudnn.handles) == 2
    assert cudnn.streams[2:] == [(cudnn.handles[1], 7)]


def test_nothing_waits_for_the_device(cudnn: FakeCudnn) -> None:
    with strict_device.count_syncs() as syncs:
        both(packed_array(1, 5, 2, 16), 2)
    assert syncs == []
    assert [len(graph.runs) for graph in cudnn.graphs] == [1, 1]


@pytest.mark.usefixtures("cudnn")
def test_what_was_planned_can_be_recorded(rng: np.random.Generator) -> None:
    one, two = (low(rng.standard_normal((2, 9, 96)), "uint16") for _ in range(2))
    expected = [array.get() for array in both(xp.asarray(two), 2)]
    target = xp.asarray(one)
    recorded, results = recording.record(lambda: both(target, 2))
    assert not np.array_equal(results[3].get(), expected[3])
    target[...] = xp.asarray(two)
    recorded.replay()
    for found, wanted in zip(results, expected, strict=True):
        np.testing.assert_array_equal(found.get(), wanted)


def test_nothing_is_planned_while_a_stream_captures(cudnn: FakeCudnn) -> None:
    qkv = packed_array(1, 5, 2, 16)
    _, served = recording.record(lambda: _cudnn.serves(qkv, 2, xp))
    assert not served
    assert not cudnn.graphs
    assert _cudnn.serves(qkv, 2, xp)
    _, served = recording.record(lambda: _cudnn.serves(qkv, 2, xp))
    assert served


@pytest.mark.parametrize(
    ("qkv", "heads"),
    [
        (packed_array(1, 5, 2, 16, "float32"), 2),
        (packed_array(0, 5, 2, 16), 2),
        (packed_array(1, 5, 2, 12), 2),
        (packed_array(1, 5, 2, 136), 2),
        (packed_array(1, 5, 2, 16), 5),
    ],
    ids=["float32", "nothing", "heads of 12", "heads of 136", "5 heads of 32"],
)
def test_what_is_not_served(cudnn: FakeCudnn, qkv: Any, heads: int) -> None:
    assert not _cudnn.serves(qkv, heads, xp)
    assert not cudnn.graphs


def test_other_array_modules_and_gpus_are_not_served(cudnn: FakeCudnn, gpu: FakeGpu) -> None:
    assert not _cudnn.serves(np.zeros((1, 5, 96), "uint16"), 2, np)
    gpu.has = 75
    assert not _cudnn.serves(packed_array(1, 5, 2, 16), 2, xp)
    assert not cudnn.graphs


def test_a_shape_without_a_plan_is_asked_for_once(cudnn: FakeCudnn) -> None:
    cudnn.refusal = "no engine\nfor it"
    qkv = packed_array(3, 5, 2, 16)
    assert not any(_cudnn.serves(qkv, 2, xp) for _ in range(3))
    assert len(cudnn.graphs) == 1
    assert _cudnn.why_not(qkv, 2, xp) == (
        "it has no plan for 3 x 5 tokens, 2 heads of 16 (bfloat16) "
        "(cudnnGraphNotSupportedError: no engine)"
    )
    with pytest.raises(RuntimeError, match="cuDNN does not serve attention of 3 x 5 tokens"):
        _cudnn.attend(qkv, 2, xp)
    cudnn.refusal = ""
    assert not _cudnn.serves(qkv, 2, xp)
    assert _cudnn.serves(packed_array(4, 5, 2, 16), 2, xp)
    assert not _cudnn.why_not(packed_array(4, 5, 2, 16), 2, xp)


def test_the_first_plan_that_builds_is_run(cudnn: FakeCudnn, rng: np.random.Generator) -> None:
    cudnn.unbuildable = 1
    assert worst(_cudnn, "uint16", (1, 9, 2, 16), False, rng) < 1.01
    assert all(graph.built == {1} for graph in cudnn.graphs)
    cudnn.unbuildable = 2
    qkv = packed_array(1, 5, 2, 16)
    assert not _cudnn.serves(qkv, 2, xp)
    why = "no plan can be built (cudnnGraphNotSupportedError: plan 1 did not build)"
    assert why in _cudnn.why_not(qkv, 2, xp)


@pytest.mark.parametrize("asked", ["1", "0", None])
def test_gradients_of_the_same_bits(
    asked: str | None,
    cudnn: FakeCudnn,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "vitkit")
    if asked is not None:
        monkeypatch.setenv("VITKIT_DETERMINISTIC", asked)
    assert _cudnn.serves(packed_array(1, 5, 2, 16), 2, xp)
    assert cudnn.graphs[1].node["use_deterministic_algorithm"] is (asked == "1")
    (line,) = caplog.messages
    assert line.startswith(
        "cuDNN 9.28.0 serves attention of 1 x 5 tokens, 2 heads of 16 (bfloat16): gradients "
    )
    assert ("of the same bits each time" in line) == (asked == "1")


REASONS: dict[str, tuple[ModuleType | None, int, str]] = {
    "none needed": (FakeCudnn(), 80, ""),
    "the oldest frontend": (FakeCudnn("1.24.1", 91900), 90, ""),
    "no GPU": (FakeCudnn(), 0, "it needs a GPU of compute capability 8.0, and there is none"),
    "an old GPU": (
        FakeCudnn(),
        75,
        "it needs a GPU of compute capability 8.0, and this one has 7.5",
    ),
    "no frontend": (None, 90, "nvidia-cudnn-frontend is not installed: "),
    "an old frontend": (FakeCudnn("1.9.0"), 90, "nvidia-cudnn-frontend 1.9.0 is not one of "),
    "a new frontend": (FakeCudnn("1.29.1"), 90, "nvidia-cudnn-frontend 1.29.1 is not one of "),
    "a module of that name": (ModuleType("cudnn"), 90, "nvidia-cudnn-frontend 0 is not one of "),
    "no cuDNN": (FakeCudnn(backend=0), 90, "libcudnn cannot be loaded (RuntimeError: Unable to "),
    "an old cuDNN": (FakeCudnn(backend=91002), 90, "cuDNN 9.10.2 is older than 9.19.0: "),
}


@pytest.mark.usefixtures("cudnn")
@pytest.mark.parametrize("case", REASONS)
def test_why_none(case: str, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    module, gpu.has, expected = REASONS[case]
    if module is None:
        monkeypatch.delitem(sys.modules, "cudnn")
        monkeypatch.setattr(sys, "path", [])
    else:
        monkeypatch.setitem(sys.modules, "cudnn", module)
    found = _cudnn.why_none()
    assert found.startswith(expected)
    assert "\n" not in found
    assert bool(found) == bool(expected)
    assert ("pip install 'vitkit[cudnn12]'" in found) == (bool(found) and gpu.has >= 80)


@pytest.mark.usefixtures("cudnn")
@pytest.mark.parametrize(
    "text", ["raise OSError('no libcudart')", "import missing_part", "assert False, 'two of them'"]
)
def test_a_frontend_that_does_not_import(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cudnn.py").write_text(text, "utf-8")
    monkeypatch.delitem(sys.modules, "cudnn")
    monkeypatch.syspath_prepend(tmp_path)
    assert _cudnn.why_none().startswith("nvidia-cudnn-frontend does not import (")
