"""Callbacks by name: what they are given, when they are called, and what a resumed run knows."""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

import vitkit.checkpoint.files as files
from vitkit.cli.display import Console
from vitkit.config import RunConfig, preflight
from vitkit.config.callbacks import FROM_THE_RUN, callback_problems, callbacks
from vitkit.config.resolve import spelled_out
from vitkit.config.runner import run
from vitkit.config.spec import Spec
from vitkit.errors import ConfigError
from vitkit.models import ViT
from vitkit.nn import LayerNorm, Linear
from vitkit.optim import AdamW
from vitkit.plugins import Registries, hookimpl
from vitkit.train import TrainState, plots
from vitkit.train.callbacks import Callback, EarlyStopping, TimeLimit
from vitkit.train.restore import find_checkpoint

WithPlugin = Callable[[object], Registries]
Configure = Callable[..., RunConfig]


class Printer(Callback):
    """Notes each event that it sees, with what is known then; can stop the run at a step."""

    seen: list[tuple[Any, ...]]
    made: list[Printer]

    def __init__(self, every: int = 1, *, folder: Path, stop_at: int = 0) -> None:
        if every < 1:
            raise ValueError(f"every must be 1 or more; got {every}.")
        self.every, self.folder, self.stop_at, self.steps = every, folder, stop_at, 0
        self.made.append(self)

    def on_step_end(self, state: TrainState, log: Any) -> None:
        self.steps += 1
        if state.step == self.stop_at:
            state.stop = "told to"

    def on_epoch_end(self, state: TrainState) -> None:
        written = files.read_pointer(last) if (last := self.folder / "last.json").exists() else {}
        self.seen.append((state.epoch, sorted(state.metrics), written.get("epoch")))

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, values: dict[str, Any]) -> None:
        self.steps = values["steps"]


class Everything(Callback):
    """Takes all that a run has to give, and anything else."""

    name = "everything"

    def __init__(self, model: ViT, optimizer: AdamW, folder: Path, **others: Any) -> None:
        self.given = (model, optimizer, folder, others)


class Zoo:
    """A plugin with callbacks, and an attention that has no weights to show."""

    @hookimpl
    def register_callbacks(self, register: Any) -> None:
        register("printer", Printer)
        register("everything", Everything)
        register("anything", lambda **options: Everything(None, None, None, **options))  # type: ignore[arg-type]
        register("plain", Callback)
        register("stopping", EarlyStopping)
        register("limit", TimeLimit)
        register("layer", lambda: LayerNorm(3))

    @hookimpl
    def register_layers(self, register: Any) -> None:
        register("straight", lambda dim, heads, **options: Linear(dim, dim), part="attention")


@pytest.fixture
def known(with_plugin: WithPlugin) -> Registries:
    Printer.seen, Printer.made = [], []
    return with_plugin(Zoo())


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "available", lambda: False)


MODEL = ViT("Ti/4", backend=None, dim=4, depth=1, num_heads=1, image_size=4)
OPTIMIZER = AdamW()


def made(config: RunConfig, known: Registries) -> list[Any]:
    folder = Path("runs/a")
    return [*callbacks(config, known, model=MODEL, optimizer=OPTIMIZER, folder=folder)]


def test_a_callback_gets_what_its_parameters_name(known: Registries, configure: Configure) -> None:
    config = configure("train.callbacks=['everything', 'printer(every=2)']")
    first, printer = made(config, known)
    assert first.given == (MODEL, OPTIMIZER, Path("runs/a"), {})
    assert (printer.every, printer.folder, printer.stop_at) == (2, Path("runs/a"), 0)
    (free,) = made(configure("train.callbacks=['anything(own=3)']"), known)
    assert free.given == (None, None, None, {"own": 3})


def test_what_a_run_has_to_give_is_written_down_once() -> None:
    offered = set(inspect.signature(callbacks).parameters) - {"config", "registries"}
    assert offered == set(FROM_THE_RUN)


def test_a_callback_without_a_name_has_the_one_it_is_registered_under(
    known: Registries, configure: Configure
) -> None:
    config = configure("train.callbacks=['plain', 'everything', 'printer', 'stopping']")
    found = [callback.name for callback in made(config, known)]
    assert found == ["plain", "everything", "printer", "early_stopping"]
    assert Callback.name == Printer.name == ""


