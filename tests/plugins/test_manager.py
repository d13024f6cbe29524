"""Plugins are taken up whole or not at all, vitkit's own first and by the same hooks."""

from __future__ import annotations

import functools
import inspect
import re
from dataclasses import fields
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import vitkit
from vitkit import nn, ops, optim, plugins
from vitkit.data.dataset import Splits
from vitkit.ops import Op
from vitkit.plugins import Plugin, PluginError, Plugins, Registries, hookimpl, hookspecs
from vitkit.plugins.accept import DETAILS
from vitkit.plugins.registries import KINDS

KNOWN = {
    "activations": {"gelu", "gelu_tanh", "relu", "silu", "quick_gelu", "tanh"},
    "optimizers": {"sgd", "adam", "adamw", "lamb", "lion"},
    "schedules": {"constant", "cosine", "linear", "rsqrt", "step"},
    "losses": {"softmax_cross_entropy", "sigmoid_bce", "mean_squared_error"},
    "datasets": {"digits", "mnist", "fashion_mnist", "cifar10", "cifar100", "folder", "npz"},
    "layers": {"mlp", "layer_norm", "attention"},
    "transforms": {"crop", "flip", "affine"},
    "models": {"Ti", "S", "B", "L", "H"},
    "callbacks": {"early_stopping"},
}


class Tiger(optim.Optimizer):
    def update(self, w: Any, g: Any, **kwargs: Any) -> None:
        w -= kwargs["lr"] * g


def double(x: Any, *, xp: Any) -> Any:
    return 2 * x


def double_backward(dy: Any, x: Any, *, xp: Any) -> Any:
    return 2 * dy


class Zoo:
    @hookimpl
    def register_optimizers(self, register: Any) -> None:
        register("tiger", Tiger)

    @hookimpl
    def register_activations(self, register: Any) -> None:
        register("double", double, double_backward)


@pytest.fixture
def own() -> Plugins:
    """Return plugins of their own, apart from those of the process."""
    return Plugins(Registries())


def plugin_with(**hooks: Any) -> ModuleType:
    """Return a module with hooks of these names, each doing what it is told with register."""
    module = ModuleType("zoo")
    for name, body in hooks.items():
        setattr(module, name, hookimpl(_named_register(body)))
    return module


def _named_register(body: Any) -> Any:
    def hook(register: Any) -> None:
        body(register)

    return hook


def why(own: Plugins, plugin: object) -> str:
    """Return why a plugin cannot be used, after making sure that it left nothing behind."""
    before = {kind: registry.names() for kind, registry in own.registries}
    with pytest.raises(PluginError) as caught:
        own.load(plugin, Plugin("zoo"))
    assert {kind: registry.names() for kind, registry in own.registries} == before
    assert list(own.loaded) == ["vitkit"]
    own.load(Zoo(), Plugin("after"))  # nor a half-registered plugin
    own.unload("after")
    return str(caught.value)


@pytest.mark.parametrize("kind", KNOWN)
def test_what_ships_is_registered_by_vitkit(kind: str, own: Plugins) -> None:
    registry = getattr(own.registries, kind)
    assert set(registry.names()) >= KNOWN[kind]
    assert {entry.plugin for entry in registry.entries()} == {"vitkit"}
    assert set(own.loaded["vitkit"].provides[kind]) == set(registry.names())


def test_names_stand_for_the_things_they_say(own: Plugins) -> None:
    names = own.registries
    assert names.optimizers["adamw"] is optim.AdamW
    assert names.schedules["rsqrt"] is optim.Rsqrt
    assert names.losses["sigmoid_bce"] is ops.sigmoid_bce
    assert names.activations["silu"] == (ops.silu, ops.silu_backward)
    assert names.layers["mlp"] is nn.MLP
    assert isinstance(names.datasets["digits"](), Splits)


def test_each_registry_has_its_hook_and_each_hook_its_registry() -> None:
    hooks = {name for name in vars(hookspecs) if name.startswith("register_")}
    assert hooks == {f"register_{field.name}" for field in fields(Registries)}
    assert set(KINDS) == set(DETAILS)
    for name in hooks:
        assert list(inspect.signature(getattr(hookspecs, name)).parameters) == ["register"]


def test_a_plugin_adds_and_goes_without_a_trace(own: Plugins) -> None:
    record = own.load(Zoo(), Plugin("zoo", origin="dist-zoo", version="1.2"))
    assert own.registries.optimizers["tiger"] is Tiger
    assert own.registries.optimizers.entry("tiger").plugin == "zoo (dist-zoo 1.2)"
    assert record.provides == {"activations": ["double"], "optimizers": ["tiger"]}
    own.unload("dist_zoo")
    assert "tiger" not in own.registries.optimizers
    assert list(own.loaded) == ["vitkit"]


