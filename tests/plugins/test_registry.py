"""Registries: names, clashes, suggestions."""

from __future__ import annotations

import pytest

from vitkit.errors import ConfigError, VitkitError, nearest
from vitkit.plugins import PluginError, Registry
from vitkit.plugins.registry import did_you_mean, is_name


@pytest.fixture
def optimizers() -> Registry:
    registry = Registry("optimizer")
    registry.add("adamw", dict, plugin="vitkit")
    registry.add("lion", list, plugin="zoo")
    return registry


def test_a_name_gives_what_was_registered(optimizers: Registry) -> None:
    assert optimizers["adamw"] is dict
    assert optimizers.names() == ("adamw", "lion")
    assert optimizers.plugins == {"adamw": "vitkit", "lion": "zoo"}
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
    assert nearest("cosine", ["SGD"]) is None
    assert nearest(3, ["three"]) is None
    assert did_you_mean("sgdd", ["sgd"]) == "; did you mean 'sgd'?"
    assert did_you_mean("zzz", ["sgd"]) == "."
