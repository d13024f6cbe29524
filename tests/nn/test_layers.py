"""The contract that every layer that ships keeps, by the kit that also checks plugins."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

from vitkit import nn
from vitkit.backend import Array, ArrayModule, philox, to_numpy
from vitkit.models.vit import PreLogits, ViT
from vitkit.nn import Context, Module
from vitkit.nn.activation import ACTIVATIONS
from vitkit.testing import assert_close
from vitkit.testing.layers import layer_checks
from vitkit.testing.parts.passes import BATCH, Watching


class Case(NamedTuple):
    """A layer, how it is made, the shape of one sample, and the rates of its dropout."""

    name: str
    make: Callable[..., Module]
    shape: tuple[int, ...]
    random: bool = False


TOKENS, WIDTH = 5, 8
SIZES = {"image_size": (4, 6), "patch_size": (2, 3), "dim": 8, "depth": 2, "num_heads": 2}
TINY = SIZES | {"num_classes": 3, "in_channels": 2, "dropout": 0.2, "drop_path": 0.3}


def vit(**options: Any) -> Module:
    """Return a whole model, which unlike a layer is placed unless told not to be."""
    placed = {"backend": None} if options.get("xp") is None else {}
    return ViT("Ti/2", **TINY | placed | options)


def block(**options: Any) -> Module:
    return nn.Block(WIDTH, 2, 12, dropout=0.2, drop_path=0.3, **options)


def checkpoint(**options: Any) -> Module:
    return nn.Checkpoint(block(), **options)


LAYERS = [
    Case("LayerNorm", lambda **o: nn.LayerNorm(WIDTH, **o), (TOKENS, WIDTH)),
    Case("Linear", lambda **o: nn.Linear(WIDTH, 3, **o), (TOKENS, WIDTH)),
    Case("Linear of vectors", lambda **o: nn.Linear(WIDTH, 3, **o), (WIDTH,)),
    *(
        Case(f"Activation {name}", lambda p=pair, **o: nn.Activation(p, **o), (TOKENS, WIDTH))
        for name, pair in ACTIVATIONS.items()
    ),
    Case("Dropout", lambda **o: nn.Dropout(0.3, **o), (TOKENS, WIDTH), True),
    Case("DropPath", lambda **o: nn.DropPath(0.5, **o), (TOKENS, WIDTH), True),
    Case("Attention", lambda **o: nn.Attention(WIDTH, 2, **o), (TOKENS, WIDTH)),
    Case(
        "Attention with dropout",
        lambda **o: nn.Attention(WIDTH, 4, dropout=0.2, **o),
        (TOKENS, WIDTH),
        True,
    ),
    Case("MLP", lambda **o: nn.MLP(WIDTH, 12, **o), (TOKENS, WIDTH)),
    Case(
        "MLP with dropout", lambda **o: nn.MLP(WIDTH, 12, dropout=0.2, **o), (TOKENS, WIDTH), True
    ),
    Case("Block", lambda **o: nn.Block(WIDTH, 2, 12, **o), (TOKENS, WIDTH)),
    Case("Block with dropout", block, (TOKENS, WIDTH), True),
    Case("Checkpoint", checkpoint, (TOKENS, WIDTH), True),
    Case("Checkpoint twice", lambda **o: nn.Checkpoint(checkpoint(), **o), (TOKENS, WIDTH), True),
    Case("PatchProjection", lambda **o: nn.PatchProjection(WIDTH, 2, (2, 3), **o), (4, 12)),
    Case("PatchEmbed", lambda **o: nn.PatchEmbed((4, 9), (2, 3), 2, WIDTH, **o), (2, 4, 9)),
    Case("FirstToken", lambda **o: nn.FirstToken(**o), (TOKENS, WIDTH)),
    Case("MeanToken", lambda **o: nn.MeanToken(**o), (TOKENS, WIDTH)),
    Case("PreLogits", lambda **o: PreLogits(WIDTH, 4, **o), (WIDTH,)),
    Case("ViT", vit, (2, 4, 6), True),
    Case(
        "ViT with everything",
        lambda **o: vit(pool="mean", representation_size=4, gradient_checkpointing=True, **o),
        (2, 4, 6),
        True,
    ),
]
layers = pytest.mark.parametrize("case", LAYERS, ids=[case.name for case in LAYERS])


def test_every_layer_that_ships_is_here() -> None:
    shipped = {
        value
        for value in vars(nn).values()
        if inspect.isclass(value) and issubclass(value, Module) and value is not Module
    }
    tested = {type(module) for case in LAYERS for _, module in case.make().modules()}
    watching = {nn.Timed}  # keeps what it counts, and waits for the device: test_wrappers.py
    assert shipped - watching <= tested


CHECKS = [
    pytest.param(
        case,
        check.name,
        id=f"{case.name}-{check.name}",
        marks=[pytest.mark.gpu] if check.name == "same on cupy" else [],
    )
    for case in LAYERS
    for check in layer_checks(case.make, case.shape)
]


@pytest.mark.parametrize(("case", "check"), CHECKS)
def test_contract(case: Case, check: str, xp: ArrayModule) -> None:
    checks = {each.name: each for each in layer_checks(case.make, case.shape, xp=xp)}
    checks[check].run()


def draw(xp: ArrayModule, shape: tuple[int, ...], dtype: str = "float32") -> Array:
    return xp.asarray(philox(0, "inputs").standard_normal(shape), dtype=dtype)


@layers
def test_the_layers_with_dropout_draw(case: Case, xp: ArrayModule) -> None:
    # The kit does not know which should; that what is drawn matters is checked there.
    ctx = Context(train=True)
    case.make(xp=xp).forward(draw(xp, (BATCH, *case.shape)), ctx)
    assert (ctx.seeds.drawn > 0) == case.random


@layers
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_arrays_of_the_input_s_dtype_are_kept(case: Case, dtype: str, xp: ArrayModule) -> None:
    # A plugin may keep a mask or indices, what ships does not.
    ctx = Watching(train=True)
    case.make().place(xp, dtype=dtype).forward(draw(xp, (BATCH, *case.shape), dtype), ctx)
    assert ctx.dtypes <= {np.dtype(dtype)}


def test_backward_out_of_order_is_an_error(xp: ArrayModule) -> None:
    layer = nn.Block(WIDTH, 2, 12, xp=xp)
    ctx = Context(train=True)
    y = layer.forward(draw(xp, (BATCH, TOKENS, WIDTH)), ctx)
    with pytest.raises(RuntimeError, match=r"LayerNorm 'norm2' asked for .* those of MLP 'mlp'"):
        layer.norm2.backward(y, ctx)


@pytest.mark.parametrize("layer", [nn.Dropout, nn.DropPath])
@pytest.mark.parametrize("rate", [-0.1, 1, 1.5, float("nan")])
def test_a_rate_is_below_one(layer: Any, rate: float) -> None:
    with pytest.raises(ValueError, match=r"must be in \[0, 1\); got"):
        layer(rate)


@pytest.mark.parametrize("layer", [nn.Dropout, nn.DropPath])
def test_dropout_in_evaluation_hands_its_input_on(layer: Any, xp: ArrayModule) -> None:
    x = draw(xp, (BATCH, WIDTH))
    assert layer(0.5, xp=xp)(x) is x


@pytest.mark.parametrize("num_heads", [0, 3, 16])
def test_heads_divide_the_width(num_heads: int) -> None:
    with pytest.raises(ValueError, match=f"must divide dim; got num_heads={num_heads}, dim=8"):
        nn.Attention(8, num_heads)


def test_patches_divide_the_image() -> None:
    with pytest.raises(ValueError, match=r"must divide image_size; got patch_size=\(2, 3\)"):
        nn.PatchEmbed((4, 8), (2, 3), 1, 8)
    assert nn.PatchEmbed((4, 9), (2, 3), 1, 8).grid == (2, 3)


def test_attention_weights_are_those_of_forward(xp: ArrayModule) -> None:
    case = next(case for case in LAYERS if case.name == "Attention")
    layer = case.make().place(xp, dtype="float64")
    for _, parameter in layer.named_parameters():
        parameter.value += 0.5 * draw(xp, parameter.shape, "float64")
    x = draw(xp, (BATCH, *case.shape), "float64")
    p = to_numpy(layer.weights(x))
    assert p.shape == (BATCH, 2, TOKENS, TOKENS)
    assert_close(p.sum(axis=-1), np.ones((BATCH, 2, TOKENS)))
    values = to_numpy(layer.qkv(x))[..., 2 * WIDTH :].reshape(BATCH, TOKENS, 2, WIDTH // 2)
    gathered = np.einsum("bhij,bjhd->bihd", p, values).reshape(BATCH, TOKENS, WIDTH)
    assert_close(layer(x), to_numpy(layer.proj(xp.asarray(gathered))))


def test_checkpointing_keeps_less(xp: ArrayModule) -> None:
    kept = []
    for make in (block, checkpoint):
        ctx = Context(train=True)
        make(xp=xp).forward(draw(xp, (BATCH, TOKENS, WIDTH)), ctx)
        kept.append(ctx.nbytes)
    assert kept[1] < kept[0] / 10


def test_unwrap_finds_what_is_inside() -> None:
    inner = block()
    assert nn.unwrap(nn.Checkpoint(nn.Checkpoint(inner))) is inner
    assert nn.unwrap(inner) is inner