def test_loading_again_replaces(own: Plugins) -> None:
    own.load(Zoo(), Plugin("zoo"))
    edited = plugin_with(register_optimizers=lambda register: register("lynx", Tiger))
    own.load(edited, Plugin("zoo"))
    assert "lynx" in own.registries.optimizers
    assert "tiger" not in own.registries.optimizers


def test_a_failed_reload_keeps_what_was_there(own: Plugins) -> None:
    own.load(Zoo(), Plugin("zoo"))
    with pytest.raises(PluginError):
        own.load(plugin_with(register_optimizers=lambda r: r("adamw", Tiger)), Plugin("zoo"))
    assert own.registries.optimizers["tiger"] is Tiger
    assert own.loaded["zoo"].provides["optimizers"] == ["tiger"]


def test_a_clash_with_vitkit_names_both(own: Plugins) -> None:
    clash = plugin_with(register_transforms=lambda register: register("crop", abs))
    assert why(own, clash) == (
        "Plugin 'zoo' registers the transform 'crop', which plugin 'vitkit' has already registered."
    )


def test_a_clash_between_plugins_blames_the_later(own: Plugins) -> None:
    own.load(Zoo(), Plugin("zoo"))
    other = plugin_with(register_optimizers=lambda register: register("tiger", Tiger))
    with pytest.raises(PluginError, match=r"'other' registers .*'tiger', which plugin 'zoo'"):
        own.load(other, Plugin("other"))
    assert own.registries.optimizers["tiger"] is Tiger


class NotAnOptimizer:
    pass


class Idle(optim.Optimizer):
    pass


MISTAKES: dict[str, tuple[Any, str]] = {
    "a name twice": (
        {"register_losses": lambda r: (r("mse", loss), r("mse", loss))},
        r"registers the loss 'mse' twice",
    ),
    "an unknown hook": (
        {"register_optimisers": lambda r: None},
        r"no hook 'register_optimisers'; did you mean 'register_optimizers'\?",
    ),
    "a hook of nothing known": (
        {"brew_coffee": lambda r: None},
        r"no hook 'brew_coffee'\. Known: register_activations, ",
    ),
    "nothing registered": (
        {"register_losses": lambda r: None},
        r"its hooks register nothing",
    ),
    "an error": (
        {"register_losses": lambda r: 1 / 0},
        r"ZeroDivisionError: division by zero",
    ),
    "an exit": (
        {"register_losses": lambda r: exit(3)},
        r"tried to end the program \(SystemExit: 3\)",
    ),
    "one function of an activation": (
        {"register_activations": lambda r: r("double", double)},
        r"'double': got 1 objects after the name; write register\(name, function, backward\)",
    ),
    "an activation without xp": (
        {"register_activations": lambda r: r("double", lambda x: x, double_backward)},
        r"takes \(x\); it must take \(x, \*, xp\)",
    ),
    "a backward without dy": (
        {"register_activations": lambda r: r("double", double, double)},
        r"double takes \(x: .*; it must take \(dy, x, \*, xp\)",
    ),
    "no optimizer": (
        {"register_optimizers": lambda r: r("tiger", NotAnOptimizer)},
        r"NotAnOptimizer is not a subclass of vitkit\.optim\.Optimizer",
    ),
    "an optimizer without update": (
        {"register_optimizers": lambda r: r("idle", Idle)},
        r"Idle does not define update\(w, g, ",
    ),
    "no callable": (
        {"register_schedules": lambda r: r("flat", 3)},
        r"got 3, which cannot be called",
    ),
    "a misspelt keyword": (
        {"register_schedules": lambda r: r("flat", abs, exampel={})},
        r"exampel= is not understood; did you mean 'example'\? Known: example",
    ),
    "no part of a block": (
        {"register_layers": lambda r: r("swish", nn.MLP, part="mpl")},
        r"part: got 'mpl', expected one of mlp, norm, attention",
    ),
    "no layer": (
        {"register_layers": lambda r: r("swish", NotAnOptimizer)},
        r"NotAnOptimizer is not a subclass of vitkit\.nn\.module\.Module",
    ),
    "a loss without xp": (
        {"register_losses": lambda r: r("mse", lambda logits, labels: 0)},
        r"it must take \(logits, labels, \*, xp\)",
    ),
    "no callback": (
        {"register_callbacks": lambda r: r("beep", NotAnOptimizer)},
        r"NotAnOptimizer is not a subclass of vitkit\.train\.callbacks\.base\.Callback",
    ),
    "a model without sizes": (
        {"register_models": lambda r: r("Mu", dim=8)},
        r"the model 'Mu': depth, num_heads must be given",
    ),
    "a model of unknown options": (
        {"register_models": lambda r: r("Mu", dim=8, depth=1, num_heads=2, colour=3)},
        r"colour= is not an option of ViT",
    ),
    "a model with a patch size": (
        {"register_models": lambda r: r("Mu", dim=8, depth=1, num_heads=2, patch_size=4)},
        r"patch_size= is not an option of ViT that a size can have",
    ),
    "a kernel of no operation": (
        {"register_kernels": lambda r: r("layernorm", abs)},
        r"'layernorm': no operation has that name; did you mean 'layer_norm'\?",
    ),
    "a kernel of another signature": (
        {"register_kernels": lambda r: r("gelu", lambda x: x)},
        r"The numpy kernel of gelu takes \(x\); it must take \(x, \*, xp\)",
    ),
    "a kernel for no array module": (
        {"register_kernels": lambda r: r("gelu", lambda x, *, xp: x, backend="Numpy")},
        r"backend: got 'Numpy', expected one of cupy, numpy.*; did you mean 'numpy'",
    ),
    "a name that is no text": (
        {"register_losses": lambda r: r(3, loss)},
        r"it registers the loss 3; a name is made of letters",
    ),
    "a wrong example": (
        {"register_schedules": lambda r: r("flat", abs, example="lr=1")},
        r"example: got 'lr=1', expected a dict of arguments",
    ),
    "a wrong shape": (
        {"register_layers": lambda r: r("swish", nn.MLP, example={}, shape=(5, "8"))},
        r"shape: got \(5, '8'\), expected a tuple of whole numbers",
    ),
    "a twin that is no function": (
        {"register_losses": lambda r: r("mse", loss, torch="mse_loss")},
        r"torch: got 'mse_loss', which cannot be called",
    ),
    "a prepare of another signature": (
        {"register_datasets": lambda r: r("photos", abs, prepare=lambda folder: folder)},
        r"takes \(folder\); it must take \(folder, progress\)",
    ),
    "a name with a dash": (
        {"register_losses": lambda r: r("my-loss", loss)},
        r"a name is made of letters, digits and '_'",
    ),
}


