"""Registries: names, clashes, suggestions."""

from __future__ import annotations

import pytest

from vitkit import registry as tables
from vitkit.errors import ConfigError, VitkitError, nearest
from vitkit.registry import PluginError, Registry, UnknownName, did_you_mean, is_name


@pytest.fixture
def optimizers() -> Registry:
    registry = Registry("optimizer")
    registry.add("adamw", dict, plugin="vitkit")
    registry.add("lion", list, plugin="zoo")
    return registry


def test_a_name_gives_what_was_registered(optimizers: Registry) -> None:
    assert optimizers["adamw"] is dict
    assert optimizers.names() == ("adamw", "lion")
    assert [(e.name, e.plugin) for e in optimizers.entries()] == [
        ("adamw", "vitkit"),
        ("lion", "zoo"),
    ]
    assert dict(optimizers) == {"adamw": dict, "lion": list}
    assert "lion" in optimizers
    assert "tiger" not in optimizers
    assert repr(optimizers) == "Registry('optimizer': adamw, lion)"


def test_several_objects_are_a_tuple() -> None:
    registry = Registry("activation")
    registry.add("mish", abs, max, plugin="zoo")
    assert registry["mish"] == (abs, max)


def test_a_clash_names_both_plugins_and_changes_nothing(optimizers: Registry) -> None:
    with pytest.raises(PluginError) as caught:
        optimizers.add("adamw", set, plugin="zoo")
    assert str(caught.value) == (
        "Plugin 'zoo' registers the optimizer 'adamw', which plugin 'vitkit' has already "
        "registered."
    )
    assert optimizers["adamw"] is dict
    assert isinstance(caught.value, VitkitError)


@pytest.mark.parametrize(
    ("asked", "suggestion"),
    [("adam", "; did you mean 'adamw'? "), ("ADAMW", "; did you mean 'adamw'? "), ("xyz", ". ")],
)
def test_an_unknown_name_lists_the_known_ones(
    optimizers: Registry, asked: str, suggestion: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        optimizers[asked]
    assert caught.value.problems == [
        f"no optimizer is named {asked!r}{suggestion}Known: adamw, lion."
    ]


def test_an_empty_registry_says_so() -> None:
    with pytest.raises(ConfigError, match=r"no loss is named 'mse'\. Known: none\.$"):
        Registry("loss")["mse"]


@pytest.mark.parametrize("name", ["", "two words", "a.b", "a-b", "1st", "größe", "lambda", "None"])
def test_a_name_must_be_writable_in_a_configuration(name: str) -> None:
    registry = Registry("loss")
    assert not is_name(name)
    with pytest.raises(PluginError, match="letters, digits and '_'"):
        registry.add(name, abs, plugin="zoo")
    assert registry.names() == ()


def test_a_name_must_stand_for_something() -> None:
    with pytest.raises(PluginError, match=r"'zoo' registers the loss 'mse' with nothing behind"):
        Registry("loss").add("mse", plugin="zoo")


def test_suggestions_ignore_case_and_keep_their_distance() -> None:
    assert nearest("Cosin", ["cosine", "step"]) == "cosine"
    assert nearest("eglu", ["relu", "gelu"]) == "gelu"
    assert nearest("cosine", ["SGD"]) is None
    assert nearest(3, ["three"]) is None
    assert did_you_mean("sgdd", ["sgd"]) == "; did you mean 'sgd'?"
    assert did_you_mean("zzz", ["sgd"]) == "."


def test_an_unknown_name_is_a_missing_key_too(optimizers: Registry) -> None:
    assert optimizers.get("tiger") is None
    with pytest.raises(KeyError) as caught:
        optimizers["lions"]
    assert isinstance(caught.value, UnknownName)
    assert str(caught.value).startswith("no optimizer is named 'lions'; did you mean 'lion'?")


def test_a_plugin_may_say_the_same_thing_twice_and_nothing_else(optimizers: Registry) -> None:
    optimizers.add("lion", list, plugin="zoo")
    with pytest.raises(PluginError, match=r"'zoo' registers .*'lion', which plugin 'zoo' has"):
        optimizers.add("lion", set, plugin="zoo")


def test_details_are_kept_with_the_name(optimizers: Registry) -> None:
    optimizers.add("tiger", set, plugin="zoo", example={"stripes": 3})
    assert optimizers.entry("tiger").details == {"example": {"stripes": 3}}


def test_a_plugin_is_forgotten_whole(optimizers: Registry) -> None:
    optimizers.add("tiger", set, plugin="zoo")
    optimizers.remove("zoo")
    assert optimizers.names() == ("adamw",)


def test_a_late_registry_asks_before_it_says_no(monkeypatch: pytest.MonkeyPatch) -> None:
    late, asked = Registry("activation", late=True), []
    late.add("gelu", abs, max, plugin="vitkit")

    def find() -> None:
        asked.append("plugins")
        if "mish" not in late.names():
            late.add("mish", abs, max, plugin="zoo")

    monkeypatch.setattr(tables, "_finders", [find])
    monkeypatch.setattr(tables, "_looked", [])
    assert "gelu" in late
    assert asked == []
    assert late["mish"] == (abs, max)
    assert "tiger" not in late
    assert asked == ["plugins"]  # once, until the path changes
    monkeypatch.syspath_prepend("elsewhere")
    assert "tiger" not in late
    assert asked == ["plugins"] * 2
