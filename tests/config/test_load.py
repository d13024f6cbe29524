"""Layers, precedence, messages, and the way to TOML and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings

from vitkit.config import RunConfig, Spec, dumps, load, recipe, recipes
from vitkit.config.load import ENVIRONMENT
from vitkit.config.problems import SECTIONS
from vitkit.errors import ConfigError


def problems(*overrides: str, **kwargs: Any) -> list[str]:
    """Return what is wrong with the overrides; the environment is empty."""
    with pytest.raises(ConfigError) as caught:
        load(kwargs.pop("files", []), overrides, environ={}, **kwargs)
    return caught.value.problems


def loaded(*overrides: str, **kwargs: Any) -> RunConfig:
    return load(kwargs.pop("files", []), overrides, environ=kwargs.pop("environ", {}), **kwargs)


@pytest.fixture
def toml(tmp_path: Path) -> Any:
    """Return a function that writes text to a file and gives its path."""

    def write(text: str | bytes, name: str = "run.toml") -> Path:
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


# --- precedence ------------------------------------------------------------------------------


def test_flag_beats_set_beats_environment_beats_file_beats_recipe(toml: Any) -> None:
    first, second = toml("seed = 1\n[train]\nepochs = 11", "1.toml"), toml("seed = 2", "2.toml")
    environ = {"VITKIT_SEED": "3"}
    layers: list[tuple[int, dict[str, Any]]] = [
        (0, {}),
        (1, {"files": [first]}),
        (2, {"files": [first, second]}),
        (3, {"files": [first, second], "environ": environ}),
    ]
    for seed, kwargs in layers:
        assert loaded(**kwargs).seed == seed
    assert loaded("seed=4", files=[first], environ=environ).seed == 4
    config = loaded("seed=4", files=[first, second], environ=environ, flags={"seed": 5})
    assert config.seed == 5
    assert config.train.epochs == 11
    assert recipe("digits")["train"]["epochs"] != 11


def test_a_later_override_wins_and_leaves_the_rest() -> None:
    config = loaded("train.epochs=3", "train.batch_size=7", "train.epochs=4")
    assert (config.train.epochs, config.train.batch_size) == (4, 7)


def test_flags_that_were_not_given_do_nothing() -> None:
    assert loaded(flags={"train.epochs": None, "data.name": None}) == loaded()


def test_empty_variables_do_nothing() -> None:
    assert loaded(environ=dict.fromkeys(ENVIRONMENT, "")) == loaded()


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITKIT_SEED", "17")
    assert load().seed == 17


def test_a_rate_in_an_upper_spec_beats_one_below(toml: Any) -> None:
    path = toml('optimizer = "adamw(lr=0.5)"')
    assert loaded(files=[path]).train.lr == 0.5
    assert loaded("train.lr=0.25", files=[path]).train.lr == 0.25
    assert loaded("train.lr=0.25", flags={"optimizer": "lion(lr=0.125)"}).train.lr == 0.125


def test_an_argument_of_a_spec_joins_those_below() -> None:
    config = loaded("optimizer=lion(betas=[0.5, 0.6])", "optimizer.x=3", "optimizer.lr=1e-4")
    assert config.optimizer == Spec("lion", {"betas": [0.5, 0.6], "x": 3})
    assert config.train.lr == 1e-4
    assert loaded("schedule.min_lr=1e-5").schedule == Spec("cosine", {"min_lr": 1e-5})


# --- recipes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", recipes())
def test_a_recipe_is_the_base_of_its_data_set(name: str) -> None:
    config = loaded(f"data.name={name}")
    for section, table in recipe(name).items():
        if section in SECTIONS:
            read = getattr(config, section).model_dump()
            assert {key: read[key] for key in table} == table


def test_the_recipes_are_those_of_the_built_in_data() -> None:
    assert recipes() == ("cifar10", "cifar100", "digits", "fashion_mnist", "mnist")


def test_data_without_a_recipe_take_the_defaults() -> None:
    assert loaded("data.name=npz") == RunConfig.model_validate({"data": {"name": "npz"}})


def test_an_unknown_recipe_is_named() -> None:
    with pytest.raises(ConfigError, match="no recipe is named 'cifar'; did you mean 'cifar10'"):
        recipe("cifar")


def test_a_recipe_changed_by_its_reader_stays_as_it_is() -> None:
    recipe("digits")["train"]["epochs"] = -1
    assert loaded().train.epochs > 0


def test_sizes_of_a_recipe_go_with_its_variant() -> None:
    assert loaded().model.dim is not None
    model = loaded("model.variant=S/4").model
    assert (model.variant, model.dim, model.depth) == ("S/4", None, None)
    assert loaded("model.variant=S/4", "model.dim=96").model.dim == 96
    same = loaded("model.variant=" + loaded().model.variant)
    assert same == loaded()


def test_rates_of_a_recipe_go_with_its_optimizer() -> None:
    assert loaded().train.lr is not None
    assert loaded("optimizer=adamw(eps=1e-6)").train.lr == loaded().train.lr
    train = loaded("optimizer=lion").train
    assert (train.lr, train.weight_decay) == (None, None)
    assert train.epochs == loaded().train.epochs


# --- overrides -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("train.epochs=5", "train.epochs", 5),
        (" train.epochs = 5 ", "train.epochs", 5),
        ("train.lr=1e-4", "train.lr", 1e-4),
        ("data.name=mnist", "data.name", "mnist"),
        ('data.name="mnist"', "data.name", "mnist"),
        ("data.path=/some/where=else", "data.path", "/some/where=else"),
        ("name=2026-11-23", "name", "2026-11-23"),
        ("train.patience=none", "train.patience", None),
        ("train.max_time=2h", "train.max_time", 7200.0),
        ("model.image_size=[32, 48]", "model.image_size", (32, 48)),
        ("model.gradient_checkpointing=true", "model.gradient_checkpointing", True),
        ("data.augment=['flip']", "data.augment", (Spec("flip"),)),
        ("data.augment=[]", "data.augment", ()),
        ("optimizer=lion(betas=(0.9, 0.95))", "optimizer", Spec("lion", {"betas": (0.9, 0.95)})),
        ("optimizer={name='lion', x=1}", "optimizer", Spec("lion", {"x": 1})),
    ],
)
def test_an_override_is_a_toml_value_or_a_bare_word(override: str, path: str, value: Any) -> None:
    read: Any = loaded(override)
    for key in path.split("."):
        read = getattr(read, key)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("epochs", "--set: got 'epochs', expected section.setting=value."),
        ("=5", "--set: got '=5', expected section.setting=value."),
        ("train..epochs=5", "--set: got 'train..epochs=5', expected section.setting=value."),
        ("a b=5", "--set: got 'a b=5', expected section.setting=value."),
        ("seed=", "seed: got nothing after '=', expected a value; write 'none' for none."),
        ("seed=[1", "seed: got '[1', expected a TOML value: is not TOML: Unclosed array"),
        ("seed='1", "seed: got \"'1\", expected a TOML value: "),
        ("seed=1\nname = 2", "seed: got '1\\nname = 2', expected a TOML value: "),
        ("train.epochs=true", "train.epochs: got true from --set, expected a whole number."),
        ("train.epochs=3.5", "train.epochs: got 3.5 from --set, expected a whole number."),
        ("train.epochs=ten", "train.epochs: got 'ten' from --set, expected a whole number."),
        ("train.epochs=0", "train.epochs: got 0 from --set, expected a number greater than 0."),
        ("seed=-1", "seed: got -1 from --set, expected a number at least 0."),
        ("seed=0xfffffffffffffffff", "seed: got 295147905179352825855, expected an integer of at"),
        ("train.lr=fast", "train.lr: got 'fast' from --set, expected a number."),
        ("train.lr=nan", "train.lr: got nan from --set, expected a finite number."),
        ("model.dropout=1", "model.dropout: got 1 from --set, expected a number less than 1."),
        ("data.path=3", "data.path: got 3 from --set, expected a string."),
        ("data=3", "data: got 3 from --set, expected a table."),
        ("name=a/b", "name: got 'a/b' from --set, expected letters, digits, '.', '_' and '-', a"),
        ("dtype=float23", "dtype: got 'float23' from --set, expected 'float32' or 'float64'; did "
         "you mean 'float32'?"),
        ("train.monitor=loss", "train.monitor: got 'loss' from --set, expected 'val_loss', "
         "'val_accuracy' or 'train_loss'; did you mean 'val_loss'?"),
        ("train.mode=maximise", "train.mode: got 'maximise' from --set, expected 'min' or 'max'."),
        ("train.max_time=2d", "train.max_time: got '2d', expected seconds, or a time such as '2h'"),
        ("model.image_size=[1, 2, 3]", "model.image_size: got [1, 2, 3], expected a whole number "
         "above 0 or [height, width]."),
        ("model.gradient_checkpointing=1", "model.gradient_checkpointing: got 1 from --set, "
         "expected true or false."),
        ("data.augment=flip", "data.augment: got 'flip', expected a list, such as "),
        ("data.augment=['flip(']", "data.augment: got 'flip(': it cannot be read at character 5;"),
        ("optimizer=os.system(x=1)", "optimizer: got 'os.system(x=1)': 'os.system' is not the "),
        ("optimizer=3", "optimizer: got 3, expected a name such as "),
    ],
)  # fmt: skip
def test_a_wrong_override_is_one_line_that_says_why(override: str, line: str) -> None:
    (problem,) = problems(override)
    assert problem.startswith(line)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("train.epoch=5", "train.epoch: unknown setting from --set; did you mean train.epochs?"),
        ("train.Epochs=5", "train.Epochs: unknown setting from --set; did you mean train.epochs?"),
        ("epochs=5", "epochs: unknown setting from --set; did you mean train.epochs?"),
        ("train.depth=5", "train.depth: unknown setting from --set; did you mean model.depth?"),
        ("heads=5", "heads: unknown setting from --set; did you mean model.num_heads?"),
        ("sed=5", "sed: unknown setting from --set; did you mean seed?"),
        ("learning_rate=5", "learning_rate: unknown setting from --set; did you mean train.lr?"),
        ("device=gpu", "device: unknown setting from --set; did you mean backend?"),
        ("dataset=mnist", "dataset: unknown setting from --set; did you mean data.name?"),
        ("modle.dim=5", "modle: unknown setting from --set; did you mean 'model'?"),
        ("zzzzz=5", "zzzzz: unknown setting from --set."),
    ],
)
def test_an_unknown_setting_is_named_with_the_nearest(override: str, line: str) -> None:
    assert problems(override) == [line]


def test_a_rate_given_twice_in_one_layer_is_named(toml: Any) -> None:
    path = toml('optimizer = "adamw(lr=0.5)"\n[train]\nlr = 0.1\nepochs = "x"')
    assert problems(files=[path]) == [
        "train.lr: got 0.1 and optimizer 'adamw(lr=0.5)', expected one of the two.",
        f"train.epochs: got 'x' from {path}, expected a whole number.",
    ]


# --- files -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "end"),
    [
        (b"seed = 1\nname = \n", "line 2, column 8: Invalid value."),
        (b"seed = 1\nseed = 2\n", "line 2, column 9: Cannot overwrite a value."),
        (b"seed 1", "line 1, column 6: Expected '=' after a key in a key/value pair."),
        (b"name = 'a", 'is not TOML: Expected "\'" (at end of document).'),
        (b"name = '\xff'", "byte 8 is not UTF-8; save the file as UTF-8."),
        (b"seed = " + b"9" * 5000, "is not TOML: Exceeds the limit (4300 digits)"),
        (b"seed = " + b"[" * 100_000, "is nested too deeply."),
    ],
)
def test_a_file_that_is_not_toml_is_named_with_the_line(toml: Any, text: bytes, end: str) -> None:
    path = toml(text)
    (problem,) = problems(files=[path])
    assert problem.startswith(f"{path}: {end}")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "no.toml"
    assert problems(files=[missing, tmp_path]) == [
        f"{missing}: cannot be read (No such file or directory).",
        f"{tmp_path}: cannot be read (Is a directory).",
    ]


def test_a_file_may_come_from_windows(toml: Any) -> None:
    path = toml(b"\xef\xbb\xbfseed = 3\r\n[train]\r\nepochs = 4\r\n")
    config = loaded(files=[path])
    assert (config.seed, config.train.epochs) == (3, 4)


def test_all_problems_are_reported_at_once(toml: Any) -> None:
    wrong, broken = toml("[train]\nepochs = true\nlrr = 3", "a.toml"), toml("x\n", "b.toml")
    found = problems("seed=x", "nonsense", files=[wrong, broken], flags={"data.name": 3})
    assert len(found) == 6
    for part in (
        f"{broken}: line 1",
        "--set: got 'nonsense'",
        "seed: got 'x' from --set, expected a whole number.",
        "data.name: got 3 from a flag, expected a string.",
        f"train.epochs: got true from {wrong}, expected a whole number.",
        f"train.lrr: unknown setting from {wrong}; did you mean train.lr?",
    ):
        assert any(line.startswith(part) for line in found), part


@pytest.mark.parametrize(
    ("overrides", "dropped", "kept"),
    [
        (["train.epochs=0", "seed=3"], {"train.epochs"}, ("seed", 3)),
        (["model=3", "modle.dim=5", "dtype=float64"], {"model", "modle"}, ("dtype", "float64")),
        (["data.augment=flip", "data.nam=x", "backend=zzz"], {"data.augment", "data.nam"},
         ("backend", "zzz")),
    ],
)  # fmt: skip
def test_what_is_not_wrong_is_checked_too(
    overrides: list[str], dropped: set[str], kept: tuple[str, Any]
) -> None:
    seen: list[tuple[RunConfig, frozenset[str]]] = []

    def check(rest: RunConfig, left_out: frozenset[str]) -> list[str]:
        seen.append((rest, left_out))
        return ["more"]

    with pytest.raises(ConfigError) as caught:
        load([], overrides, environ={}, check=check)
    ((rest, left_out),) = seen
    assert left_out == dropped
    assert getattr(rest, kept[0]) == kept[1]
    assert caught.value.problems == [*problems(*overrides), "more"]
    assert load([], ["seed=3"], environ={}, check=check).seed == 3
    with pytest.raises(ConfigError, match="nonsense"):  # which may have been about anything
        load([], ["nonsense", "train.epochs=0"], environ={}, check=check)
    assert len(seen) == 1


def test_a_section_that_is_no_table_is_reported_under_others(toml: Any) -> None:
    path = toml("train = 3")
    assert problems("train.epochs=4", files=[path]) == [
        f"train: got 3 from {path}, expected a table."
    ]
    assert problems("train=3", files=[toml("[train]\nepochs = 4", "2.toml")]) == [
        "train: got 3 from --set, expected a table."
    ]


def test_the_layer_that_won_is_named(toml: Any) -> None:
    path = toml("[train]\nepochs = true")
    assert problems("train.epochs=true", files=[path]) == [
        "train.epochs: got true from --set, expected a whole number."
    ]


def test_a_wrong_variable_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        load(environ={"VITKIT_SEED": "many"})
    assert caught.value.problems == ["seed: got 'many' from VITKIT_SEED, expected a whole number."]


# --- to TOML and back ------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*recipes(), "folder"])
def test_a_loaded_configuration_comes_back_from_toml(toml: Any, name: str) -> None:
    config = loaded(f"data.name={name}", "train.max_grad_norm=none")
    assert loaded(files=[toml(dumps(config))]) == config


# --- nothing but a ConfigError -----------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("toml")


KEYS = st.sampled_from(
    ["train", "model", "data", "optimizer", "name", "epochs", "lr", "seed", "augment", "trian"]
)
PATHS = st.lists(KEYS | st.text(max_size=3), min_size=1, max_size=3).map(".".join)
RAW = (
    st.text(max_size=12)
    | st.sampled_from(["1", "true", "[1", "{a=1}", "nan", "1979-05-27", "'x'", "adamw(lr=1)"])
    | st.text(alphabet="[]{}'\"=,.1ae-\n#", max_size=10)
)


def only_problems_of_one_line(*args: Any) -> None:
    found = ["one"]
    try:
        config = load(*args, environ={})
    except ConfigError as error:
        found, config = error.problems, RunConfig()
    assert isinstance(config, RunConfig)
    assert found
    assert all(line and "\n" not in line and "\r" not in line for line in found)


@settings(max_examples=500)
@given(st.lists(st.builds("{}={}".format, PATHS, RAW) | st.text(max_size=20), max_size=4))
@example(["data.path=\udcff"])
@example(["train=3", "train.lr=3", "optimizer=adamw(lr=1)"])
@example(["optimizer={}", "optimizer.lr={}"])
@example(["data={}", "data.name=[]"])
@example(["seed=" + "9" * 5000])
@example(["seed=0x" + "f" * 5000])
@example(["unknown=0x" + "f" * 5000])
@example(["train.loss.name.x=1"])
def test_any_overrides_give_a_configuration_or_problems(overrides: list[str]) -> None:
    only_problems_of_one_line([], overrides)


TOML_VALUES = st.recursive(
    st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=500)
@given(st.dictionaries(KEYS, TOML_VALUES, max_size=5))
@example({"data": {"name": {"a": 1}}, "model": {"variant": [1]}})
@example({"optimizer": {"name": None}})
def test_any_table_gives_a_configuration_or_problems(table: dict[str, Any]) -> None:
    only_problems_of_one_line([], [], table)


@settings(max_examples=300)
@given(st.binary(max_size=40) | st.text(alphabet="[]{}'\"=,.1ae-\n#tr \\", max_size=40))
def test_any_file_gives_a_configuration_or_problems(folder: Path, text: bytes | str) -> None:
    path = folder / "any.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    only_problems_of_one_line([path])