def loss(logits: Any, labels: Any, *, xp: Any) -> Any:
    return 0, logits


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_and_nothing_is_left(mistake: str, own: Plugins) -> None:
    hooks, expected = MISTAKES[mistake]
    message = why(own, plugin_with(**hooks))
    assert message.startswith("Plugin 'zoo' ")
    assert re.search(expected, message), message
    assert "\n" not in message


def test_a_hook_that_is_not_marked(own: Plugins) -> None:
    module = ModuleType("zoo")
    module.register_losses = lambda register: None  # type: ignore[attr-defined]
    assert "register_losses is not marked: write @vitkit.hookimpl above it" in why(own, module)


def test_a_module_without_hooks(own: Plugins) -> None:
    assert "it implements no hook" in why(own, ModuleType("zoo"))


def test_a_hook_that_is_no_plain_function(own: Plugins) -> None:
    async def waits(register: Any) -> None:
        register("mse", loss)

    def yields(register: Any) -> Any:
        yield register("mse", loss)

    for hook, expected in (
        (waits, "register_losses must be a plain function: write def, not async def"),
        (yields, "register_losses must be a plain function, without yield"),
        (functools.partial(yields), "register_losses must be a function; got an object of partial"),
    ):
        module = ModuleType("zoo")
        module.register_losses = hookimpl(hook)  # type: ignore[attr-defined]
        assert expected in why(own, module)


def test_register_ends_with_its_hook(own: Plugins) -> None:
    kept: list[Any] = []

    def keep(register: Any) -> None:
        register("mse", loss)
        kept.append(register)

    own.load(plugin_with(register_losses=keep), Plugin("zoo"))
    with pytest.raises(PluginError, match="calls register after its hook has returned"):
        kept[0]("late", loss)
    assert "late" not in own.registries.losses


def test_objects_that_are_made_when_looked_at_are_left_alone(own: Plugins) -> None:
    class Lazy:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("not ready")

    module = plugin_with(register_losses=lambda register: register("mse", loss))
    module.later = Lazy()  # type: ignore[attr-defined]
    own.load(module, Plugin("zoo"))
    assert "mse" in own.registries.losses


