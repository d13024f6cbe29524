"""Runs know their plugins: what is written down, what is missed, what has changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vitkit.checkpoint.files as files
from vitkit.cli.display import Console
from vitkit.config.plugin_record import changes, record_of, refuse_missing
from vitkit.config.run import RunConfig
from vitkit.config.runner import run
from vitkit.errors import CheckpointError
from vitkit.plugins import active, load, unload
from vitkit.train import plots, restore
from vitkit.train.needed import Needed, needed
from vitkit.train.restore import find_checkpoint

ZOO = '''
"""One of each kind that a run can use."""

from vitkit import hookimpl, nn, ops
from vitkit.data.npz import npz
from vitkit.data.transforms import HorizontalFlip
from vitkit.optim import SGD, Cosine
from vitkit.train.callbacks import Callback

class Zoo(SGD):
    def update(self, *args, step, **given):
        if step == BREAKS_AT:
            raise ZeroDivisionError("no luck")
        super().update(*args, step=step, **given)

class Watch(Callback):
    pass

def loss(logits, labels, *, xp):
    return ops.softmax_cross_entropy(logits, labels, xp=xp)

def relu(x, *, xp):
    return xp.maximum(x, 0)

BREAKS_AT = 0

@hookimpl
def register_activations(register):
    register("zoo_act", ops.silu, ops.silu_backward)

@hookimpl
def register_layers(register):
    register("zoo_mlp", nn.MLP, part="mlp")

@hookimpl
def register_models(register):
    register("Zoo", dim=16, depth=1, num_heads=2, mlp_dim=32, activation="zoo_act", mlp="zoo_mlp")

@hookimpl
def register_optimizers(register):
    register("zoo_opt", Zoo)
    register("zoo_idle", Zoo)

@hookimpl
def register_schedules(register):
    register("zoo_lr", Cosine)

@hookimpl
def register_losses(register):
    register("zoo_loss", loss)

@hookimpl
def register_datasets(register):
    register("zoo_data", npz)

@hookimpl
def register_transforms(register):
    register("zoo_flip", HorizontalFlip)

@hookimpl
def register_callbacks(register):
    register("zoo_watch", Watch)

@hookimpl
def register_kernels(register):
    register("relu", relu)
    register("relu_backward", lambda dy, x, *, xp: dy * (x > 0), backend="cupy")
'''
ALL_OF_IT = [
    "model={variant='Zoo/4'}",
    "optimizer=zoo_opt",
    "schedule=zoo_lr",
    "train.loss=zoo_loss",
    "data.name=zoo_data",
    "data.augment=['zoo_flip', 'zoo_flip(p=0.1)']",
    "train.callbacks=['zoo_watch']",
    "train.lr=0.01",
    "backend=numpy",
]
USES = [
    *("model Zoo", "activation zoo_act", "layer zoo_mlp", "optimizer zoo_opt", "schedule zoo_lr"),
    *("loss zoo_loss", "dataset zoo_data", "transform zoo_flip", "callback zoo_watch"),
    "kernel relu_numpy",
]
Configure = Callable[..., RunConfig]


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "available", lambda: False)


@pytest.fixture
def zoo(tmp_path: Path) -> Any:
    """Return the file of a plugin that is loaded, and forget it when the test ends."""
    file = tmp_path / "zoo.py"
    file.write_text(ZOO)
    load(file)
    yield file
    if "zoo" in active().loaded:
        unload("zoo")


def configured(configure: Configure, tmp_path: Path) -> RunConfig:
    """Return the configuration of a run that is all the plugin's."""
    (tmp_path / "run.toml").write_text("[train]\nepochs = 2\nbatch_size = 9\n")
    return configure(*ALL_OF_IT)


def of_zoo(record: list[dict[str, Any]]) -> dict[str, Any]:
    (found,) = (each for each in record if each["name"] == "zoo")
    return found


