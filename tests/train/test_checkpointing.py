"""Checkpoints during a run, and models that come back from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vitkit.checkpoint.files as files
from vitkit.backend import ArrayModule, to_numpy
from vitkit.data import ArrayDataset, Loader
from vitkit.errors import CheckpointError, ConfigError
from vitkit.models import ViT
from vitkit.optim import EMA, AdamW
from vitkit.train import Preprocess, Trainer, TrainState, restore
from vitkit.train.callbacks import Average, Callback, Checkpointing
from vitkit.train.restore import documents, find_checkpoint

MakeData = Callable[..., ArrayDataset]
MakeModel = Callable[..., ViT]


class Plateau(Callback):
    """Plays validation: gives the values of a list."""

    def __init__(self, values: list[float]) -> None:
        self.values = iter(values)

    def on_epoch_end(self, state: TrainState) -> None:
        state.metrics = {"val_loss": next(self.values)}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@pytest.fixture
def saver(tmp_path: Path, make_model: MakeModel) -> Checkpointing:
    model = make_model()
    return Checkpointing(tmp_path, model, AdamW(1e-3).attach(model), [], {})


def end_epoch(saver: Checkpointing, epoch: int, **metrics: float) -> TrainState:
    state = TrainState(epochs=99, step=10 * epoch, epoch=epoch, metrics=metrics)
    saver.on_epoch_end(state)
    return state


def test_the_last_two_and_the_best_are_kept_and_no_others(
    tmp_path: Path, make_data: MakeData, make_model: MakeModel
) -> None:
    model, kept = make_model(), []
    optimizer = AdamW(1e-3).attach(model)

    class Look(Callback):
        def on_epoch_end(self, state: TrainState) -> None:
            kept.append([int(name[-2:]) for name in names(tmp_path)])

    saving = Checkpointing(tmp_path, model, optimizer, [], {})
    callbacks = [Plateau([3.0, 1.0, 2.0, float("nan"), 0.5]), saving, Look()]
    Trainer(model, optimizer, callbacks=callbacks).fit(Loader(make_data(20), 2), epochs=5)
    assert kept == [[10], [10, 20], [20, 30], [20, 30, 40], [20, 40, 50]]
    assert files.read_pointer(tmp_path / "last.json") == {
        **{"checkpoint": "step-00000050", "step": 50, "epoch": 5}
    }
    assert files.read_pointer(tmp_path / "best.json") == {
        **{"checkpoint": "step-00000050", "val_loss": 0.5}
    }


def test_a_stop_within_an_epoch_is_saved_once(
    tmp_path: Path, saver: Checkpointing, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver.on_end(TrainState(epochs=9, step=4, position=4))
    assert names(tmp_path) == ["step-00000004"]
    monkeypatch.setattr(files, "save", lambda *args: pytest.fail("saved twice"))
    saver.on_end(TrainState(epochs=9, step=4, position=4))


def test_a_finished_run_is_not_written_again_after_a_resume(
    tmp_path: Path, saver: Checkpointing, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = end_epoch(saver, 1, val_loss=1.0)
    kept = files.load(tmp_path / "checkpoints/step-00000010").documents["trainer"]["callbacks"]
    resumed = Checkpointing(tmp_path, saver.model, saver.optimizer, [], {})
    resumed.load_state_dict(kept["checkpointing"])
    monkeypatch.setattr(files, "save", lambda *args: pytest.fail("saved again"))
    resumed.on_end(state)


def test_the_best_outlives_a_resume(tmp_path: Path, saver: Checkpointing) -> None:
    end_epoch(saver, 1, val_loss=1.0)
    end_epoch(saver, 2, val_loss=2.0)
    kept = files.load(tmp_path / "checkpoints/step-00000020").documents["trainer"]["callbacks"]
    resumed = Checkpointing(tmp_path, saver.model, saver.optimizer, [], {})
    resumed.load_state_dict(kept["checkpointing"])
    end_epoch(resumed, 3, val_loss=1.5)
    assert names(tmp_path) == ["step-00000010", "step-00000020", "step-00000030"]
    assert find_checkpoint(tmp_path, "best").name == "step-00000010"


def test_a_best_pointer_that_a_killed_process_left_behind_is_put_right(
    tmp_path: Path, saver: Checkpointing, monkeypatch: pytest.MonkeyPatch
) -> None:
    end_epoch(saver, 1, val_loss=2.0)
    write = files.write_pointer

    def killed(path: Path, target: str, **details: Any) -> None:
        if path.name == "best.json":
            raise KeyboardInterrupt
        write(path, target, **details)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_pointer", killed)
        with pytest.raises(KeyboardInterrupt):
            end_epoch(saver, 2, val_loss=1.0)
    assert files.load(find_checkpoint(tmp_path, "best")).path.name == "step-00000010"
    last = files.load(find_checkpoint(tmp_path, "last"))
    resumed = Checkpointing(tmp_path, saver.model, saver.optimizer, [], {})
    resumed.load_state_dict(last.documents["trainer"]["callbacks"]["checkpointing"])
    end_epoch(resumed, 3, val_loss=3.0)
    assert names(tmp_path) == ["step-00000020", "step-00000030"]
    assert files.load(find_checkpoint(tmp_path, "best")).path.name == "step-00000020"


def test_a_failed_save_leaves_the_checkpoint_before(
    tmp_path: Path, saver: Checkpointing, monkeypatch: pytest.MonkeyPatch
) -> None:
    end_epoch(saver, 1, val_loss=2.0)

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "_sync", full)
        with pytest.raises(CheckpointError, match="No space left"):
            end_epoch(saver, 2, val_loss=1.0)
    for which in ("best", "last"):
        assert files.load(find_checkpoint(tmp_path, which)).path.name == "step-00000010"
    assert names(tmp_path) == ["step-00000010"]


def test_what_killed_processes_left_is_tidied_up(tmp_path: Path, saver: Checkpointing) -> None:
    for name in (".tmp-step-00000005-123", ".old-step-00000005-123", "step-00000005", "mine"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    end_epoch(saver, 1)
    assert names(tmp_path) == ["mine", "step-00000005", "step-00000010"]
    end_epoch(saver, 2)
    assert names(tmp_path) == ["mine", "step-00000010", "step-00000020"]


def test_checkpoints_come_every_few_epochs_and_with_every_best(
    tmp_path: Path, saver: Checkpointing
) -> None:
    saver.every = 3
    written = []
    for epoch, loss in enumerate([5.0, 6.0, 7.0, 8.0, 4.0], 1):
        end_epoch(saver, epoch, val_loss=loss)
        written.append(files.read_pointer(tmp_path / "last.json")["epoch"])
    assert written == [1, 1, 3, 3, 5]


@pytest.fixture
def trained(
    tmp_path: Path, make_data: MakeData, make_model: MakeModel
) -> tuple[Path, ViT, EMA, Preprocess]:
    """Return a run folder, its model as it is at the end, its average and preprocessing."""
    data, model = make_data(), make_model()
    optimizer, ema = AdamW(1e-2).attach(model), EMA(model, 0.9)
    preprocess = Preprocess.of(data)
    saving = Checkpointing(
        tmp_path / "run", model, optimizer, [], documents(model, preprocess, data.classes), ema=ema
    )
    callbacks = [Average(ema), Plateau([1.0, 2.0]), saving]
    Trainer(model, optimizer, callbacks=callbacks).fit(Loader(data, 4), epochs=2)
    return tmp_path / "run", model, ema, preprocess


def same(model: ViT, weights: dict[str, np.ndarray]) -> bool:
    found = model.state_dict()
    assert found.keys() == weights.keys()
    return all(np.array_equal(found[name], value) for name, value in weights.items())


def test_a_model_comes_back_from_its_run_folder(
    trained: tuple[Path, ViT, EMA, Preprocess], make_data: MakeData, xp: ArrayModule
) -> None:
    folder, model, ema, preprocess = trained
    raw = restore(folder, which="last", weights="raw", backend=xp)
    assert same(raw.model, model.state_dict())
    assert raw.model.config == model.config
    assert raw.model.xp is xp
    assert (raw.preprocess, raw.classes) == (preprocess, make_data().classes)
    images = preprocess(make_data().images(np.arange(3)), model)
    np.testing.assert_array_equal(to_numpy(raw.model(images)), to_numpy(model(images)))
    for weights in ("auto", "ema"):
        restored = restore(folder, which="last", weights=weights, backend=xp)
        assert same(restored.model, ema.weights())


def test_best_last_and_a_checkpoint_folder_can_be_named(
    trained: tuple[Path, ViT, EMA, Preprocess],
) -> None:
    folder, *_ = trained
    assert restore(folder).checkpoint.path.name == "step-00000007"
    assert restore(folder, which="last").checkpoint.path.name == "step-00000014"
    direct = restore(str(folder / "checkpoints" / "step-00000007"), which="last")
    assert direct.checkpoint.path.name == "step-00000007"


def test_a_run_without_validation_has_only_a_last(tmp_path: Path, saver: Checkpointing) -> None:
    end_epoch(saver, 1)
    assert not (tmp_path / "best.json").exists()
    assert find_checkpoint(tmp_path, "best").name == "step-00000010"


def test_a_checkpoint_without_a_precision_is_of_float32(
    tmp_path: Path, make_data: MakeData, make_model: MakeModel
) -> None:
    data, model = make_data(), make_model()
    trainer = documents(model, Preprocess.of(data), data.classes, precision="bfloat16")
    assert trainer.pop("precision") == {"asked": "bfloat16", "served": "float32"}
    path = tmp_path / "step-00000001"
    files.save(path, {"model": model.state_dict()}, {"trainer": trainer})
    assert restore(path).model.precision == "float32"


def test_weights_of_float64_come_back_as_float32(
    tmp_path: Path, make_data: MakeData, make_model: MakeModel
) -> None:
    data, model = make_data(), make_model(dtype="float64")
    preprocess = Preprocess.of(data)
    arrays = {"model": model.state_dict()}
    path = tmp_path / "step-00000001"
    files.save(path, arrays, {"trainer": documents(model, preprocess, data.classes)})
    restored = restore(path).model
    assert {str(p.value.dtype) for _, p in restored.named_parameters()} == {"float32"}
    for name, value in restored.state_dict().items():
        np.testing.assert_array_equal(value, arrays["model"][name].astype(np.float32))


def test_what_is_missing_is_said(
    trained: tuple[Path, ViT, EMA, Preprocess], tmp_path: Path, make_model: MakeModel
) -> None:
    folder, model, *_ = trained
    with pytest.raises(CheckpointError, match=r"There is no .*nowhere\. Name a run folder"):
        restore(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        restore(tmp_path)
    with pytest.raises(ConfigError, match="which: got 'bst', expected best or last; did you mean"):
        restore(folder, which="bst")
    with pytest.raises(ConfigError, match="weights: got 'x', expected auto, raw or ema"):
        restore(folder, weights="x")
    bare = tmp_path / "bare"
    files.save(bare, {"model": model.state_dict()}, {})
    with pytest.raises(CheckpointError, match=r"has no ema\.safetensors; it holds model"):
        restore(bare, weights="ema")
    with pytest.raises(CheckpointError, match="does not hold a vitkit model: 'trainer' is missing"):
        restore(bare)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("preprocess"), "'preprocess' is missing"),
        (lambda t: t["model"].update(num_heads=3), "heads do not divide"),
        (lambda t: t["model"].update(dim=32), "shape"),
        (lambda t: t["model"].update(depth="2"), "depth"),
        (lambda t: t.update(model=None), "does not hold a vitkit model"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(
    change: Callable[[dict[str, Any]], Any],
    message: str,
    trained: tuple[Path, ViT, EMA, Preprocess],
    tmp_path: Path,
) -> None:
    whole = files.load(find_checkpoint(trained[0]))
    trainer = json.loads(json.dumps(whole.documents["trainer"]))
    change(trainer)
    files.save(tmp_path / "other", whole.arrays, {"trainer": trainer})
    with pytest.raises(CheckpointError, match=message):
        restore(tmp_path / "other")


def test_a_pointer_to_nothing_is_refused(trained: tuple[Path, ViT, EMA, Preprocess]) -> None:
    files.write_pointer(trained[0] / "best.json", "step-00000099")
    with pytest.raises(CheckpointError, match=r"step-00000099.manifest\.json: there is no such"):
        restore(trained[0])
