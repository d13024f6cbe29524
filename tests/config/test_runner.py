"""A whole run: its folder, its end, and that a resumed run is the undisturbed one, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

import vitkit.checkpoint.files as files
import vitkit.config.runner as runner
from vitkit import kernels, ops
from vitkit._version import __version__
from vitkit.backend.cuda import CudaStatus
from vitkit.config.load import load
from vitkit.config.prepare import further_problems
from vitkit.config.run import RunConfig
from vitkit.config.runner import folder_name, run
from vitkit.data.npz import npz
from vitkit.errors import CheckpointError, ConfigError, DataError
from vitkit.kernels import served_precision
from vitkit.plugins import hookimpl
from vitkit.train import TrainState, environment, plots
from vitkit.train.callbacks import Callback
from vitkit.train.restore import find_checkpoint, restore


class Silent(Callback):
    """A display that shows nothing, keeps what it is told, and can stop the run at a step."""

    name = "display"

    def __init__(self, stop_at: int = 0, reason: str = "told to") -> None:
        self.callback = self
        self.stop_at, self.reason = stop_at, reason
        self.said: list[str] = []
        self.counted: dict[str, int] = {}

    def on_step_end(self, state: TrainState, log: Any) -> None:
        if state.step == self.stop_at:
            state.stop = self.reason

    def row(self, row: dict[str, Any]) -> None:
        pass

    def say(self, line: str) -> None:
        self.said.append(line)

    def warn(self, line: str) -> None:
        self.say(line)

    @contextmanager
    def counting(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        def count(more: int) -> None:
            self.counted[what] = self.counted.get(what, 0) + more

        yield count


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes ten times as long as these runs."""
    monkeypatch.setattr(plots, "available", lambda: False)


def arrays_of(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    return files.load(find_checkpoint(folder, "last")).arrays


def assert_same_arrays(folder: Path, other: Path, *more: str) -> None:
    found, expected = arrays_of(folder), arrays_of(other)
    assert found.keys() == expected.keys() == {"model", "optim", "ema", *more}
    for stem, arrays in expected.items():
        assert found[stem].keys() == arrays.keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[stem][name], array, err_msg=f"{stem} {name}")


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a run without what depends on the clock."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [{k: v for k, v in r.items() if k not in ("seconds", "images_per_second")} for r in rows]


def test_a_run_leaves_everything_in_its_folder(
    tmp_path: Path, configure: Callable[..., RunConfig]
) -> None:
    folder, display = tmp_path / "runs" / "a", Silent()
    summary = run(configure(), folder, display)
    assert {path.name for path in folder.iterdir() if not path.name.startswith(".")} == {
        *("config.toml", "env.json", "metrics.jsonl", "summary.json", "log.txt"),
        *("checkpoints", "last.json", "best.json"),
    }
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert summary.keys() >= {
        *("dataset", "model", "parameters", "backend", "seed", "epochs", "seconds"),
        *("train_loss", "val_accuracy", "test_accuracy"),
    }
    assert (summary["dataset"], summary["model"], summary["seed"]) == ("npz", "Ti/4", 0)
    assert (summary["epochs"], summary["steps"], summary["stopped"]) == (2, 8, None)
    assert display.counted == {"val": 9, "test": 9}
    rows = rows_of(folder)
    assert [(row["event"], row["step"]) for row in rows] == [
        *(("step", 2), ("step", 4), ("epoch", 4), ("step", 6), ("step", 8), ("epoch", 8)),
    ]
    assert summary["train_loss"] == rows[-1]["train_loss"]
    assert json.loads((folder / "env.json").read_text())["packages"]["numpy"] == np.__version__
    log = (folder / "log.txt").read_text().splitlines()
    assert log[0] == display.said[0]
    assert sum("val acc" in line for line in log) == 2
    stored = load([folder / "config.toml"], environ={})
    assert (stored.model.num_classes, stored.model.in_channels, stored.train.lr) == (3, 1, 0.01)