@pytest.fixture
def folder(zoo: Path, configure: Configure, tmp_path: Path) -> Path:
    """Return the folder of a run that is all the plugin's."""
    run(configured(configure, tmp_path), tmp_path / "run", Console(quiet=True))
    return tmp_path / "run"


def trainer(folder: Path) -> dict[str, Any]:
    return files.load_document(find_checkpoint(folder, "last"), "trainer")


def test_a_run_writes_down_its_plugins_and_what_it_uses_of_them(folder: Path, zoo: Path) -> None:
    record = of_zoo(trainer(folder)["plugins"])
    assert sorted(record["uses"]) == sorted(USES)
    assert (record["source"], record["origin"]) == ("file", str(zoo.resolve()))
    assert record["version"] == active().loaded["zoo"].version
    assert record["provides"]["optimizers"] == ["zoo_opt", "zoo_idle"]
    assert of_zoo(json.loads((folder / "env.json").read_text())["plugins"]) == record


def test_what_ships_is_not_written_down_and_what_is_idle_has_no_uses(
    zoo: Path, configure: Configure
) -> None:
    record = record_of(configure("backend=cupy"), active())
    assert not {"vitkit", "vitkit.cli"} & {each["name"] for each in record}
    assert of_zoo(record)["uses"] == ["kernel relu_backward_cupy"]


def test_a_run_without_its_plugin_says_which_before_anything_else(
    folder: Path, zoo: Path, configure: Configure
) -> None:
    unload("zoo")
    config = configure(file=folder / "config.toml")
    before = (folder / "config.toml").read_bytes()
    with pytest.raises(CheckpointError) as error:
        run(config, folder, Console(quiet=True), resume=True)
    (line,) = str(error.value).splitlines()
    assert all(repr(use.split()[1]) in line for use in USES if not use.startswith("kernel"))
    assert line.endswith(f"which is not here: load it with --plugin {zoo.resolve()}")
    assert (folder / "config.toml").read_bytes() == before


def test_only_what_is_still_named_is_missed(folder: Path, configure: Configure) -> None:
    recorded = needed(trainer(folder))
    unload("zoo")
    refuse_missing(configure(), recorded, active())
    other = configure("schedule=zoo_lr", "optimizer=nobodys")
    with pytest.raises(CheckpointError, match="with the schedule 'zoo_lr' of plugin"):
        refuse_missing(other, recorded, active())
    refuse_missing(other, recorded, active(), ("dataset", "loss"))
    refuse_missing(other, [], active())


def test_the_weights_are_missed_only_where_the_model_is_the_plugins(folder: Path) -> None:
    assert restore(folder).model.config.variant == "Zoo/4"
    unload("zoo")
    with pytest.raises(CheckpointError, match="'zoo_act' and the layer 'zoo_mlp' of plugin 'zoo"):
        restore(folder)


def test_the_same_file_in_another_place_is_the_same_plugin(folder: Path, zoo: Path) -> None:
    recorded = needed(trainer(folder))
    assert changes(recorded, active()) == []
    unload("zoo")
    moved = zoo.with_name("moved.py")
    zoo.rename(moved)
    load(moved, "zoo")
    assert changes(recorded, active()) == []


def test_an_edited_file_is_another_plugin(folder: Path, zoo: Path) -> None:
    recorded = needed(trainer(folder))
    label = active().loaded["zoo"].label
    zoo.write_text(ZOO + "# edited\n")
    load(zoo)
    (line,) = changes(recorded, active())
    assert line.startswith("It was made with the model 'Zoo' of plugin 'zoo (/")
    assert label.partition("sha256")[2] in line
    assert line.endswith(f"; here it is that of plugin {active().loaded['zoo'].label!r}.")


