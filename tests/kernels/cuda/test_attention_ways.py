"""Which way attention takes, and what is said where it is not the best; cuDNN is a stand-in."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_cudnn import FakeCudnn, FakeGpu

from vitkit.kernels.cuda import _cudnn, _device, _fused, _heads, _lt, _race
from vitkit.kernels.cuda._algorithms import Memory
from vitkit.testing import cuda_on_cpu, recording, strict_device

xp = strict_device.xp


class Clock(FakeGpu):
    """A GPU on which each kernel takes the time that is given; it knows what ran."""

    def __init__(self) -> None:
        super().__init__()
        self.times: dict[str, float | Exception] = {"cuDNN": 1.0, "vitkit's own kernel": 2.0}
        self.asked: list[str] = []  # of both directions
        self.timed = 0

    def title(self) -> str:
        return "A GPU of tests"

    def seconds(self, run: Callable[[], Any]) -> float:
        self.timed += 1
        self.asked.clear()
        run()
        forward, backward = self.asked
        name = forward.split(": ")[0]
        assert backward == f"{name}: backward"
        taken = self.times[name]
        if isinstance(taken, Exception):
            raise taken
        return taken


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Clock:
    made = Clock()
    monkeypatch.setattr(_cudnn, "GPU", made)
    monkeypatch.setattr(_race, "GPU", made)
    monkeypatch.setattr(_race, "FASTER", {})
    monkeypatch.setattr(_lt, "memory", lambda name: Memory(name, tmp_path))
    monkeypatch.delenv("VITKIT_AUTOTUNE", raising=False)
    for way in (_cudnn, _fused):
        for direction in ("attend", "attend_backward"):
            monkeypatch.setattr(way, direction, noted(way, direction, made))
    return made


def noted(way: Any, direction: str, gpu: Clock) -> Callable[..., Any]:
    """Return a direction of a kernel that also says that it was asked."""
    kernel = getattr(way, direction)

    def call(*arguments: Any) -> Any:
        gpu.asked.append(f"{way.NAME}: {'backward' if 'backward' in direction else 'forward'}")
        return kernel(*arguments)

    return call


def packed_array(batch: int, tokens: int, heads: int, width: int, dtype: str = "uint16") -> Any:
    """Return queries, keys and values of zeros."""
    return xp.zeros((batch, tokens, 3 * heads * width), dtype)


@pytest.fixture
def said(
    gpu: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> pytest.LogCaptureFixture:
    """Return the lines of a process that has said nothing of attention yet."""
    monkeypatch.setattr(_heads, "SAID", set())
    caplog.set_level(logging.INFO, "vitkit")
    return caplog


@pytest.mark.usefixtures("cudnn")
def test_what_serves_in_place_of_cudnn_is_said_once(
    gpu: Clock, said: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_cudnn, "why_none", lambda: "it is not installed")
    for tokens in (3, 5, 5):
        assert _heads._better(packed_array(1, tokens, 2, 32), 2, xp).NAME == "vitkit's own kernel"
    assert said.messages == [
        "Attention is by vitkit's own kernel, not by cuDNN: it is not installed."
    ]
    assert {record.levelname for record in said.records} == {"WARNING"}
    said.clear()
    assert _heads._better(packed_array(1, 5, 2, 40), 2, xp) is None
    assert _heads._better(packed_array(2, 5, 2, 40), 2, xp) is None
    assert said.messages == [
        "Attention is by matrix products and a softmax, not by vitkit's own kernel: "
        "it takes heads of width 32, 64, 80, 96, 128; got 40."
    ]


@pytest.mark.usefixtures("cudnn")
def test_heads_and_gpus_that_nothing_serves(
    gpu: Clock, said: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_products = "Attention is by matrix products and a softmax, not by "
    assert _heads._better(packed_array(1, 5, 2, 36), 2, xp) is None
    assert said.messages == [
        f"{by_products}cuDNN: it takes heads whose width is a multiple of 8, to 128; got 36.",
        f"{by_products}vitkit's own kernel: it takes heads of width 32, 64, 80, 96, 128; got 36.",
    ]
    said.clear()
    gpu.has = 75
    monkeypatch.setattr(_fused, "capability", lambda xp: 75)
    assert _heads._better(packed_array(1, 5, 2, 64), 2, xp) is None
    assert said.messages == [
        f"{by_products}cuDNN: it needs a GPU of compute capability 8.0, and this one has 7.5.",
        f"{by_products}vitkit's own kernel: it needs a GPU of compute capability 8.0; "
        "this one has 7.5.",
    ]


@pytest.mark.usefixtures("cudnn")
def test_nothing_is_said_where_the_best_serves_or_nothing_else_is_expected(
    said: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITKIT_AUTOTUNE", "off")
    assert _heads._better(packed_array(1, 5, 2, 64), 2, xp) is _cudnn
    assert _heads._better(packed_array(1, 5, 2, 64, "float32"), 2, xp) is None
    assert not [line for line in said.messages if line.startswith("Attention is by")]


@pytest.mark.usefixtures("cudnn")
def test_the_paths_that_are_shown(gpu: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_device._cublaslt, "why_none", lambda: "")
    monkeypatch.setattr(_device, "_version", lambda: "12.9.2")
    own = "vitkit's own kernel for heads of width 32, 64, 80, 96, 128"
    assert _device.paths(xp)["attention"].startswith(
        f"cuDNN, or {own} where timed faster; in float32"
    )
    gelu = "tanh GELU"
    assert _device.paths(xp)[gelu].endswith("where timed faster than a kernel after it")
    monkeypatch.setenv("VITKIT_AUTOTUNE", "off")
    assert "untimed" in _device.paths(xp)[gelu]
    assert _device.paths(xp)["attention"].startswith(f"cuDNN, or {own}; in float32")
    monkeypatch.setenv("VITKIT_DETERMINISTIC", "1")
    assert _device.paths(xp)[gelu] == "a kernel after the product (VITKIT_DETERMINISTIC=1)"
    monkeypatch.delenv("VITKIT_DETERMINISTIC")
    monkeypatch.setattr(_device._cublaslt, "why_none", lambda: "it is missing")
    monkeypatch.setattr(_cudnn, "why_none", lambda: "not there either")
    assert _device.paths(xp)[gelu] == "a kernel after the product (it is missing)"
    assert _device.paths(xp)["attention"].startswith(f"{own} (not there either); in float32")


def test_a_shape_that_cudnn_has_no_plan_for(
    cudnn: FakeCudnn, said: pytest.LogCaptureFixture
) -> None:
    cudnn.refusal = "no engine"
    for batch in (3, 3, 4):
        assert _heads._better(packed_array(batch, 5, 2, 64), 2, xp) is _fused
    assert said.messages == [
        "Attention is by vitkit's own kernel, not by cuDNN: it has no plan for "
        f"{batch} x 5 tokens, 2 heads of 64 (bfloat16) (cudnnGraphNotSupportedError: no engine)."
        for batch in (3, 4)
    ]


CUDNN, OWN = "cuDNN", "vitkit's own kernel"
BOTH = ["forward", "backward"]


@pytest.fixture
def raced(cudnn: FakeCudnn, gpu: Clock, said: pytest.LogCaptureFixture) -> Iterator[Clock]:
    """Have both kernels serve on the strict device."""
    if reason := cuda_on_cpu.why_not():
        pytest.skip(reason)
    with cuda_on_cpu.emulated():
        yield gpu


def step(seed: int = 0, dtype: str = "float16") -> list[np.ndarray]:
    """Return what both directions return of 2 x 5 tokens and 2 heads of 32."""
    rng = np.random.default_rng(seed)
    qkv, dy = (xp.asarray(rng.standard_normal((2, 5, n)).astype(dtype)) for n in (192, 64))
    found = _heads.attend(qkv, 2, "float16", xp)
    return [
        each.get() for each in (found[0], _heads.attend_backward(dy, qkv, *found, "float16", xp))
    ]


@pytest.mark.parametrize(("times", "name"), [((1.0, 2.0), CUDNN), ((2.0, 1.0), OWN)])
def test_the_faster_computes_both_directions(
    times: tuple[float, float],
    name: str,
    raced: Clock,
    cudnn: FakeCudnn,
    said: pytest.LogCaptureFixture,
) -> None:
    raced.times = dict(zip((CUDNN, OWN), times, strict=True))
    expected = step()
    assert raced.timed == 10  # each five times
    for _ in range(2):
        raced.asked.clear()
        assert all(map(np.array_equal, step(), expected))
        assert raced.asked == [f"{name}: {direction}" for direction in BOTH]
    assert raced.timed == 10
    assert bool(_cudnn.PAIRS) == (name == CUDNN)  # or its plan would keep memory
    assert len(cudnn.graphs) == 2  # planned once
    assert said.messages[-1] == f"Attention of (2, 5, 192), 2 heads, is fastest by {name}."
    assert not [record for record in said.records if record.levelname == "WARNING"]


def test_what_was_faster_is_remembered(raced: Clock) -> None:
    raced.times = {CUDNN: 2.0, OWN: 1.0}
    step()
    _race.FASTER.clear()  # as in another process
    raced.times, raced.timed = {CUDNN: 1.0, OWN: 2.0}, 0
    raced.asked.clear()
    step()
    assert raced.asked == [f"{OWN}: {direction}" for direction in BOTH]
    assert raced.timed == 0


@pytest.mark.parametrize("name", ["VITKIT_AUTOTUNE", "VITKIT_DETERMINISTIC"])
def test_without_timing_it_is_cudnn(
    name: str, raced: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    raced.times = {CUDNN: 2.0, OWN: 1.0}
    monkeypatch.setenv(name, "off" if name == "VITKIT_AUTOTUNE" else "1")
    step()
    assert raced.asked == [f"{CUDNN}: {direction}" for direction in BOTH]
    assert raced.timed == 0


def test_the_same_bits_also_after_the_own_kernel_won(
    raced: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    raced.times = {CUDNN: 2.0, OWN: 1.0}
    step()
    monkeypatch.setenv("VITKIT_DETERMINISTIC", "1")
    raced.asked.clear()
    step()
    assert raced.asked == [f"{CUDNN}: {direction}" for direction in BOTH]


def test_nothing_is_timed_while_a_stream_captures(raced: Clock) -> None:
    raced.times = {CUDNN: 2.0, OWN: 1.0}
    qkv = xp.zeros((2, 5, 192), "float16")
    assert _cudnn.serves(qkv, 2, xp)  # planned before
    _, way = recording.record(lambda: _heads._better(qkv, 2, xp))
    assert way is _cudnn
    assert not _race.FASTER
    assert not raced.timed


@pytest.mark.parametrize("refused", [CUDNN, OWN])
def test_what_cannot_run_does_not_win(
    refused: str, raced: Clock, said: pytest.LogCaptureFixture
) -> None:
    raced.times[refused] = RuntimeError("it does not compile\nhere")
    way = _heads._better(xp.zeros((2, 5, 192), "float16"), 2, xp)
    assert refused != way.NAME
    lines = [line for line in said.messages if "cannot be by" in line]
    assert lines == [f"Attention cannot be by {refused}: RuntimeError: it does not compile."]


def test_too_little_memory_to_time_them(raced: Clock, said: pytest.LogCaptureFixture) -> None:
    raced.times = {CUDNN: 1.0, OWN: MemoryError("out of memory")}
    step()
    assert raced.asked[-2:] == [f"{CUDNN}: {direction}" for direction in BOTH]
    assert said.messages[-1] == (
        "No memory to time attention, so by cuDNN: MemoryError: out of memory."
    )


def test_each_goes_on_from_what_the_other_keeps(raced: Clock) -> None:
    rng = np.random.default_rng(0)
    qkv, dy = (xp.asarray(rng.standard_normal((2, 5, n)).astype("float16")) for n in (192, 64))
    assert _cudnn.serves(qkv, 2, xp)
    gradients = [
        back.attend_backward(dy, qkv, *ahead.attend(qkv, 2, xp), xp).get().astype("float64")
        for ahead in (_cudnn, _fused)
        for back in (_cudnn, _fused)
    ]
    for found in gradients[1:]:
        assert np.abs(found - gradients[0]).max() < 2.0**-9 * np.abs(gradients[0]).max()
