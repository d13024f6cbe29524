"""Changing a placed model: replacing layers, copying, and noticing what was changed by hand."""

import copy
from typing import Any

import numpy as np
import pytest

import vitkit
from vitkit import nn, ops
from vitkit.backend import ArrayModule, to_numpy
from vitkit.optim import EMA, AdamW

SIZES: dict[str, Any] = {
    "image_size": 8, "patch_size": 4, "in_channels": 1, "num_classes": 3, "dim": 8, "depth": 2,
    "num_heads": 2,
}  # fmt: skip


def make(xp: ArrayModule, **options: Any) -> vitkit.ViT:
    return vitkit.ViT("Ti/4", xp=xp, dtype="float64", **SIZES, **options)


def step(model: vitkit.ViT, optimizer: AdamW, images: np.ndarray, labels: np.ndarray) -> None:
    ctx = nn.Context(train=True)
    logits = model.forward(model.xp.asarray(images), ctx)
    _, dlogits = ops.softmax_cross_entropy(logits, model.xp.asarray(labels), xp=model.xp)
    model.zero_grad()
    model.backward(dlogits, ctx)
    optimizer.step()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["head", "blocks.1.mlp", "blocks.0"])
def test_a_replaced_layer_learns(
    name: str, checkpointing: bool, xp: ArrayModule, rng: np.random.Generator
) -> None:
    model = make(xp, gradient_checkpointing=checkpointing)
    model.head.weight.value[...] = xp.asarray(rng.normal(size=(3, 8)))
    before = model.state_dict()
    layer = {"head": nn.Linear(8, 5), "blocks.1.mlp": nn.MLP(8, 12), "blocks.0": nn.Block(8, 1, 6)}
    model.replace(name, layer[name], seed=1)
    placed = model.state_dict()
    for key, value in before.items():
        if not key.startswith(name):
            np.testing.assert_array_equal(placed[key], value)
    step(model, AdamW().attach(model), rng.normal(size=(4, 1, 8, 8)), np.arange(4) % 3)
    after = model.state_dict()
    assert all((after[key] != placed[key]).any() for key in after if key.startswith(name))


def test_a_placed_layer_keeps_its_weights(xp: ArrayModule) -> None:
    model = make(xp)
    head = nn.Linear(8, 5, xp=xp)
    weight = to_numpy(head.weight.value).copy()
    model.replace("head", head)
    np.testing.assert_array_equal(model.state_dict()["head.weight"], weight)


@pytest.mark.parametrize("name", ["haed", "blocks.7", "blocks.x", "blocks.0.mlp.fc3", "config"])
def test_there_is_no_such_layer(name: str, xp: ArrayModule) -> None:
    with pytest.raises(KeyError, match=f"ViT has no layer '{name}'"):
        make(xp).replace(name, nn.Linear(8, 3))


@pytest.mark.parametrize("use", [AdamW().attach, EMA, nn.Module.state_dict, nn.Module.zero_grad])
def test_what_was_replaced_by_hand_is_noticed(use: Any, xp: ArrayModule) -> None:
    model = make(xp)
    model.head = nn.Linear(8, 5, xp=xp)
    with pytest.raises(RuntimeError, match=r"head.weight, head.bias: replaced .* model\.replace"):
        use(model)


def test_what_was_placed_by_itself_is_noticed(xp: ArrayModule) -> None:
    model = make(xp)
    model.blocks[1].place(xp, dtype="float64")
    with pytest.raises(RuntimeError, match=r"blocks\.1\.norm1\.weight.*placed alone"):
        AdamW().attach(model)


