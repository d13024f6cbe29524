"""Which way attention takes, and what is said where it is not the best; cuDNN is a stand-in."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from fake_cudnn import FakeCudnn, FakeGpu

from vitkit.kernels.cuda import _cudnn, _device, _fused, _heads
from vitkit.testing import strict_device

xp = strict_device.xp


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    made = FakeGpu()
    monkeypatch.setattr(_cudnn, "GPU", made)
    return made


@pytest.fixture
def cudnn(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCudnn]:
    """Install the stand-in, with nothing planned yet."""
    made = FakeCudnn()
    monkeypatch.setitem(sys.modules, "cudnn", made)
    monkeypatch.setattr(_cudnn, "PAIRS", {})
    monkeypatch.setattr(_cudnn, "HANDLES", {})
    monkeypatch.delenv("VITKIT_DETERMINISTIC", raising=False)
    _cudnn._why_no_library.cache_clear()
    yield made
    _cudnn._why_no_library.cache_clear()


def packed_array(batch: int, tokens: int, heads: int, width: int, dtype: str = "uint16") -> Any:
    """Return queries, keys and values of zeros."""
    return xp.zeros((batch, tokens, 3 * heads * width), dtype)


@pytest.fixture
def said(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> pytest.LogCaptureFixture:
    """Return the lines of a process that has said nothing of attention yet."""
    monkeypatch.setattr(_heads, "SAID", set())
    caplog.set_level(logging.INFO, "vitkit")
    return caplog


@pytest.mark.usefixtures("cudnn")
def test_what_serves_in_place_of_cudnn_is_said_once(
    gpu: FakeGpu, said: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
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
    gpu: FakeGpu, said: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
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
    said: pytest.LogCaptureFixture,
) -> None:
    assert _heads._better(packed_array(1, 5, 2, 64), 2, xp) is _cudnn
    assert _heads._better(packed_array(1, 5, 2, 64, "float32"), 2, xp) is None
    assert not [line for line in said.messages if line.startswith("Attention is by")]


@pytest.mark.usefixtures("cudnn")
def test_the_paths_that_are_shown(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_device._cublaslt, "why_none", lambda: "")
    monkeypatch.setattr(_device, "_version", lambda: "12.9.2")
    own = "vitkit's own kernel for heads of width 32, 64, 80, 96, 128"
    assert _device.paths(xp)["attention"].startswith(f"cuDNN, or {own}; in float32")
    gelu = "tanh GELU"
    assert _device.paths(xp)[gelu].endswith("where timed faster than a kernel after it")
    monkeypatch.setenv("VITKIT_AUTOTUNE", "off")
    assert "untimed" in _device.paths(xp)[gelu]
    monkeypatch.setenv("VITKIT_DETERMINISTIC", "1")
    assert _device.paths(xp)[gelu] == "a kernel after the product (VITKIT_DETERMINISTIC=1)"
    monkeypatch.delenv("VITKIT_DETERMINISTIC")
    monkeypatch.setattr(_device._cublaslt, "why_none", lambda: "it is missing")
    monkeypatch.setattr(_cudnn, "why_none", lambda: "not there either")
    assert _device.paths(xp)[gelu] == "a kernel after the product (it is missing)"
    assert _device.paths(xp)["attention"].startswith(f"{own} (not there either); in float32")