@pytest.mark.parametrize(
    ("specs", "problems"),
    [
        (["printr"], ["train.callbacks[0]: no callback is named 'printr'; did you mean 'printer'? "
                      "Known: "]),
        (["plain", "printer(evry=2)"], ["train.callbacks[1]: printer has no argument 'evry'; did "
                                        "you mean 'every'? It takes: every, stop_at."]),
        (["printer(folder=3)"], ["train.callbacks[0]: folder of printer is set by the run."]),
        (["everything(model=3, x=1)"], ["train.callbacks[0]: model of everything is set by the "
                                        "run."]),
        (["limit"], ["train.callbacks[0]: limit needs seconds; write limit(seconds=...)."]),
        (["printer", "plain", "printer(every=2)"], [
            "train.callbacks[2]: a second callback of this run is named 'printer', under which the "
            "state of the first is kept; leave one of them out."]),
        (["nope", "printer", "printer", "printer", "plain(x=1)"], [
            "train.callbacks[0]: no callback is named 'nope'",
            "train.callbacks[2]: a second callback of this run is named 'printer', ",
            "train.callbacks[4]: plain has no argument 'x'. It takes: none."]),
    ],
)  # fmt: skip
def test_problems_are_found_before_anything_is_made(
    known: Registries, configure: Configure, specs: list[str], problems: list[str]
) -> None:
    config = configure(f"train.callbacks={specs}")
    found = preflight(config, (1, 8, 8), 3, known, num_images=36)
    assert found == callback_problems(config, known)
    assert len(found) == len(problems)
    assert all(line.startswith(start) for line, start in zip(found, problems, strict=True)), found
    with pytest.raises(ConfigError) as caught:
        made(config, known)
    assert caught.value.problems == found
    assert Printer.made == []


def test_arguments_that_a_callback_refuses_are_named(
    known: Registries, configure: Configure
) -> None:
    config = configure("train.callbacks=['printer(every=0)', 'layer', 'plain']")
    with pytest.raises(ConfigError) as caught:
        made(config, known)
    assert caught.value.problems == [
        "train.callbacks[0]: printer: every must be 1 or more; got 0.",
        "train.callbacks[1]: layer makes an object of type LayerNorm, expected a "
        "vitkit.train.callbacks.Callback.",
    ]


def test_a_stored_configuration_spells_the_callbacks_out(
    known: Registries, configure: Configure
) -> None:
    config = configure("train.callbacks=['everything', 'printer(stop_at=5)', 'stopping']")
    full = spelled_out(config, known)
    assert full.train.callbacks == (
        Spec("everything"),
        Spec("printer", {"every": 1, "stop_at": 5}),
        Spec("stopping", {"monitor": "val_loss", "patience": 10, "mode": "min", "min_delta": 0.0}),
    )
    assert spelled_out(full, known) == full
    assert callback_problems(full, known) == []


# --- in a run ----------------------------------------------------------------------------------