@pytest.mark.parametrize("change", ["head", "append", "dict", "place"])
def test_changes_between_steps_are_noticed(change: str, xp: ArrayModule) -> None:
    model = make(xp)
    model.extras = {"a": nn.Linear(2, 2)}  # type: ignore[attr-defined]
    model.place(xp)
    for _ in range(3):
        model.zero_grad()
    if change == "head":
        model.head = nn.Linear(8, 3, xp=xp)
    elif change == "append":
        model.blocks.append(nn.Block(8, 2, 8))
    elif change == "dict":
        model.extras["a"] = nn.Linear(2, 2)  # type: ignore[attr-defined]
    else:
        model.blocks[0].place(xp)
    with pytest.raises(RuntimeError, match="replaced or placed alone"):
        model.zero_grad()


def test_other_attributes_may_change(xp: ArrayModule) -> None:
    model = make(xp)
    model.zero_grad()
    model.remark = "mine"  # type: ignore[attr-defined]
    model.zero_grad()


def test_an_optimizer_from_before_refuses(xp: ArrayModule) -> None:
    model = make(xp)
    optimizer = AdamW().attach(model)
    model.replace("head", nn.Linear(8, 5))
    with pytest.raises(RuntimeError, match="attach"):
        optimizer.step()


def test_a_copy_has_memory_of_its_own(xp: ArrayModule, rng: np.random.Generator) -> None:
    model = make(xp)
    twin = copy.deepcopy(model)
    before = model.state_dict()
    assert twin.state_dict().keys() == before.keys()
    model.head.bias.value[...] = 1
    step(twin, AdamW().attach(twin), rng.normal(size=(4, 1, 8, 8)), np.arange(4) % 3)
    np.testing.assert_array_equal(model.state_dict()["pos_embed"], before["pos_embed"])
    assert (twin.state_dict()["head.bias"] != 1).all()


class Odd(nn.Module):
    """Layers and parameters in a tuple, a dict and a list."""

    def __init__(self) -> None:
        self.pair = (nn.Linear(2, 2), nn.Linear(2, 2))
        self.named = {"a": nn.LayerNorm(2)}
        self.scales = [nn.Parameter((3,), lambda rng, shape: np.ones(shape))]


def test_layers_are_found_wherever_they_are_kept(xp: ArrayModule) -> None:
    names = [name for name, _ in Odd().place(xp).named_parameters()]
    layers = ["pair.0", "pair.1", "named.a"]
    assert names == ["scales.0", *(f"{k}.{w}" for k in layers for w in ("weight", "bias"))]


def test_a_failed_load_changes_nothing(xp: ArrayModule) -> None:
    model = make(xp)
    before = model.state_dict()
    for wrong in (np.array("x"), np.zeros(3) * 1j, [0.0, 0.0, 0.0]):
        broken = {**{name: value + 1 for name, value in before.items()}, "head.bias": wrong}
        with pytest.raises(ValueError, match=r"head\.bias: "):
            model.load_state_dict(broken)
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_gradients_stay_float32_whatever_the_loss_gives(
    xp: ArrayModule, rng: np.random.Generator
) -> None:
    model = vitkit.ViT("Ti/4", xp=xp, **SIZES)
    ctx = nn.Context(train=True)
    model.forward(xp.asarray(rng.normal(size=(2, 1, 8, 8)), dtype="float32"), ctx)
    dimages = model.backward(xp.asarray(np.eye(2, 3)), ctx)
    assert dimages.dtype == "float32"


def test_wrong_arguments_are_named(xp: ArrayModule) -> None:
    with pytest.raises(ValueError, match=r"Linear takes arrays \(\.\.\., 4\); got shape \(2, 3\)"):
        nn.Linear(4, 2, xp=xp)(xp.zeros((2, 3), "float32"))
    with pytest.raises(ValueError, match=r"LayerNorm takes arrays \(\.\.\., 4\)"):
        nn.LayerNorm(4, xp=xp)(xp.zeros((2, 3), "float32"))
    with pytest.raises(ValueError, match=r"pair of a function and its gradient.*got 'gelu'"):
        nn.Activation("gelu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dtype must be 'float32' or 'float64'; got 'float33'"):
        nn.Linear(2, 2).place(xp, dtype="float33")
    assert nn.PatchEmbed(8, 4, 1, 6).grid == (2, 2)
