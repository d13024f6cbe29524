"""Layers and activations by name, what a block is made of, and what an activation may return."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from vitkit import nn, ops
from vitkit.backend import Array, ArrayModule, philox
from vitkit.nn import ACTIVATIONS, LAYERS, ActivationPair, Context
from vitkit.nn.init import SCHEMES
from vitkit.registry import BUILTIN, UnknownName
from vitkit.testing import directional_derivative_error, strict_device


@pytest.fixture
def zoo() -> Iterator[str]:
    """Return the name of a plugin that is forgotten when the test ends."""
    yield "zoo"
    ACTIVATIONS.remove("zoo")
    LAYERS.remove("zoo")


def draw(xp: ArrayModule, shape: tuple[int, ...], dtype: str = "float32", seed: int = 0) -> Array:
    return xp.asarray(philox(seed, "names").standard_normal(shape), dtype=dtype)


# --- tables ------------------------------------------------------------------------------------


def test_an_activation_is_a_pair() -> None:
    assert list(ACTIVATIONS) == ["gelu", "gelu_tanh", "relu", "silu", "quick_gelu", "tanh"]
    for name, pair in ACTIVATIONS.items():
        assert type(pair) is ActivationPair
        assert pair == (getattr(ops, name), getattr(ops, f"{name}_backward"))
        assert ACTIVATIONS.entry(name).plugin == BUILTIN


def test_registering_what_ships_again_changes_nothing() -> None:
    for table in (ACTIVATIONS, LAYERS):
        before = table.entries()
        for entry in before:
            objects = entry.value if isinstance(entry.value, tuple) else (entry.value,)
            table.add(entry.name, *objects, plugin=BUILTIN, **entry.details)
        assert table.entries() == before


def test_an_activation_of_a_plugin_is_a_pair_too(zoo: str, xp: ArrayModule) -> None:
    ACTIVATIONS.add("leaky", ops.relu, ops.relu_backward, plugin=zoo)
    pair = ACTIVATIONS["leaky"]
    assert pair.backward is ops.relu_backward
    x = draw(xp, (2, 3))
    assert (nn.Activation(pair, xp=xp)(x) == ops.relu(x, xp=xp)).all()


def test_layers_say_which_part_of_a_block_they_can_be() -> None:
    parts = {entry.details["part"]: entry.value for entry in LAYERS.entries()}
    assert parts == {"mlp": nn.MLP, "norm": nn.LayerNorm, "attention": nn.Attention}
    assert LAYERS["layer_norm"] is nn.LayerNorm


@pytest.mark.parametrize(
    ("table", "name", "message"),
    [
        (ACTIVATIONS, "gleu", r"no activation is named 'gleu'; did you mean 'gelu'\?"),
        (LAYERS, "layernorm", r"no layer is named 'layernorm'; did you mean 'layer_norm'\?"),
    ],
)
def test_an_unknown_name_gets_a_hint(table: Any, name: str, message: str) -> None:
    with pytest.raises(UnknownName, match=message):
        table[name]


# --- blocks ------------------------------------------------------------------------------------


def test_a_block_is_made_of_what_it_is_given(xp: ArrayModule) -> None:
    asked: list[tuple[Any, ...]] = []

    def mlp(*args: Any, **options: Any) -> nn.Module:
        asked.append((*args, options))
        return nn.Linear(8, 8)

    def norm(dim: int, eps: float) -> nn.Module:
        asked.append((dim, eps))
        return nn.Activation(ACTIVATIONS["tanh"])

    def attention(*args: Any, **options: Any) -> nn.Module:
        asked.append((*args, options))
        return nn.MLP(8, 5)

    scheme, silu = SCHEMES["timm"], ACTIVATIONS["silu"]
    block = nn.Block(
        8, 2, 12, silu, layer_norm_eps=1e-3, dropout=0.1, init=scheme,
        mlp=mlp, norm=norm, attention=attention,
    )  # fmt: skip
    options = {"dropout": 0.1, "init": scheme}
    assert asked == [(8, 1e-3), (8, 2, options), (8, 1e-3), (8, 12, silu, options)]
    block.place(xp, dtype="float64")
    assert [name for name, _ in block.named_parameters()] == [
        *("attn.fc1.weight", "attn.fc1.bias", "attn.fc2.weight", "attn.fc2.bias"),
        *("mlp.weight", "mlp.bias"),
    ]
    x, dy = (draw(xp, (2, 3, 8), "float64", seed) for seed in (0, 1))
    ctx = Context(train=True)
    block.forward(x, ctx)
    dx = block.backward(dy, ctx)
    assert len(ctx) == 0
    parameters = [p for _, p in block.named_parameters()]
    errors = [
        directional_derivative_error(
            lambda *_: (block(x) * dy).sum(),
            [x, *(p.value for p in parameters)],
            [dx, *(p.grad for p in parameters)],
            seed=seed,
            xp=xp,
        )
        for seed in range(3)
    ]
    assert min(errors) < 1e-6


def test_a_block_without_names_is_the_paper_s() -> None:
    block = nn.Block(8, 2, 12)
    assert [type(part) for _, part in block.children()] == [
        *(nn.LayerNorm, nn.Attention, nn.DropPath, nn.LayerNorm, nn.MLP, nn.DropPath),
    ]


# --- what an activation returns ----------------------------------------------------------------


def identity(x: Array, *, xp: ArrayModule) -> Array:
    return x + 0


def identity_backward(dy: Array, x: Array, *, xp: ArrayModule) -> Array:
    return dy + 0


def wide(x: Array, *, xp: ArrayModule) -> Array:
    return x.astype("float64")


def wide_backward(dy: Array, x: Array, *, xp: ArrayModule) -> Array:
    return dy.astype("float64")


def short(x: Array, *, xp: ArrayModule) -> Array:
    return x[..., :3]


def short_backward(dy: Array, x: Array, *, xp: ArrayModule) -> Array:
    return dy[..., :3]


def nothing(x: Array, *, xp: ArrayModule) -> Any:
    return None


def two_backward(dy: Array, x: Array, *, xp: ArrayModule) -> Any:
    return dy, x


@pytest.mark.parametrize(
    ("pair", "fault"),
    [
        ((wide, identity_backward), "wide returned float64 (2, 4) for float32 (2, 4);"),
        ((short, identity_backward), "short returned float32 (2, 3) for float32 (2, 4);"),
        ((nothing, identity_backward), "nothing returned an object of type NoneType for float32 "),
        ((identity, wide_backward), "wide_backward returned float64 (2, 4) for dy float32 (2, 4) "
         "and x float32 (2, 4);"),
        ((identity, short_backward), "short_backward returned float32 (2, 3) for dy float32 "),
        ((identity, two_backward), "two_backward returned an object of type tuple for dy float32 "),
    ],
)  # fmt: skip
def test_what_keeps_no_shape_or_dtype_is_named(
    pair: tuple[Callable[..., Any], Callable[..., Any]], fault: str, xp: ArrayModule
) -> None:
    block = nn.Block(4, 1, 4, ActivationPair(*pair), xp=xp)
    layer = dict(block.modules())["mlp.act"]
    with pytest.raises(ValueError, match=re.escape(f"Activation 'mlp.act': {__name__}.{fault}")):
        run(layer, draw(xp, (2, 4)))


def run(layer: nn.Module, x: Array) -> Array:
    ctx = Context(train=True)
    return layer.backward(layer.forward(x, ctx), ctx)


def test_a_gradient_that_came_in_another_dtype_is_shown(xp: ArrayModule) -> None:
    layer = nn.Activation((identity, identity_backward), xp=xp)
    ctx = Context(train=True)
    layer.forward(draw(xp, (2, 4)), ctx)
    with pytest.raises(ValueError, match=r"returned float64 \(2, 4\) for dy float64 \(2, 4\) and"):
        layer.backward(draw(xp, (2, 4), "float64"), ctx)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 4), (2, 3, 4, 5)])
def test_right_results_pass(dtype: str, shape: tuple[int, ...], xp: ArrayModule) -> None:
    for pair in [(identity, identity_backward), *ACTIVATIONS.values()]:
        dx = run(nn.Activation(pair, xp=xp), draw(xp, shape, dtype))
        assert (dx.shape, dx.dtype) == (shape, np.dtype(dtype))


def test_looking_at_the_result_waits_for_no_device() -> None:
    xp = strict_device.xp
    layer, x = nn.Activation((identity, identity_backward), xp=xp), draw(xp, (2, 4))
    with strict_device.count_syncs() as syncs:
        run(layer, x)
    assert syncs == []