def test_names_that_differ_by_a_dash_are_two(own: Plugins) -> None:
    for name, registered in (("a_b", "one"), ("a-b", "two"), ("a-b", "three")):
        hook = {"register_losses": lambda r, registered=registered: r(registered, loss)}
        own.load(plugin_with(**hook), Plugin(name))
    assert list(own.loaded) == ["vitkit", "a_b", "a-b"]
    assert {"one", "three"} <= set(own.registries.losses)
    assert "two" not in own.registries.losses


def test_a_distribution_that_is_called_as_its_plugin_shows_its_version() -> None:
    assert Plugin("good", origin="good", version="1.0").label == "good 1.0"


@pytest.mark.parametrize("names", [("registry",), (), ("register", "more")])
def test_a_hook_of_another_signature(names: tuple[str, ...], own: Plugins) -> None:
    hooks = {
        ("registry",): lambda registry: None,
        (): lambda: None,
        ("register", "more"): lambda register, more: None,
    }
    module = ModuleType("zoo")
    module.register_losses = hookimpl(hooks[names])  # type: ignore[attr-defined]
    expected = f"register_losses({', '.join(names)}) must take one argument, 'register'"
    assert expected in why(own, module)


@pytest.mark.parametrize(("api", "cure"), [(2, "upgrade vitkit"), (0, "upgrade the plugin")])
def test_another_version_of_the_hooks(api: int, cure: str, own: Plugins) -> None:
    module = plugin_with(register_losses=lambda register: register("mse", loss))
    module.VITKIT_API = api  # type: ignore[attr-defined]
    assert f"version {api} of the plugin hooks, and this vitkit has version 1: {cure}" in why(
        own, module
    )
    module.VITKIT_API = 1  # type: ignore[attr-defined]
    own.load(module, Plugin("zoo"))


@pytest.mark.usefixtures("kernels_on")
def test_a_plugins_kernel_is_asked_before_the_one_that_ships(own: Plugins) -> None:
    def fast(x: Any, *, xp: Any) -> Any:
        return NotImplemented if x.ndim == 1 else x + 7

    x = np.ones((2, 2), np.float32)
    expected = ops.relu(x, xp=np)
    own.load(plugin_with(register_kernels=lambda r: r("relu", fast)), Plugin("zoo"))
    try:
        np.testing.assert_array_equal(ops.relu(x, xp=np), x + 7)
        np.testing.assert_array_equal(ops.relu(x[0], xp=np), expected[0])
        clash = plugin_with(register_kernels=lambda r: r("relu", fast))
        with pytest.raises(PluginError, match="kernel 'relu_numpy', which plugin 'zoo'"):
            own.load(clash, Plugin("other"))
        assert own.registries.kernels["relu_numpy"] is fast
    finally:
        own.unload("zoo")
    np.testing.assert_array_equal(ops.relu(x, xp=np), expected)


def test_a_kernel_for_an_activation_of_the_same_plugin(own: Plugins) -> None:
    op = Op(double)
    module = plugin_with(
        register_activations=lambda r: r("double", op, double_backward),
        register_kernels=lambda r: r("double", lambda x, *, xp: x + x),
    )
    own.load(module, Plugin("zoo"))
    assert list(op.overrides) == ["numpy"]
    own.unload("zoo")
    assert op.overrides == {}


def test_an_error_is_traced_to_the_plugin_it_comes_from(own: Plugins) -> None:
    own.load(Zoo(), Plugin("zoo", module=__name__))
    with pytest.raises(TypeError) as caught:
        double(None, xp=None)
    assert own.who(caught.value) is own.loaded["zoo"]
    own.loaded["zoo"].module = "another"
    assert own.who(caught.value) is None


@pytest.mark.usefixtures("fresh")
def test_a_model_finds_the_activation_of_a_loaded_plugin() -> None:
    sizes = {"image_size": 8, "num_classes": 3, "dim": 8, "depth": 1, "num_heads": 2}
    with pytest.raises(vitkit.ConfigError, match="activation: got 'double'"):
        vitkit.ViT("Ti/4", activation="double", **sizes)
    plugins.load(Zoo())
    model = vitkit.ViT("Ti/4", activation="double", **sizes)
    assert model(np.zeros((1, 3, 8, 8), np.float32)).shape == (1, 3)
    plugins.unload("Zoo")
    with pytest.raises(vitkit.ConfigError, match="activation: got 'double'"):
        vitkit.ViT("Ti/4", activation="double", **sizes)
