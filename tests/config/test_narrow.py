"""Runs of a model whose blocks pass each other bfloat16: their settings, folders and resumption."""

from __future__ import annotations

import logging
import sys
import tomllib
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vitkit.checkpoint.files as files
from vitkit import kernels, ops
from vitkit.backend import cuda_status, modules
from vitkit.backend.cuda import CudaStatus
from vitkit.config import RunConfig, load, preflight
from vitkit.config.build import build, load_data
from vitkit.config.prepare import further_problems
from vitkit.config.runner import run
from vitkit.errors import ConfigError
from vitkit.plugins import registries
from vitkit.testing import strict_device
from vitkit.train import plots
from vitkit.train.callbacks import Callback
from vitkit.train.restore import find_checkpoint, restore

Configure = Callable[..., RunConfig]
NARROW = ("model.residual_in_fp32=false", "train.precision=bfloat16")
LINE = "residual_in_fp32=False is for GPUs: what flows from block to block stays float32 here."


class Quiet(Callback):
    """A display that shows nothing and may stop the run at a step."""

    name = "display"

    def __init__(self, stop_at: int = 0) -> None:
        self.callback, self.stop_at = self, stop_at
        self.said: list[str] = []

    def on_step_end(self, state: Any, log: Any) -> None:
        if state.step == self.stop_at:
            state.stop = "told to"

    def row(self, row: dict[str, Any]) -> None:
        pass

    def say(self, line: str) -> None:
        self.said.append(line)

    warn = say

    def counting(self, what: str, total: int) -> Any:
        return nullcontext(lambda more: None)


@pytest.fixture
def a_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have ``cupy`` name what computes as a GPU does."""
    monkeypatch.setattr(plots, "available", lambda: False)
    if not cuda_status().usable:
        monkeypatch.setitem(sys.modules, "cupy", strict_device.xp)
        usable = CudaStatus(True, "ok", "a stand-in", "")
        monkeypatch.setattr(modules, "cuda_status", lambda: usable)


def weights_of(folder: Path) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = files.load(find_checkpoint(folder, "last")).arrays["model"]
    return arrays


@pytest.mark.parametrize("precision", ["float32", "tf32", "float16"])
def test_it_goes_with_bfloat16_alone(precision: str, configure: Configure) -> None:
    def found(*overrides: str) -> list[str]:
        return preflight(configure(*overrides), (1, 8, 8), 3, registries(), num_images=36)

    (line,) = found("model.residual_in_fp32=false", f"train.precision={precision}")
    assert line == (
        f"train.precision: got '{precision}', but model.residual_in_fp32 is false, which goes with "
        "'bfloat16'. Leave one of them out, or set both."
    )
    assert found(*NARROW) == []
    assert found("model.residual_in_fp32=true", f"train.precision={precision}") == []


@pytest.mark.parametrize("wrong", ["train.precision=float8", "model.residual_in_fp32=maybe"])
def test_nothing_is_said_of_what_hangs_on_a_wrong_setting(
    wrong: str, configure: Configure, tmp_path: Path
) -> None:
    configure()
    given = dict(each.split("=") for each in (*NARROW, wrong))
    overrides = [f"{name}={value}" for name, value in given.items()]
    place = {"data.path": str(tmp_path / "images.npz")}
    with pytest.raises(ConfigError) as raised:
        load([tmp_path / "run.toml"], overrides, place, environ={}, check=further_problems)
    (line,) = raised.value.problems
    assert line.startswith(wrong.partition("=")[0])


@pytest.mark.parametrize("value", [1, "false", None])
def test_it_is_true_or_false(value: Any) -> None:
    with pytest.raises(ValueError, match="residual_in_fp32"):
        RunConfig.model_validate({"model": {"residual_in_fp32": value}})


def test_it_reaches_the_model(configure: Configure) -> None:
    for overrides, wide in ((NARROW, False), ((), True)):
        config, known = configure(*overrides), registries()
        model = build(config, known, load_data(config, known)).model
        assert model.config.residual_in_fp32 is wide


@pytest.mark.usefixtures("a_cupy")
def test_a_run_on_a_gpu_is_written_restored_and_resumed(
    configure: Configure, tmp_path: Path
) -> None:
    whole, parts, wide = (tmp_path / name for name in ("whole", "parts", "wide"))
    given = "backend=cupy", *NARROW
    with ops.reference_only():
        run(configure(*given), whole, Quiet())
        run(configure("backend=cupy", NARROW[1]), wide, Quiet())
        run(configure(*given), parts, Quiet(stop_at=5))
        written = tomllib.loads((parts / "config.toml").read_text())
        assert written["model"]["residual_in_fp32"] is False
        again = configure("backend=cupy", file=parts / "config.toml")
        assert again.model.residual_in_fp32 is False
        run(again, parts, Quiet(), resume=True)
        for key, array in weights_of(whole).items():
            np.testing.assert_array_equal(weights_of(parts)[key], array)
        assert any(
            (weights_of(wide)[key] != array).any() for key, array in weights_of(whole).items()
        )
        model = restore(parts, backend="cupy").model
    assert (model.config.residual_in_fp32, model.precision) == (False, "bfloat16")


@pytest.mark.usefixtures("a_cupy", "kernels_on")
def test_its_checkpoint_opens_on_a_cpu(
    configure: Configure,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = tmp_path / "run"
    with ops.reference_only():
        run(configure("backend=cupy", *NARROW, "model.activation=silu"), folder, Quiet())
        images = np.random.default_rng(1).standard_normal((3, 1, 8, 8)).astype("float32")
        there = restore(folder, backend="cupy").model
        expected = np.asarray(there(there.xp.asarray(images)).get())
    caplog.clear()
    monkeypatch.setattr(kernels, "_why_not", lambda precision, xp: "it is an old one")
    with caplog.at_level(logging.WARNING, logger="vitkit"):
        found = restore(folder).model(images)
    assert caplog.messages == [
        "precision='bfloat16' is computed in float32 here: it is an old one."
    ]
    assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected)
    monkeypatch.setattr(kernels, "_why_not", lambda precision, xp: "")
    kernels._say_it_stays_wide.cache_clear()
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="vitkit"):
        model = restore(folder).model
    assert caplog.messages == [LINE]
    assert (model.precision, model.config.residual_in_fp32) == ("bfloat16", False)


@pytest.mark.usefixtures("a_cupy")
def test_a_run_may_go_on_in_another_precision(configure: Configure, tmp_path: Path) -> None:
    """As every run may: how it is computed is no part of what its state means."""
    with ops.reference_only():
        run(configure("backend=cupy", *NARROW), tmp_path / "run", Quiet(stop_at=3))
        for precision, fp32, stop_at in (("float32", "true", 5), ("bfloat16", "false", 0)):
            changed = f"train.precision={precision}", f"model.residual_in_fp32={fp32}"
            config = configure("backend=cupy", *changed, file=tmp_path / "run" / "config.toml")
            run(config, tmp_path / "run", Quiet(stop_at=stop_at), resume=True)
            documents = files.load(find_checkpoint(tmp_path / "run", "last")).documents
            assert documents["trainer"]["model"]["residual_in_fp32"] is (fp32 == "true")


def test_a_checkpoint_of_before_opens(configure: Configure, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(configure("backend=numpy"), folder, Quiet())
    options = files.load(find_checkpoint(folder, "last")).documents["trainer"]["model"]
    assert options.pop("residual_in_fp32") is True
    assert type(restore(folder).model.config).from_dict(options).residual_in_fp32 is True
