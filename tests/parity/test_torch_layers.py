"""Every layer against PyTorch's own module with the same weights: value and every gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from vitkit import nn
from vitkit.models.vit import PreLogits
from vitkit.nn.activation import ACTIVATIONS
from vitkit.ops.patches import Size

BATCH, TOKENS, DIM, HEADS, MLP_DIM = 3, 7, 12, 3, 20
TOKENS_SHAPE = (BATCH, TOKENS, DIM)
ROWS = BATCH * TOKENS  # terms of the longest sums here: a bias's gradient, over all tokens

TORCH_ACTIVATIONS: dict[str, Callable[..., Any]] = {
    "gelu": lambda tnn: tnn.GELU(),
    "gelu_tanh": lambda tnn: tnn.GELU(approximate="tanh"),
    "relu": lambda tnn: tnn.ReLU(),
    "silu": lambda tnn: tnn.SiLU(),
    "tanh": lambda tnn: tnn.Tanh(),
}


@pytest.mark.parametrize("uses", [1, 2])
def test_linear(uses: int, parity: Any) -> None:
    tnn = parity.torch.nn
    parity.layer_close(
        nn.Linear(DIM, DIM), tnn.Linear(DIM, DIM), TOKENS_SHAPE, reduction=ROWS, uses=uses
    )


@pytest.mark.parametrize("uses", [1, 2])
def test_layer_norm(uses: int, parity: Any) -> None:
    module = parity.torch.nn.LayerNorm(DIM, eps=1e-6)
    parity.layer_close(nn.LayerNorm(DIM), module, TOKENS_SHAPE, reduction=ROWS, uses=uses)


@pytest.mark.parametrize("name", TORCH_ACTIVATIONS)
@pytest.mark.parametrize("uses", [1, 2])
def test_activation(name: str, uses: int, parity: Any) -> None:
    module = TORCH_ACTIVATIONS[name](parity.torch.nn)
    layer = nn.Activation(ACTIVATIONS[name])
    parity.layer_close(layer, module, TOKENS_SHAPE, reduction=1, uses=uses)


@pytest.mark.parametrize("heads", [1, HEADS, DIM])
@pytest.mark.parametrize("uses", [1, 2])
def test_attention(heads: int, uses: int, parity: Any) -> None:
    module = parity.torch.nn.MultiheadAttention(DIM, heads, batch_first=True)
    parity.layer_close(
        nn.Attention(DIM, heads),
        module,
        TOKENS_SHAPE,
        reduction=ROWS,
        name=lambda key: key.replace("qkv.", "in_proj_").replace("proj.", "out_proj."),
        call=lambda module, x: module(x, x, x, need_weights=False)[0],
        uses=uses,
    )


def test_attention_weights(parity: Any) -> None:
    layer = parity.place(nn.Attention(DIM, HEADS))
    module = parity.torch.nn.MultiheadAttention(DIM, HEADS, batch_first=True)
    parity.copy_weights(
        layer, module, lambda key: key.replace("qkv.", "in_proj_").replace("proj.", "out_proj.")
    )
    x, tx = parity.normal(*TOKENS_SHAPE)
    _, expected = module(tx, tx, tx, average_attn_weights=False)
    parity.close(layer.weights(x), expected, reduction=DIM)


@pytest.mark.parametrize("name", TORCH_ACTIVATIONS)
@pytest.mark.parametrize("uses", [1, 2])
def test_mlp(name: str, uses: int, parity: Any) -> None:
    tnn = parity.torch.nn
    module = tnn.Sequential(
        tnn.Linear(DIM, MLP_DIM), TORCH_ACTIVATIONS[name](tnn), tnn.Linear(MLP_DIM, DIM)
    )
    layer = nn.MLP(DIM, MLP_DIM, ACTIVATIONS[name])
    parity.layer_close(
        layer,
        module,
        TOKENS_SHAPE,
        reduction=ROWS,
        name=lambda key: key.replace("fc1", "0").replace("fc2", "2"),
        uses=uses,
    )


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "relu"])
@pytest.mark.parametrize("wrap", [lambda block: block, nn.Checkpoint], ids=["plain", "checkpoint"])
@pytest.mark.parametrize("uses", [1, 2])
def test_block(
    name: str, wrap: Any, uses: int, parity: Any, torch_block: Any, torch_name: Any
) -> None:
    layer = wrap(nn.Block(DIM, HEADS, MLP_DIM, ACTIVATIONS[name], layer_norm_eps=1e-6))
    module = torch_block(DIM, HEADS, MLP_DIM, name, 1e-6)
    parity.layer_close(layer, module, TOKENS_SHAPE, reduction=ROWS, name=torch_name, uses=uses)


@pytest.mark.parametrize(("rate", "path"), [(0.3, 0.0), (0.0, 0.4), (0.3, 0.4)])
@pytest.mark.parametrize("wrap", [lambda block: block, nn.Checkpoint], ids=["plain", "checkpoint"])
def test_block_with_dropout(
    rate: float,
    path: float,
    wrap: Any,
    parity: Any,
    torch_block: Any,
    torch_name: Any,
    draws: Any,
) -> None:
    layer = wrap(nn.Block(DIM, HEADS, MLP_DIM, dropout=rate, drop_path=path))
    module = torch_block(DIM, HEADS, MLP_DIM, "gelu", 1e-6)
    draws(5, 6).put_in_block(module, BATCH, TOKENS, rate, path)
    ctx = nn.Context(train=True, seed=5, step=6)
    parity.layer_close(layer, module, TOKENS_SHAPE, reduction=ROWS, name=torch_name, ctx=ctx)


@pytest.mark.parametrize("kind", [nn.Dropout, nn.DropPath])
@pytest.mark.parametrize("uses", [1, 2])
def test_dropout(kind: Any, uses: int, parity: Any, draws: Any) -> None:
    drawn, shape = draws(8, 9), TOKENS_SHAPE if kind is nn.Dropout else (BATCH, 1, 1)
    parity.layer_close(
        kind(0.4),
        parity.torch.nn.Identity(),
        TOKENS_SHAPE,
        reduction=1,
        call=lambda _, x: x * drawn.mask(shape, 0.4),
        ctx=nn.Context(train=True, seed=8, step=9),
        uses=uses,
    )


@pytest.mark.parametrize("kind", [nn.Dropout, nn.DropPath])
def test_dropout_is_off_outside_training(kind: Any, parity: Any) -> None:
    module = parity.torch.nn.Dropout(0.4).eval()
    parity.layer_close(kind(0.4), module, TOKENS_SHAPE, reduction=1)


SIZES = [((8, 8), (4, 4), 3), ((6, 12), (3, 4), 2), ((5, 7), (5, 1), 1)]


@pytest.mark.parametrize(("image_size", "patch_size", "channels"), SIZES)
def test_patch_embed(image_size: Size, patch_size: Size, channels: int, parity: Any) -> None:
    numbers = channels * patch_size[0] * patch_size[1]
    tokens = image_size[0] * image_size[1] // (patch_size[0] * patch_size[1])
    parity.layer_close(
        nn.PatchEmbed(image_size, patch_size, channels, DIM),
        parity.torch.nn.Conv2d(channels, DIM, patch_size, stride=patch_size),
        (BATCH, channels, *image_size),
        reduction=max(numbers, BATCH * tokens, DIM),
        name=lambda key: key.removeprefix("proj."),
        call=lambda module, x: module(x).flatten(2).transpose(1, 2),
    )


def test_patch_projection(parity: Any) -> None:
    patch_size, channels = (3, 4), 2
    parity.layer_close(
        nn.PatchProjection(DIM, channels, patch_size),
        parity.torch.nn.Conv2d(channels, DIM, patch_size, stride=patch_size),
        (BATCH, TOKENS, channels * 12),
        reduction=24,  # numbers in a patch
        call=lambda module, x: module(x.reshape(-1, channels, *patch_size)).reshape(TOKENS_SHAPE),
    )


@pytest.mark.parametrize("kind", ["first", "mean"])
def test_pool(kind: str, parity: Any) -> None:
    layer, call = {
        "first": (nn.FirstToken(), lambda _, x: x[:, 0]),
        "mean": (nn.MeanToken(), lambda _, x: x.mean(dim=1)),
    }[kind]
    parity.layer_close(layer, parity.torch.nn.Identity(), TOKENS_SHAPE, reduction=TOKENS, call=call)


def test_pre_logits(parity: Any) -> None:
    tnn = parity.torch.nn
    parity.layer_close(
        PreLogits(DIM, 9),
        tnn.Sequential(tnn.Linear(DIM, 9), tnn.Tanh()),
        (BATCH, DIM),
        reduction=DIM,
        name=lambda key: key.replace("fc", "0"),
    )