@pytest.mark.parametrize("at", range(1, 9))
def test_a_run_resumed_at_any_step_is_the_undisturbed_one(
    at: int, tmp_path: Path, configure: Callable[..., RunConfig]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    expected = run(configure(), whole, Silent())
    first = run(configure(), parts, Silent(stop_at=at))
    assert (first["stopped"], first["steps"]) == ("told to", at)
    config = configure(file=parts / "config.toml")
    found = run(config, parts, Silent(), resume=True)
    assert_same_arrays(parts, whole)
    assert rows_of(parts) == rows_of(whole)
    assert {**found, "seconds": 0} == {**expected, "seconds": 0}


def test_a_finished_run_resumed_is_left_as_it_was(
    tmp_path: Path, configure: Callable[..., RunConfig]
) -> None:
    folder = tmp_path / "run"
    first = run(configure(), folder, Silent())
    before = {
        path: path.stat().st_mtime_ns for path in folder.glob("checkpoints/*/*") if path.is_file()
    }
    again = run(configure(file=folder / "config.toml"), folder, Silent(), resume=True)
    assert again == first
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_more_epochs_can_be_asked_of_a_finished_run(
    tmp_path: Path, configure: Callable[..., RunConfig]
) -> None:
    folder = tmp_path / "run"
    run(configure(), folder, Silent())
    more = configure("train.epochs=3", file=folder / "config.toml")
    assert run(more, folder, Silent(), resume=True)["epochs"] == 3
    assert [row["epoch"] for row in rows_of(folder) if row["event"] == "epoch"] == [1, 2, 3]


@pytest.mark.parametrize(
    "changed",
    [
        *("seed=1", "train.batch_size=8", "train.grad_accum=1", "model.dim=32", "train.mode=max"),
        *('optimizer="lion"', "data.val_fraction=0.5", 'train.ema_decay="none"', "data.augment=[]"),
    ],
)
def test_a_resumed_run_cannot_change_what_its_state_means(
    changed: str, tmp_path: Path, configure: Callable[..., RunConfig]
) -> None:
    folder = tmp_path / "run"
    run(configure(), folder, Silent(stop_at=3))
    before = (folder / "config.toml").read_text()
    other = ("train.monitor=val_accuracy",) if changed == "train.mode=max" else ()
    config = configure(changed, *other, file=folder / "config.toml")
    with pytest.raises(ConfigError) as raised:
        run(config, folder, Silent(), resume=True)
    setting = changed.partition("=")[0]
    assert any(line.startswith(f"{setting}: got") for line in raised.value.problems)
    assert (folder / "config.toml").read_text() == before


def test_the_precision_of_a_run_is_kept(
    tmp_path: Path, configure: Callable[..., RunConfig]
) -> None:
    folder, asked = tmp_path / "run", "train.precision=bfloat16"
    run(configure(asked), folder, Silent(stop_at=3))
    served = served_precision("bfloat16", np, "float32")
    recorded = {"asked": "bfloat16", "served": served}
    assert json.loads((folder / "env.json").read_text())["precision"] == recorded
    checkpoint = files.load(find_checkpoint(folder, "last"))
    assert checkpoint.documents["trainer"]["precision"] == recorded
    assert restore(folder).model.precision == served
    config = configure(file=folder / "config.toml")
    assert config.train.precision == "bfloat16"
    display = Silent()
    run(config, folder, display, resume=True)
    assert (", products of bfloat16; " in display.said[0]) is (served == "bfloat16")
    run(configure(asked), tmp_path / "whole", Silent())
    assert_same_arrays(folder, tmp_path / "whole")


@pytest.mark.skipif(bool(kernels.why_none(np)), reason="bfloat16 is then computed everywhere")
def test_a_machine_without_bfloat16_computes_the_run_in_float32(
    tmp_path: Path,
    configure: Callable[..., RunConfig],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = tmp_path / "run"
    monkeypatch.setattr(kernels, "_why_not", lambda precision, xp: "")
    run(configure("train.precision=bfloat16", "backend=numpy"), folder, Silent())
    assert restore(folder).model.precision == "bfloat16"
    assert caplog.messages == []
    monkeypatch.setattr(kernels, "_why_not", lambda precision, xp: "it is an old one")
    assert restore(folder).model.precision == "float32"
    assert caplog.messages == [
        "precision='bfloat16' is computed in float32 here: it is an old one."
    ]


def test_a_run_in_float16_is_resumed_with_its_loss_scale(
    tmp_path: Path, configure: Callable[..., RunConfig]
) -> None:
    whole, parts, display = tmp_path / "whole", tmp_path / "parts", Silent()
    asked = ("train.precision=float16", "model.dropout=0.0", "backend=numpy")
    with ops.reference_only():  # no kernel for CPUs serves it
        run(configure(*asked), whole, display)
        run(configure(*asked), parts, Silent(stop_at=3))
        stopped = arrays_of(parts)["loss_scale"]
        assert (stopped["scale"], stopped["good_steps"], stopped["skipped"]) == (65536, 3, 0)
        run(configure(file=parts / "config.toml"), parts, Silent(), resume=True)
    assert ", products of float16; " in display.said[0]
    assert arrays_of(parts)["loss_scale"]["good_steps"] == 8
    assert_same_arrays(parts, whole, "loss_scale")
    assert rows_of(parts) == rows_of(whole)


def test_a_run_may_change_its_precision_when_resumed(
    tmp_path: Path, configure: Callable[..., RunConfig]
) -> None:
    folder, asked = tmp_path / "run", ("model.dropout=0.0", "backend=numpy")
    for precision, stop_at, kept in (("float32", 2, 0), ("float16", 5, 3), ("float32", 7, 0)):
        options = [*asked, f"train.precision={precision}"]
        file = folder / "config.toml" if folder.exists() else None
        with ops.reference_only():
            config = configure(*options, file=file)
            run(config, folder, Silent(stop_at=stop_at), resume=file is not None)
        scale = arrays_of(folder).get("loss_scale", {"good_steps": 0})
        assert scale["good_steps"] == kept


def test_a_profile_is_written_and_shown(
    tmp_path: Path, configure: Callable[..., RunConfig]
) -> None:
    plain, folder, display = tmp_path / "plain", tmp_path / "run", Silent()
    run(configure(), plain, Silent())
    run(configure(), folder, display, profile_steps=3)
    found = json.loads((folder / "profile.json").read_text())
    assert found["steps"] == 3
    shown = [line for line in display.said if line.startswith("one step of 3 ")]
    assert len(shown) == 1
    assert shown[0] in (folder / "log.txt").read_text()
    assert not (plain / "profile.json").exists()
    assert_same_arrays(folder, plain)


@pytest.mark.parametrize("workers", [1, 4])
def test_the_number_of_workers_changes_nothing(
    workers: int, tmp_path: Path, configure: Callable[..., RunConfig]
) -> None:
    run(configure(), tmp_path / "a", Silent())
    run(configure(f"data.num_workers={workers}"), tmp_path / "b", Silent())
    assert_same_arrays(tmp_path / "b", tmp_path / "a")


def test_neither_logging_nor_validating_changes_the_weights(
    tmp_path: Path, configure: Callable[..., RunConfig]
) -> None:
    run(configure(), tmp_path / "a", Silent())
    run(configure("train.log_every=1", "train.eval_every=2"), tmp_path / "b", Silent())
    assert_same_arrays(tmp_path / "b", tmp_path / "a")


def test_a_run_without_validation_can_watch_its_training_loss(
    tmp_path: Path, configure: Callable[..., RunConfig]
) -> None:
    folder = tmp_path / "run"
    config = configure("data.val_fraction=0", "train.monitor=train_loss", "train.patience=1")
    summary = run(config, folder, Silent())
    assert (summary["val_accuracy"], summary["epochs"]) == (None, 2)
    assert summary["test_accuracy"] is not None
    losses = [row["train_loss"] for row in rows_of(folder) if row["event"] == "epoch"]
    best = files.read_pointer(folder / "best.json")
    assert best["train_loss"] == min(losses)


@pytest.mark.parametrize("reason", ["interrupted", "terminated"])
def test_an_interrupted_run_ends_without_a_final_evaluation(
    reason: str, tmp_path: Path, configure: Callable[..., RunConfig]
) -> None:
    display = Silent(stop_at=3, reason=reason)
    summary = run(configure(), tmp_path / "run", display)
    assert display.counted == {}
    assert (summary["stopped"], summary["test_accuracy"]) == (reason, None)
    assert find_checkpoint(tmp_path / "run", "last").name == "step-00000003"


def test_a_run_stopped_by_the_clock_is_evaluated(
    tmp_path: Path, configure: Callable[..., RunConfig]
) -> None:
    summary = run(configure("train.max_time=1e-9"), tmp_path / "run", Silent())
    assert summary["stopped"].startswith("time limit")
    assert (summary["steps"], summary["train_loss"]) == (1, None)
    assert summary["test_accuracy"] is not None


def test_every_problem_is_named_and_nothing_is_written(
    tmp_path: Path, configure: Callable[..., RunConfig]
) -> None:
    folder = tmp_path / "runs" / "run"
    config = configure("model.num_heads=3", "train.lr=99", "backend=cuda", "train.batch_size=99")
    with pytest.raises(ConfigError) as raised:
        run(config, folder, Silent())
    named = {problem.partition(":")[0] for problem in raised.value.problems}
    assert named == {"model.num_heads", "train.lr", "backend", "train.batch_size"}
    config = configure("data.name=mnist", "train.lr=99")
    with pytest.raises(ConfigError, match=r"train\.lr"):
        run(config, folder, Silent())
    with pytest.raises(DataError):
        run(configure("data.name=mnist"), folder, Silent())
    assert not folder.parent.exists()


def further(configure: Callable[..., RunConfig], *overrides: str) -> list[str]:
    """Return what is wrong where ``train.epochs`` and others may be left out."""
    try:
        place = {"data.path": configure().data.path}
        load([Path(str(place["data.path"])).parent / "run.toml"], overrides, place, environ={},
             check=further_problems)  # fmt: skip
    except ConfigError as error:
        return [problem.partition(":")[0] for problem in error.problems]
    return []


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["train.epochs=0", "model.num_heads=5", "optimizer=zzz", "train.batch_size=99"],
         ["train.epochs", "model.num_heads", "train.batch_size", "optimizer"]),
        (["train.epochs=0", "data.name=digitz"], ["train.epochs", "data.name"]),
        (["train.epochs=0", "data.name=digits", "train.lr=99"],  # which has no path
         ["train.epochs", "train.lr", "data.path"]),
        (["train.epochs=0", "data.name=mnist", "train.lr=99"], ["train.epochs", "train.lr"]),
        # What hangs on a setting that is wrong itself is not judged.
        (["train.monitor=val_acc", "train.mode=max"], ["train.monitor"]),
        (["train.epochs=0", "train.warmup_epochs=200"], ["train.epochs"]),
        (["model.dims=64", "model.num_heads=5"], ["model.dims"]),
        (["train=3", "data.val_fraction=0"], ["train"]),
    ],
)  # fmt: skip
def test_problems_of_every_kind_are_named_together(
    overrides: list[str], named: list[str], configure: Callable[..., RunConfig]
) -> None:
    assert further(configure, *overrides) == named