@pytest.mark.parametrize(
    ("source", "origin", "version", "use", "line"),
    [
        ("entry point", "dist", "1.0", "optimizer adamw",
         "It was made with the optimizer 'adamw' of plugin 'p (dist 1.0)'; here it is that of "
         "plugin 'vitkit'."),
        ("entry point", "dist", "1.0", "kernel gelu_numpy",
         "It was made with the kernel 'gelu_numpy' of plugin 'p (dist 1.0)', which is not here: "
         "the last digits of numbers may differ."),
        ("entry point", "dist", "1.0", "optimizer nobodys", None),
        ("entry point", "dist", "1.0", "nonsense", None),
        ("entry point", "dist", "1.0", "", None),
    ],
)  # fmt: skip
def test_what_comes_from_elsewhere_now_is_said(
    source: str, origin: str, version: str, use: str, line: str | None
) -> None:
    found = changes([Needed("p", source, origin, version, (use,))], active())
    assert found == ([] if line is None else [line])


def test_a_break_says_how_to_go_on_with_the_plugin_s_file(
    zoo: Path, configure: Configure, tmp_path: Path
) -> None:
    zoo.write_text(ZOO.replace("BREAKS_AT = 0", "BREAKS_AT = 6"))
    load(zoo)
    config = configured(configure, tmp_path)
    folder = tmp_path / "a run"
    with pytest.raises(ZeroDivisionError) as error:
        run(config, folder, Console(quiet=True))
    (note,) = error.value.__notes__
    command = f"vitkit train --plugin {zoo.resolve()} --resume '{folder}'"
    assert note.endswith(f"Once this is put right: {command}")
    zoo.write_text(ZOO)
    load(zoo)
    stored = configure(file=folder / "config.toml")
    resumed = run(stored, folder, Console(quiet=True), resume=True)
    whole = run(config, tmp_path / "whole", Console(quiet=True))
    assert resumed["steps"] == whole["steps"] == 8
    for kind in ("model", "optim"):
        weights = [
            (find_checkpoint(each, "last") / f"{kind}.safetensors").read_bytes()
            for each in (folder, tmp_path / "whole")
        ]
        assert weights[0] == weights[1]


def test_a_run_that_goes_on_from_half_an_update_says_so(
    zoo: Path, configure: Configure, tmp_path: Path
) -> None:
    zoo.write_text(ZOO.replace("BREAKS_AT = 0", "BREAKS_AT = 2"))
    load(zoo)
    folder = tmp_path / "run"
    with pytest.raises(ZeroDivisionError):
        run(configured(configure, tmp_path), folder, Console(quiet=True))
    zoo.write_text(ZOO)
    load(zoo)
    run(configure(file=folder / "config.toml"), folder, Console(quiet=True), resume=True)
    log = (folder / "log.txt").read_text()
    assert "step-00000001-partial is not whole. An update of the weights was half made." in log


def test_a_plugin_that_would_end_the_program_breaks_the_run(
    zoo: Path, configure: Configure, tmp_path: Path
) -> None:
    zoo.write_text(ZOO.replace("class Watch(Callback):", """class Watch(Callback):
    def on_step_end(self, state, log):
        raise SystemExit(0)
"""))  # fmt: skip
    load(zoo)
    with pytest.raises(RuntimeError, match=r"it tried to end the program \(SystemExit: 0\)") as e:
        run(configured(configure, tmp_path), tmp_path / "run", Console(quiet=True))
    found = active().who(e.value)
    assert found is not None
    assert found.name == "zoo"
    assert "All 1 finished steps are in" in e.value.__notes__[0]


def test_a_run_whose_results_cannot_be_had_is_saved(
    zoo: Path, configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError("no luck")

    monkeypatch.setattr("vitkit.config.summary.evaluate", broken)
    with pytest.raises(ZeroDivisionError) as error:
        run(configured(configure, tmp_path), tmp_path / "run", Console(quiet=True))
    (note,) = error.value.__notes__
    assert note.startswith("The training is saved, and only its results are missing. Once this is")
    monkeypatch.undo()
    monkeypatch.setattr(plots, "available", lambda: False)
    config = configure(file=tmp_path / "run" / "config.toml")
    summary = run(config, tmp_path / "run", Console(quiet=True), resume=True)
    assert summary["test_accuracy"] is not None
