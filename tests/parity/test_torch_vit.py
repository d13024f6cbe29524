"""The whole model against a ViT made of PyTorch's own modules, with the same weights."""

from __future__ import annotations

from typing import Any

import pytest

from vitkit import ViT, nn, ops

SIZES: dict[str, Any] = {
    "image_size": 12,
    "patch_size": 4,
    "in_channels": 3,
    "num_classes": 7,
    "dim": 18,
    "depth": 3,
    "num_heads": 3,
    "mlp_dim": 31,
}
OBLONG = {"image_size": (6, 12), "patch_size": (3, 2), "in_channels": 2}

CASES: dict[str, dict[str, Any]] = {
    "paper": {},
    "gelu_tanh": {"activation": "gelu_tanh"},
    "relu": {"activation": "relu"},
    "mean": {"pool": "mean"},
    "pre-training head": {"representation_size": 11},
    "oblong": OBLONG,
    "oblong, mean, gelu_tanh, pre-training head": {
        **OBLONG,
        "pool": "mean",
        "activation": "gelu_tanh",
        "representation_size": 11,
    },
    "one head, one block": {"num_heads": 1, "depth": 1},
    "large epsilon": {"layer_norm_eps": 0.1},
    "checkpointed": {"gradient_checkpointing": True},
}


def longest_sum(model: ViT, batch: int) -> int:
    """Return how many terms the longest sum of a pass has: over tokens, or over a width."""
    c = model.config
    in_patch = c.in_channels * c.patch_size[0] * c.patch_size[1]
    return max(batch * c.num_tokens, c.mlp_dim, in_patch, 3 * c.dim)


def twins(parity: Any, torch_vit: Any, torch_name: Any, **options: Any) -> tuple[ViT, Any]:
    """Return a model with random weights, none of them zero, and its torch twin."""
    model = ViT("Ti/16", backend=None, **{**SIZES, **options})
    parity.place(model)
    twin = torch_vit(model.config)
    parity.copy_weights(model, twin, torch_name)
    return model, twin


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_logits_loss_and_every_gradient(
    case: str, batch: int, parity: Any, torch_vit: Any, torch_name: Any
) -> None:
    model, twin = twins(parity, torch_vit, torch_name, **CASES[case])
    longest = longest_sum(model, batch)
    images, timages = parity.normal(batch, model.config.in_channels, *model.config.image_size)
    labels, tlabels = parity.labels(model.config.num_classes, batch)

    ctx = nn.Context(train=True)
    logits, tlogits = model.forward(images, ctx), twin(timages)
    parity.close(logits, tlogits, reduction=longest, what="logits")
    loss, dlogits = ops.softmax_cross_entropy(logits, labels, xp=parity.xp)
    tloss = parity.torch.nn.functional.cross_entropy(tlogits, tlabels)
    parity.close(loss, tloss, reduction=longest, what="loss")

    model.zero_grad()
    dimages = model.backward(dlogits, ctx)
    tloss.backward()
    parity.close(dimages, timages.grad, reduction=longest, what="d images")
    parity.gradients_close(model, twin, torch_name, reduction=longest)


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_training_with_dropout_and_drop_path(
    checkpointed: bool, pool: str, parity: Any, torch_vit: Any, torch_name: Any, draws: Any
) -> None:
    batch, rate, path = 3, 0.2, 0.4
    options = {"dropout": rate, "drop_path": path, "pool": pool}
    model, twin = twins(
        parity, torch_vit, torch_name, gradient_checkpointing=checkpointed, **options
    )
    tokens, depth = model.config.num_tokens, model.config.depth
    drawn = draws(21, 4)
    mask = drawn.mask((batch, tokens, model.config.dim), rate)
    twin.pos_drop = drawn.times(mask)
    for index, block in enumerate(twin.blocks):
        drawn.put_in_block(block, batch, tokens, rate, path * index / (depth - 1))

    longest = longest_sum(model, batch)
    images, timages = parity.normal(batch, 3, 12, 12)
    ctx = nn.Context(train=True, seed=21, step=4)
    logits, tlogits = model.forward(images, ctx), twin(timages)
    parity.close(logits, tlogits, reduction=longest, what="logits")
    dlogits, tdlogits = parity.normal(*logits.shape)
    dimages = model.backward(dlogits, ctx)
    tlogits.backward(tdlogits)
    parity.close(dimages, timages.grad, reduction=longest, what="d images")
    parity.gradients_close(model, twin, torch_name, reduction=longest)


@pytest.mark.parametrize("case", ["paper", "oblong, mean, gelu_tanh, pre-training head"])
def test_inference(case: str, parity: Any, torch_vit: Any, torch_name: Any) -> None:
    dropped = {"dropout": 0.5, "drop_path": 0.5}
    model, twin = twins(parity, torch_vit, torch_name, **CASES[case], **dropped)
    longest = longest_sum(model, 4)
    images, timages = parity.normal(4, model.config.in_channels, *model.config.image_size)
    parity.close(model(images), twin(timages), reduction=longest, what="logits")
    parity.close(model.features(images), twin.features(timages), reduction=longest)


def test_attention_maps(parity: Any, torch_vit: Any, torch_name: Any) -> None:
    model, twin = twins(parity, torch_vit, torch_name)
    images, timages = parity.normal(2, 3, 12, 12)
    seen = []
    for block in twin.blocks:
        block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    twin(timages)
    maps = model.attention_maps(images)
    assert maps.shape == (3, 2, 3, 10, 10)
    for ours, block, x in zip(maps, twin.blocks, seen, strict=True):
        x = block.norm1(x)
        _, expected = block.self_attn(x, x, x, average_attn_weights=False)
        parity.close(ours, expected, reduction=longest_sum(model, 2))
