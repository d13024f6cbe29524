"""A run that is resumed on the other backend, as a person does it: ``--backend``, ``--resume``.

Where no GPU works, ``cupy`` is the strict stand-in for it.
"""

from __future__ import annotations

import sys
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
from vitkit.config.run import RunConfig
from vitkit.config.runner import Run, run
from vitkit.testing import strict_device
from vitkit.train import TrainState, plots
from vitkit.train.callbacks import Callback
from vitkit.train.restore import find_checkpoint

Configure = Callable[..., RunConfig]
STEPS = 4  # an epoch


class Quiet(Callback):
    """A display that shows nothing and may stop the run at a step."""

    name = "display"

    def __init__(self, stop_at: int = 0) -> None:
        self.callback, self.stop_at = self, stop_at
        self.said: list[str] = []
        self.rows: list[dict[str, Any]] = []

    def on_step_end(self, state: TrainState, log: Any) -> None:
        if state.step == self.stop_at:
            state.stop = "told to"

    def row(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def say(self, line: str) -> None:
        self.said.append(line)

    warn = say

    def counting(self, what: str, total: int) -> Any:
        return nullcontext(lambda more: None)


@pytest.fixture(autouse=True)
def a_cupy(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have ``cupy`` name what computes as a GPU does, by references on both sides."""
    monkeypatch.setattr(plots, "available", lambda: False)
    if not cuda_status().usable:
        monkeypatch.setitem(sys.modules, "cupy", strict_device.xp)
        usable = CudaStatus(True, "ok", "a stand-in", "")
        monkeypatch.setattr(modules, "cuda_status", lambda: usable)
    with ops.reference_only():
        yield


def arrays_of(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    return files.load(find_checkpoint(folder, "last")).arrays


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("there", ["numpy", "cupy"])
def test_a_run_is_resumed_on_the_other_backend(
    there: str,
    precision: str,
    configure: Configure,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = {"numpy": "cupy", "cupy": "numpy"}[there]
    settings = [f"train.precision={precision}", "seed=3"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(configure(f"backend={here}", *settings), whole, Quiet())
    run(configure(f"backend={here}", *settings), parts, Quiet(stop_at=5))
    before = arrays_of(parts)
    assert before.keys() == {"model", "optim", "ema"} | (
        {"loss_scale"} if precision == "float16" else set()
    )
    begun: list[dict[str, dict[str, np.ndarray]]] = []
    finish = Run.finish

    def noted(self: Run) -> Any:
        held = {"model": self.parts.model, "optim": self.parts.optimizer, "ema": self.ema}
        held |= {"loss_scale": self.loss_scale} if self.loss_scale else {}
        begun.append({stem: part.state_dict() for stem, part in held.items()})
        assert (self.state.step, self.parts.model.xp.__name__ == "numpy") == (5, there == "numpy")
        return finish(self)

    monkeypatch.setattr(Run, "finish", noted)
    display = Quiet()
    summary = run(configure(f"backend={there}", *settings), parts, display, resume=True)
    for stem, arrays in before.items():
        for key, array in arrays.items():
            found = begun[0][stem][key]
            assert (found.dtype, found.tobytes()) == (array.dtype, array.tobytes()), key
    said = [line for line in display.said if line.startswith("The last digits may differ")]
    assert len(said) == 1
    assert "device was " in said[0]
    assert summary["steps"] == 2 * STEPS
    assert [row["step"] for row in display.rows][-1] == 2 * STEPS
    ends = arrays_of(parts), arrays_of(whole)
    assert ends[0].keys() == ends[1].keys()
    for key, array in ends[1]["model"].items():  # the same images and masks, another library
        np.testing.assert_allclose(ends[0]["model"][key], array, atol=0.03, err_msg=key)
    assert ends[0]["optim"]["step"] == ends[1]["optim"]["step"]


def test_a_loss_scale_is_kept_where_nothing_is_scaled(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run in float16 goes on where that is not served, and then where it was."""
    settings = ["train.precision=float16", "seed=3"]
    run(configure("backend=cupy", *settings), tmp_path, Quiet(stop_at=5))
    before = arrays_of(tmp_path)["loss_scale"]
    with monkeypatch.context() as context:
        context.setattr(kernels, "served_precision", lambda wanted, xp, dtype: "float32")
        run(configure("backend=numpy", *settings), tmp_path, Quiet(stop_at=7), resume=True)
    between = find_checkpoint(tmp_path, "last")
    assert TrainState.from_dict(files.load(between).documents["trainer"]["state"]).step == 7
    kept = arrays_of(tmp_path)["loss_scale"]
    assert {key: array.tobytes() for key, array in kept.items()} == {
        key: array.tobytes() for key, array in before.items()
    }
    run(configure("backend=cupy", *settings), tmp_path, Quiet(), resume=True)
    after = arrays_of(tmp_path)["loss_scale"]
    assert int(after["good_steps"]) == int(before["good_steps"]) + 1  # the eighth step's
