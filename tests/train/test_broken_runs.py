"""Runs that break: what they leave, what is said, and how they go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from breaking import (
    KINDS,
    STEPS,
    Breaks,
    MakeParts,
    assert_same_end,
    checkpoints,
    last,
    loss_that_breaks,
    notes,
)

import vitkit.checkpoint.files as files
from vitkit.errors import CheckpointError
from vitkit.signals import Terminated
from vitkit.train import TrainState
from vitkit.train.callbacks import Callback
from vitkit.train.restore import find_checkpoint


@pytest.mark.parametrize("at", [1, 2, STEPS, STEPS + 1, STEPS + 3, 2 * STEPS])
def test_an_error_before_the_update_leaves_the_step_before(
    at: int, make_parts: MakeParts, whole: Path
) -> None:
    parts = make_parts()
    with pytest.raises(ZeroDivisionError) as error:
        parts.fit(loss=loss_that_breaks(at))
    assert last(parts.folder) == f"step-{at - 1:08d}"
    path = parts.folder / "checkpoints" / last(parts.folder)
    found = "The last checkpoint is" if at == STEPS + 1 else f"All {at - 1} finished steps are in"
    assert notes(error) == [f"{found} {path}. Once this is put right: go on"]
    again = make_parts()
    again.resume()
    assert_same_end(again.folder, whole)


@pytest.mark.parametrize("average_last", [False, True])
@pytest.mark.parametrize("at", [1, 3, STEPS, STEPS + 2])
def test_a_step_whose_callback_breaks_is_seen_by_all_others(
    at: int, average_last: bool, make_parts: MakeParts, whole: Path
) -> None:
    parts = make_parts(Breaks("on_step_end", at), average_last=average_last)
    with pytest.raises(ZeroDivisionError):
        parts.fit()
    assert last(parts.folder) == f"step-{at:08d}" + "-open" * (at % STEPS == 0)
    again = make_parts()
    again.resume()
    assert_same_end(again.folder, whole)


@pytest.mark.parametrize("at", [1, 2])
def test_an_epoch_whose_end_breaks_is_ended_again(
    at: int, make_parts: MakeParts, whole: Path
) -> None:
    parts = make_parts(Breaks("on_epoch_end", at))
    with pytest.raises(ZeroDivisionError):
        parts.fit()
    assert last(parts.folder) == f"step-{at * STEPS:08d}-open"
    state = files.load_document(find_checkpoint(parts.folder, "last"), "trainer")["state"]
    assert (state["epoch"], state["position"]) == (at - 1, STEPS)
    again = make_parts()
    again.resume()
    assert_same_end(again.folder, whole)


class Diary(Callback):
    """Keeps a list of the epochs that have ended, and hands out the list itself."""

    name = "diary"

    def __init__(self) -> None:
        self.epochs: list[int] = []

    def on_epoch_end(self, state: TrainState) -> None:
        self.epochs.append(state.epoch)

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": self.epochs}

    def load_state_dict(self, values: dict[str, Any]) -> None:
        self.epochs = values["epochs"]


def test_no_callback_sees_the_end_of_an_epoch_twice(make_parts: MakeParts) -> None:
    parts = make_parts(Diary(), Breaks("on_epoch_end", 2))
    with pytest.raises(ZeroDivisionError):
        parts.fit()
    diary = Diary()
    make_parts(diary).resume()
    assert diary.epochs == [1, 2]


def test_an_epoch_that_has_ended_is_not_ended_again(make_parts: MakeParts) -> None:
    parts = make_parts()
    parts.saving.every = 9
    parts.saving.best.value = -1.0  # nothing is better, so nothing is written
    with pytest.raises(ZeroDivisionError):
        parts.fit(loss=loss_that_breaks(STEPS + 1))
    state = files.load_document(find_checkpoint(parts.folder, "last"), "trainer")["state"]
    assert (state["step"], state["epoch"], state["position"]) == (STEPS, 1, 0)


def test_a_run_that_breaks_at_its_end_has_been_saved(make_parts: MakeParts, whole: Path) -> None:
    parts = make_parts(Breaks("on_end"))
    with pytest.raises(ZeroDivisionError) as error:
        parts.fit()
    assert notes(error)[0].startswith("The last checkpoint is")
    assert_same_end(parts.folder, whole)


def test_a_run_that_breaks_at_its_start_can_be_resumed(make_parts: MakeParts, whole: Path) -> None:
    parts = make_parts(Breaks("on_start"))
    with pytest.raises(ZeroDivisionError):
        parts.fit()
    assert checkpoints(parts.folder) == ["step-00000000"]
    again = make_parts()
    again.resume()
    assert_same_end(again.folder, whole)


def test_half_an_update_never_replaces_a_whole_checkpoint(
    make_parts: MakeParts, whole: Path
) -> None:
    parts = make_parts()
    parts.optimizer.stumbles_at = STEPS + 3
    with pytest.raises(ZeroDivisionError) as error:
        parts.fit()
    assert last(parts.folder) == "step-00000007"
    assert checkpoints(parts.folder) == ["step-00000007", "step-00000009-partial"]
    place = parts.folder / "checkpoints"
    assert notes(error) == [
        f"{place}/step-00000009-partial is not whole. An update of the weights was half made. "
        f"The last checkpoint is {place}/step-00000007. Once this is put right: go on"
    ]
    kept = files.load(place / "step-00000009-partial")
    assert kept.arrays.keys() == KINDS
    assert kept.documents["trainer"]["lacks"] == ["An update of the weights was half made."]
    assert kept.documents["trainer"]["state"]["updating"] is True
    again = make_parts()
    again.resume()
    assert_same_end(again.folder, whole)
    assert checkpoints(again.folder)[-1] == "step-00000014"  # and what was kept apart is gone
    assert not any("partial" in name for name in checkpoints(again.folder))


def test_half_an_update_leaves_the_last_and_the_best(make_parts: MakeParts) -> None:
    class Worsens(Callback):
        def on_epoch_end(self, state: TrainState) -> None:
            state.metrics["val_loss"] = float(state.epoch)

    parts = make_parts(Worsens(), epochs=3)
    parts.optimizer.stumbles_at = 2 * STEPS + 3
    with pytest.raises(ZeroDivisionError):
        parts.fit()
    assert checkpoints(parts.folder) == ["step-00000007", "step-00000014", "step-00000016-partial"]
    for which, step in (("best", 7), ("last", 14)):
        assert files.load(find_checkpoint(parts.folder, which)).path.name == f"step-{step:08d}"


def test_half_an_update_is_better_than_nothing(make_parts: MakeParts) -> None:
    parts = make_parts()
    parts.optimizer.stumbles_at = 3
    with pytest.raises(ZeroDivisionError) as error:
        parts.fit()
    assert checkpoints(parts.folder) == [last(parts.folder)] == ["step-00000002-partial"]
    assert "is not whole" in notes(error)[0]
    again = make_parts()
    again.resume()
    assert last(again.folder) == "step-00000014"


def test_a_second_break_keeps_the_last_whole_checkpoint(make_parts: MakeParts) -> None:
    for at in (STEPS + 3, STEPS + 2):
        parts = make_parts()
        parts.optimizer.stumbles_at = at
        with pytest.raises(ZeroDivisionError):
            parts.resume() if (parts.folder / "last.json").exists() else parts.fit()
        assert last(parts.folder) == "step-00000007"
    assert checkpoints(parts.folder) == ["step-00000007", "step-00000008-partial"]


def test_that_saving_fails_does_not_hide_why_the_run_broke(
    make_parts: MakeParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise CheckpointError("Cannot write: no space left")

    monkeypatch.setattr(files, "save", full)
    with pytest.raises(ZeroDivisionError, match="no luck") as error:
        make_parts().fit(loss=loss_that_breaks(3))
    assert notes(error) == [
        "What the run had reached could not be saved: Cannot write: no space left"
    ]


def test_a_disk_that_is_full_is_not_asked_again(
    make_parts: MakeParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, save = [], files.save

    def full(path: Path, *args: Any) -> None:
        asked.append(path.name)
        if len(asked) > 1:
            raise CheckpointError("Cannot write: no space left")
        save(path, *args)

    monkeypatch.setattr(files, "save", full)
    parts = make_parts()
    with pytest.raises(CheckpointError, match="no space left") as error:
        parts.fit()
    assert asked == ["step-00000007", "step-00000014"]
    path = parts.folder / "checkpoints" / "step-00000007"
    assert notes(error) == [f"The last checkpoint is {path}. Once this is put right: go on"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Terminated()], ids=repr)
def test_who_is_in_a_hurry_does_not_wait_for_a_checkpoint(
    error: BaseException, make_parts: MakeParts
) -> None:
    parts = make_parts(Breaks("on_step_end", 3, error))
    with pytest.raises(type(error)):
        parts.fit()
    assert checkpoints(parts.folder) == []


def test_a_part_that_ends_the_program_is_no_hurry(make_parts: MakeParts) -> None:
    parts = make_parts(Breaks("on_epoch_end", 1, SystemExit(0)))
    with pytest.raises(SystemExit):
        parts.fit()
    assert last(parts.folder) == "step-00000007-open"


def test_numbers_that_are_not_finite_are_not_saved(make_parts: MakeParts) -> None:
    parts = make_parts(Breaks("on_step_end", STEPS + 2, FloatingPointError("not finite")))
    with pytest.raises(FloatingPointError) as error:
        parts.fit()
    assert checkpoints(parts.folder) == ["step-00000007"]
    assert "The last checkpoint is" in notes(error)[0]
    early = make_parts(Breaks("on_step_end", 2, FloatingPointError("not finite")), folder="early")
    with pytest.raises(FloatingPointError) as error:
        early.fit()
    assert (checkpoints(early.folder), notes(error)) == ([], [])


def test_a_callback_that_cannot_take_an_error_keeps_no_other_from_it(
    make_parts: MakeParts,
) -> None:
    class Worse(Callback):
        def on_error(self, state: TrainState, error: BaseException) -> None:
            raise OSError("even worse")

    parts = make_parts(Worse())
    with pytest.raises(ZeroDivisionError) as error:
        parts.fit(loss=loss_that_breaks(3))
    assert last(parts.folder) == "step-00000002"
    assert len(notes(error)) == 2
    assert notes(error)[1] == "Then OSError: even worse"