def test_data_are_not_looked_for_where_their_place_is_wrong() -> None:
    wrong = ["data.name=npz", "data.path=3", "train.lr=99"]
    with pytest.raises(ConfigError) as caught:
        load([], wrong, environ={}, check=further_problems)
    assert [line.partition(":")[0] for line in caught.value.problems] == ["data.path", "train.lr"]


def test_a_run_on_numpy_leaves_the_gpu_alone(
    tmp_path: Path, configure: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def status() -> CudaStatus:
        asked.append("cuda")
        return CudaStatus(False, "no device", "none", "buy one")

    monkeypatch.setattr(environment, "cuda_status", status)
    run(configure("backend=numpy"), tmp_path / "a", Silent())
    assert asked == []
    found = json.loads((tmp_path / "a" / "env.json").read_text())
    assert (found["cupy"], found["packages"]["vitkit"]) == (None, __version__)
    run(configure("backend=auto"), tmp_path / "b", Silent())
    assert json.loads((tmp_path / "b" / "env.json").read_text())["cupy"]["usable"] is False
    assert asked == ["cuda"]


def test_a_run_of_another_backend_can_be_resumed(
    tmp_path: Path, configure: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    run(configure(), folder, Silent(stop_at=3))
    stored = folder / "config.toml"
    assert load([stored], environ={}).backend == "numpy"
    stored.write_text(stored.read_text().replace('backend = "numpy"', 'backend = "cupy"'))
    config = load([stored], environ={"VITKIT_BACKEND": "numpy"})
    assert run(config, folder, Silent(), resume=True)["steps"] == 8


def test_a_run_that_was_stored_before_a_component_had_more_arguments_can_be_resumed(
    tmp_path: Path, configure: Callable[..., RunConfig]
) -> None:
    folder = tmp_path / "run"
    run(configure(), folder, Silent(stop_at=3))
    stored = folder / "config.toml"
    text = stored.read_text()
    assert "adamw(betas=(0.9, 0.999), eps=1e-08)" in text
    stored.write_text(text.replace("adamw(betas=(0.9, 0.999), eps=1e-08)", "adamw"))
    run(configure(file=stored), folder, Silent(), resume=True)
    assert "adamw(betas=(0.9, 0.999), eps=1e-08)" in stored.read_text()


def test_notes_on_the_data_are_in_the_summary(
    tmp_path: Path, configure: Callable[..., RunConfig], with_plugin: Callable[[object], Any]
) -> None:
    def noted(path: str) -> Any:
        data = npz(path)
        data.train.note, data.test.note = "a part", "another"
        return data

    class Zoo:
        @hookimpl
        def register_datasets(self, register: Any) -> None:
            register("noted", noted)

    with_plugin(Zoo())
    summary = run(configure("data.name=noted"), tmp_path / "run", Silent())
    assert (summary["train_note"], summary["note"]) == ("a part", "another")


def test_pictures_are_named_alike_on_every_system(
    tmp_path: Path, configure: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "available", lambda: True)
    for draw in ("learning_curve", "attention_picture"):
        monkeypatch.setattr(plots, draw, lambda *args: None)
    relative_to = Path.relative_to
    monkeypatch.setattr(
        Path,
        "relative_to",
        lambda self, *other: PureWindowsPath(relative_to(self, *other)),
    )
    summary = run(configure(), tmp_path / "run", Silent())
    assert summary["plots"] == ["plots/curve.png", "plots/attention.png"]


def test_a_folder_in_use_is_refused(tmp_path: Path, configure: Callable[..., RunConfig]) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with FileLock(folder / ".lock"), pytest.raises(CheckpointError, match="Another process"):
        run(configure(), folder, Silent())
    run(configure(), folder, Silent())
    with pytest.raises(CheckpointError, match="holds a run"):
        run(configure(), folder, Silent())
    with FileLock(folder / ".lock", timeout=0):  # a run gives it back
        pass


def test_a_folder_that_cannot_be_made_is_named(
    tmp_path: Path, configure: Callable[..., RunConfig]
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="Cannot write the run folder"):
        run(configure(), tmp_path / "file" / "run", Silent())


def test_there_must_be_something_to_resume(
    tmp_path: Path, configure: Callable[..., RunConfig]
) -> None:
    with pytest.raises(CheckpointError, match="There is no"):
        run(configure(), tmp_path / "nowhere", Silent(), resume=True)
    assert not (tmp_path / "nowhere").exists()


def test_a_full_disk_leaves_a_run_that_can_be_resumed(
    tmp_path: Path, configure: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(configure(), whole, Silent())
    save = files.save

    def full(path: Path, *args: Any) -> None:
        if path.name == "step-00000008":
            raise CheckpointError(f"Cannot write the checkpoint {path}: No space left on device")
        save(path, *args)

    with monkeypatch.context() as patch:
        patch.setattr(files, "save", full)
        with pytest.raises(CheckpointError, match="No space left"):
            run(configure(), parts, Silent())
    assert find_checkpoint(parts, "last").name == "step-00000004"
    run(configure(file=parts / "config.toml"), parts, Silent(), resume=True)
    assert_same_arrays(parts, whole)
    assert rows_of(parts) == rows_of(whole)


def test_a_damaged_checkpoint_is_not_resumed(
    tmp_path: Path, configure: Callable[..., RunConfig]
) -> None:
    folder = tmp_path / "run"
    run(configure(), folder, Silent(stop_at=3))
    weights = find_checkpoint(folder, "last") / "optim.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    with pytest.raises(CheckpointError, match=r"optim\.safetensors"):
        run(configure(file=folder / "config.toml"), folder, Silent(), resume=True)


def test_a_run_goes_on_from_the_one_before_a_damaged_checkpoint(
    tmp_path: Path, configure: Callable[..., RunConfig]
) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "run"
    expected = run(configure(), whole, Silent())
    run(configure("train.save_every=1"), folder, Silent(stop_at=3))
    weights = find_checkpoint(folder, "last") / "optim.safetensors"
    assert weights.parent.name == "step-00000003"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    display = Silent()
    found = run(configure(file=folder / "config.toml"), folder, display, resume=True)
    assert "Cannot trust the checkpoint" in display.said[0]
    assert "step-00000003" in display.said[0]
    assert "from step 2" in display.said[1]
    assert {**found, "seconds": 0} == {**expected, "seconds": 0}
    assert_same_arrays(folder, whole)
    assert rows_of(folder) == rows_of(whole)


def test_another_environment_is_said_when_a_run_goes_on(
    tmp_path: Path, configure: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, display = tmp_path / "run", Silent()
    run(configure(), folder, Silent(stop_at=3))
    now = runner.numerics
    monkeypatch.setattr(runner, "numerics", lambda xp: {**now(xp), "BLAS": "mkl 2026 SkylakeX"})
    run(configure(file=folder / "config.toml"), folder, display, resume=True)
    (line,) = (each for each in display.said if "last digits" in each)
    assert line.endswith("is mkl 2026 SkylakeX.")
    assert "BLAS was" in line


def test_a_folder_is_named_after_the_run(configure: Callable[..., RunConfig]) -> None:
    assert folder_name(configure()).endswith("-npz-Ti-4")
    assert folder_name(configure("name=first")).endswith("-first")


def test_a_run_that_was_stopped_early_stays_so(
    tmp_path: Path, configure: Callable[..., RunConfig]
) -> None:
    folder = tmp_path / "run"
    settings = ["train.patience=1", "train.lr=1e-9", "train.epochs=9"]
    settings += ["train.monitor=val_accuracy", "train.mode=max"]
    found = run(configure(*settings), folder, Silent())
    assert "early stopping" in found["stopped"]
    file = folder / "config.toml"
    again = run(configure(file=file), folder, Silent(), resume=True)
    assert (again["steps"], again["stopped"]) == (found["steps"], found["stopped"])
    longer = run(configure("train.patience=2", file=file), folder, Silent(), resume=True)
    assert longer["steps"] > found["steps"]


@pytest.mark.parametrize("change", ["classes", "images"])
def test_other_data_are_refused_when_a_run_goes_on(
    change: str,
    tmp_path: Path,
    configure: Callable[..., RunConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "run"
    run(configure(), folder, Silent(stop_at=3))
    made = runner.prepare

    def other(config: RunConfig) -> Any:
        prepared = made(config)
        if change == "classes":
            names = prepared.data.train.classes
            prepared.data.train.classes = (*names[:-1], "another")
        else:
            prepared.parts.train.batch_size = 1
        return prepared

    monkeypatch.setattr(runner, "prepare", other)
    message = {"classes": "the classes were .*another", "images": "another number of images"}
    with pytest.raises(CheckpointError, match=message[change]):
        run(configure(file=folder / "config.toml"), folder, Silent(), resume=True)


def test_a_damaged_best_does_not_keep_a_run_from_its_end(
    tmp_path: Path, configure: Callable[..., RunConfig]
) -> None:
    folder, display = tmp_path / "run", Silent()
    monitor = ("train.monitor=val_accuracy", "train.mode=max", "train.lr=1e-9")
    found = run(configure(*monitor), folder, Silent())
    best = find_checkpoint(folder, "best")
    weights = best / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    assert best != find_checkpoint(folder, "last")
    again = run(configure(file=folder / "config.toml"), folder, display, resume=True)
    assert again["steps"] == found["steps"]
    assert again["checkpoint"] == find_checkpoint(folder, "last").name
    assert not (folder / "best.json").exists()


def test_lines_that_are_no_rows_are_left_out(
    tmp_path: Path, configure: Callable[..., RunConfig], caplog: pytest.LogCaptureFixture
) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "run"
    run(configure("train.log_every=1"), whole, Silent())
    run(configure("train.log_every=1"), folder, Silent(stop_at=3))
    metrics = folder / "metrics.jsonl"
    metrics.write_bytes(b"\0\0\0\n[1]\n\xff\n" + metrics.read_bytes() + b'{"event": "st')
    run(configure(file=folder / "config.toml"), folder, Silent(), resume=True)
    assert rows_of(folder) == rows_of(whole)
    assert "metrics.jsonl has 3 lines that are no rows" in caplog.text
