"""States that a checkpoint cannot hold: whose they are is said, and no whole checkpoint is lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from breaking import KINDS, STEPS, Keeps, MakeParts, assert_same_end, checkpoints, last, notes

import vitkit.checkpoint.files as files
from vitkit.errors import CheckpointError
from vitkit.train import TrainState
from vitkit.train.callbacks import Callback
from vitkit.train.restore import find_checkpoint

UNKEPT: dict[str, tuple[Callable[[], Any], str]] = {
    "set": (lambda: {"seen": {1}}, "returned an object of type set at 'seen'; expected None, true"),
    "NumPy": (lambda: {"a": [np.float32(1)]}, r"an object of type numpy\.float32 at 'a\[0\]'"),
    "key": (lambda: {"a": {1: 2}}, "the key 1 of type int at 'a'"),
    "raises": (lambda: 1 / 0, "raised ZeroDivisionError: division by zero"),
}


@pytest.mark.parametrize("kind", UNKEPT)
def test_a_callback_whose_state_cannot_be_kept_is_named(kind: str, make_parts: MakeParts) -> None:
    state, message = UNKEPT[kind]
    parts = make_parts(Keeps(state))
    with pytest.raises(CheckpointError, match=f"callback 'keeps' .Keeps. cannot be.*{message}"):
        parts.fit()
    assert last(parts.folder) == "step-00000007-partial"  # since there is no other
    found = files.load(find_checkpoint(parts.folder)).documents["trainer"]
    assert found["callbacks"].keys() == {"recorder", "early_stopping", "checkpointing"}
    again = make_parts(Keeps(dict))
    again.resume()
    assert last(again.folder) == "step-00000014"


@pytest.mark.parametrize("kind", UNKEPT)
def test_the_checkpoint_before_a_state_that_cannot_be_kept_stays(
    kind: str, make_parts: MakeParts, whole: Path
) -> None:
    state, _ = UNKEPT[kind]
    parts = make_parts(Keeps(lambda: state() if parts.optimizer.steps > STEPS else {}))
    with pytest.raises(CheckpointError) as error:
        parts.fit()
    assert last(parts.folder) == "step-00000007"
    assert files.load(find_checkpoint(parts.folder, "last")).arrays.keys() == KINDS
    assert checkpoints(parts.folder) == ["step-00000007", "step-00000014-partial"]
    assert "step-00000014-partial is not whole. The state of callback 'keeps'" in notes(error)[0]
    again = make_parts()
    again.resume()
    assert_same_end(again.folder, whole)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (lambda: {"step": np.asarray(1), "m": np.array([None])}, "dtype object at 'm'; expected a"),
        (lambda: [1], "returned an object of type list"),
        (lambda: 1 / 0, "raised ZeroDivisionError"),
    ],
)
def test_an_optimizer_whose_state_cannot_be_kept_is_named(
    state: Callable[[], Any], message: str, make_parts: MakeParts
) -> None:
    parts = make_parts()
    parts.optimizer.state_dict = state  # type: ignore[method-assign]
    with pytest.raises(CheckpointError, match=f"optimizer Clumsy cannot be saved: .*{message}"):
        parts.fit()
    found = files.load(find_checkpoint(parts.folder))
    assert (found.path.name, found.arrays.keys()) == ("step-00000007-partial", {"model", "ema"})


def test_metrics_that_cannot_be_kept_are_named(make_parts: MakeParts) -> None:
    class Measures(Callback):
        def on_epoch_end(self, state: TrainState) -> None:
            state.metrics["score"] = np.float32(1)  # type: ignore[assignment]

    parts = make_parts(Measures())
    message = r"state\.metrics cannot be saved: got an object of type numpy\.float32 at 'score'"
    with pytest.raises(CheckpointError, match=message):
        parts.fit()
    assert checkpoints(parts.folder) == ["step-00000007-open"]  # as it was before the epoch's end


def test_a_model_that_cannot_be_saved_leaves_no_checkpoint(make_parts: MakeParts) -> None:
    parts = make_parts()
    parts.model.state_dict = lambda: 1 / 0  # type: ignore[assignment, method-assign, return-value]
    with pytest.raises(CheckpointError, match="The state of model ViT cannot be saved") as error:
        parts.fit()
    assert checkpoints(parts.folder) == []
    assert notes(error)[0].startswith("What the run had reached could not be saved: The state of")