def test_they_are_called_when_numbers_are_known_and_nothing_is_written(
    known: Registries, configure: Configure, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    run(configure("train.callbacks=['printer']"), folder, Console(quiet=True))
    metrics = ["train_accuracy", "train_loss", "val_accuracy", "val_loss"]
    assert Printer.seen == [(1, metrics, None), (2, metrics, 1)]
    (printer,) = Printer.made
    assert (printer.folder, printer.steps) == (folder, 8)
    assert "printer(every=1, stop_at=0)" in (folder / "config.toml").read_text()


def test_a_resumed_run_finds_them_as_they_were(
    known: Registries, configure: Configure, tmp_path: Path
) -> None:
    folder, console = tmp_path / "run", Console(quiet=True)
    summary = run(configure("train.callbacks=['printer(stop_at=3)']"), folder, console)
    assert (summary["stopped"], summary["steps"]) == ("told to", 3)
    states = files.load(find_checkpoint(folder, "last")).documents["trainer"]["callbacks"]
    assert states["printer"] == {"steps": 3}
    config = configure(file=folder / "config.toml")
    assert run(config, folder, console, resume=True)["steps"] == 8
    assert [printer.steps for printer in Printer.made] == [3, 8]


def test_a_resumed_run_may_have_others(
    known: Registries, configure: Configure, tmp_path: Path
) -> None:
    folder, console = tmp_path / "run", Console(quiet=True)
    run(configure("train.callbacks=['printer(stop_at=3)']"), folder, console)
    config = configure("train.callbacks=['plain']", file=folder / "config.toml")
    assert run(config, folder, console, resume=True)["steps"] == 8
    config = configure("train.callbacks=['printer']", "train.epochs=3",
                       file=folder / "config.toml")  # fmt: skip
    assert run(config, folder, console, resume=True)["steps"] == 12
    assert [printer.steps for printer in Printer.made] == [3, 4]


@pytest.mark.parametrize(
    ("setting", "spec", "name"),
    [
        ("train.patience=1", "stopping", "early_stopping"),
        ("train.max_time=9", "limit(seconds=9)", "time_limit"),
    ],
)
def test_one_that_the_run_has_already_is_refused(
    known: Registries, configure: Configure, tmp_path: Path, setting: str, spec: str, name: str
) -> None:
    config = configure(setting, f"train.callbacks=['{spec}']")
    with pytest.raises(ConfigError) as caught:
        run(config, tmp_path / "run", Console(quiet=True))
    assert caught.value.problems == [
        f"train.callbacks[0]: a second callback of this run is named {name!r}, under which the "
        "state of the first is kept; leave one of them out."
    ]
    assert not (tmp_path / "run").exists()  # found before there was a folder


def test_one_by_name_can_end_a_run(known: Registries, configure: Configure, tmp_path: Path) -> None:
    config = configure("train.callbacks=['stopping(patience=1, min_delta=1e9)']", "train.epochs=5")
    summary = run(config, tmp_path / "run", Console(quiet=True))
    assert summary["epochs"] == 2
    assert summary["stopped"].startswith("early stopping: val_loss")


# --- layers in a run ---------------------------------------------------------------------------


def test_a_run_without_attention_weights_has_one_picture_less(
    known: Registries, configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "available", lambda: True)
    monkeypatch.setattr(plots, "learning_curve", lambda *args: None)
    config = configure("model.attention=straight", "train.epochs=1")
    summary = run(config, tmp_path / "run", Console(quiet=True))
    assert summary["plots"] == ["plots/curve.png"]
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "No picture of attention: Linear 'blocks.0.attn' has no method weights(x)" in log
    stored = configure(file=tmp_path / "run" / "config.toml").model
    assert (stored.mlp, stored.norm, stored.attention) == ("mlp", "layer_norm", "straight")


def test_a_run_of_before_layers_had_names_can_be_resumed(
    known: Registries, configure: Configure, tmp_path: Path
) -> None:
    folder, console = tmp_path / "run", Console(quiet=True)
    run(configure("train.callbacks=['printer(stop_at=3)']"), folder, console)
    stored = folder / "config.toml"
    table = tomllib.loads(stored.read_text())
    named = {"mlp": "mlp", "norm": "layer_norm", "attention": "attention"}
    assert {part: table["model"].pop(part) for part in named} == named
    assert table["train"].pop("callbacks") == ["printer(every=1, stop_at=3)"]
    stored.write_text(tomli_w.dumps(table))
    with pytest.raises(ConfigError, match=r"model\.attention: got straight, but the run began with "
                       r"attention; leave it out\."):  # fmt: skip
        run(configure("model.attention=straight", file=stored), folder, console, resume=True)
    assert run(configure(file=stored), folder, console, resume=True)["steps"] == 8
    assert tomllib.loads(stored.read_text())["model"].items() >= named.items()


@pytest.mark.parametrize("taken", ["checkpointing", "validation", "recorder"])
def test_the_name_of_a_callback_of_every_run_is_refused_at_once(
    taken: str, configure: Configure, with_plugin: WithPlugin
) -> None:
    class Taker(Callback):
        name = taken

    class Zoo:
        @hookimpl
        def register_callbacks(self, register: Any) -> None:
            register("taker", Taker)

    known = with_plugin(Zoo())
    problems = preflight(configure("train.callbacks=['taker']"), None, None, known)
    assert any(f"is named {taken!r}" in problem for problem in problems), problems
