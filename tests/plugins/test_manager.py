"""Plugins fill registries, vitkit's own first and by the same hooks."""

from __future__ import annotations

import inspect
from dataclasses import fields
from types import ModuleType
from typing import Any

import pytest

from vitkit import ops, optim
from vitkit.data.dataset import Splits
from vitkit.plugins import PluginError, hookimpl, hookspecs, registries

KNOWN = {
    "activations": {"gelu", "gelu_tanh", "relu", "silu", "quick_gelu"},
    "optimizers": {"sgd", "adam", "adamw", "lamb", "lion"},
    "schedules": {"constant", "cosine", "linear", "rsqrt", "step"},
    "losses": {"softmax_cross_entropy", "sigmoid_bce", "mean_squared_error"},
    "datasets": {"digits", "mnist", "fashion_mnist", "cifar10", "cifar100", "folder", "npz"},
    "transforms": {"crop", "flip", "affine"},
}


class Zoo:
    @hookimpl
    def register_optimizers(self, register: Any) -> None:
        register("tiger", dict)

    @hookimpl
    def register_activations(self, register: Any) -> None:
        register("mish", abs, max)


@pytest.mark.parametrize("kind", KNOWN)
def test_what_ships_is_registered_by_vitkit(kind: str) -> None:
    registry = getattr(registries(), kind)
    assert set(registry.names()) >= KNOWN[kind]
    assert set(registry.plugins.values()) == {"vitkit"}


def test_names_stand_for_the_things_they_say() -> None:
    filled = registries()
    assert filled.optimizers["adamw"] is optim.AdamW
    assert filled.schedules["rsqrt"] is optim.Rsqrt
    assert filled.losses["sigmoid_bce"] is ops.sigmoid_bce
    assert filled.activations["silu"] == (ops.silu, ops.silu_backward)
    assert isinstance(filled.datasets["digits"](), Splits)


def test_each_registry_has_its_hook_and_each_hook_its_registry() -> None:
    kinds = {f"register_{field.name}" for field in fields(registries())}
    hooks = {name for name in vars(hookspecs) if name.startswith("register_")}
    assert hooks == kinds
    for name in hooks:
        assert list(inspect.signature(getattr(hookspecs, name)).parameters) == ["register"]


def test_a_plugin_adds_and_leaves_nothing_behind() -> None:
    filled = registries(Zoo())
    assert filled.optimizers["tiger"] is dict
    assert filled.optimizers.plugins["tiger"] == "Zoo"
    assert filled.activations["mish"] == (abs, max)
    assert "tiger" not in registries().optimizers


def test_a_module_is_a_plugin() -> None:
    module = ModuleType("zoo")

    @hookimpl
    def register_losses(register: Any) -> None:
        register("focal", abs)

    module.register_losses = register_losses  # type: ignore[attr-defined]
    assert registries(module).losses.plugins["focal"] == "zoo"


def test_a_clash_with_vitkit_names_both() -> None:
    class Clash:
        @hookimpl
        def register_transforms(self, register: Any) -> None:
            register("crop", abs)

    with pytest.raises(PluginError) as caught:
        registries(Clash())
    assert str(caught.value) == (
        "Plugin 'Clash' registers the transform 'crop', which plugin 'vitkit' has already "
        "registered."
    )


def test_a_clash_between_plugins_blames_the_later() -> None:
    class Other:
        @hookimpl
        def register_optimizers(self, register: Any) -> None:
            register("tiger", list)

    with pytest.raises(PluginError, match=r"'Other' registers .*'tiger', which plugin 'Zoo'"):
        registries(Zoo(), Other())


def test_an_unknown_hook_names_the_plugin() -> None:
    class Typo:
        @hookimpl
        def register_optimisers(self, register: Any) -> None:
            register("tiger", dict)

    with pytest.raises(PluginError, match=r"Plugin 'Typo' cannot be used.*register_optimisers"):
        registries(Typo())


def test_a_wrong_signature_names_the_plugin() -> None:
    class Wrong:
        @hookimpl
        def register_optimizers(self, registry: Any) -> None:
            registry("tiger", dict)

    with pytest.raises(PluginError, match=r"(?s)Plugin 'Wrong' cannot be used.*registry"):
        registries(Wrong())


def test_a_plugin_given_twice_is_named() -> None:
    zoo = Zoo()
    with pytest.raises(PluginError, match=r"'Zoo' cannot be used.*already registered"):
        registries(zoo, zoo)
