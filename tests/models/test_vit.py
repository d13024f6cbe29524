"""The whole model: sizes, names, every gradient, features, attention maps, precision, errors."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from vitkit import ops
from vitkit.backend import Array, ArrayModule, philox, to_numpy
from vitkit.models import ViT, ViTConfig
from vitkit.nn import Block, Checkpoint, Context, Module, unwrap
from vitkit.optim import SGD, AdamW, Optimizer
from vitkit.testing import assert_close, directional_derivative_error, strict_device

COUNTS = {
    "Ti/16": 5_717_416,
    "S/16": 22_050_664,
    "B/16": 86_567_656,
    "B/32": 88_224_232,
    "L/16": 304_326_632,
    "L/32": 306_535_400,
    "H/14": 632_045_800,
}
SMALL: dict[str, Any] = {
    "image_size": (8, 12),
    "patch_size": (4, 3),
    "in_channels": 2,
    "num_classes": 5,
    "dim": 12,
    "depth": 2,
    "num_heads": 3,
    "mlp_dim": 20,
}
TOKENS = 2 * 4 + 1
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "mean": {"pool": "mean"},
    "pre-logits": {"representation_size": 7},
    "dropout": {"dropout": 0.2},
    "drop path": {"drop_path": 0.5, "depth": 3},
    "checkpointing": {"gradient_checkpointing": True, "dropout": 0.1, "drop_path": 0.2},
    "everything": {
        "pool": "mean",
        "representation_size": 7,
        "dropout": 0.1,
        "drop_path": 0.2,
        "gradient_checkpointing": True,
        "activation": "gelu_tanh",
        "init": "timm",
    },
    "one patch": {"image_size": 4, "patch_size": 4, "depth": 1},
}
options = pytest.mark.parametrize("extra", OPTIONS.values(), ids=OPTIONS)


def small(xp: ArrayModule, *, fill: bool = True, **extra: Any) -> ViT:
    """Return a small model, with random numbers where it starts with zeros."""
    model = ViT("Ti/4", xp=xp, **SMALL | extra)
    if fill:
        for name, parameter in model.named_parameters():
            noise = 0.3 * philox(0, f"noise of {name}").standard_normal(parameter.shape)
            parameter.value[...] += xp.asarray(noise, dtype=parameter.value.dtype)
    return model


def draw(model: ViT, batch: int = 3, seed: int = 0) -> Array:
    shape = (batch, model.config.in_channels, *model.config.image_size)
    values = philox(seed, "images").standard_normal(shape)
    return model.xp.asarray(values, dtype=model.pos_embed.value.dtype)


def train_step(model: ViT, optimizer: Optimizer, images: Array, labels: Array) -> Context:
    ctx = Context(train=True, seed=1)
    logits = model.forward(images, ctx)
    _, dlogits = ops.softmax_cross_entropy(logits, labels, xp=model.xp)
    model.zero_grad()
    model.backward(dlogits, ctx)
    optimizer.step()
    return ctx


@pytest.mark.parametrize("variant", COUNTS)
def test_parameter_counts_without_allocating(variant: str) -> None:
    model = ViT(variant, backend=None)
    assert model.num_parameters == COUNTS[variant]
    with pytest.raises(RuntimeError, match=r"Parameter .* has no arrays yet: pass xp="):
        model.pos_embed.value  # noqa: B018


def test_b16_is_the_default() -> None:
    assert ViT(backend=None).config == ViTConfig.of("B/16")


BLOCK = {
    "norm1.weight": (12,),
    "norm1.bias": (12,),
    "attn.qkv.weight": (36, 12),
    "attn.qkv.bias": (36,),
    "attn.proj.weight": (12, 12),
    "attn.proj.bias": (12,),
    "norm2.weight": (12,),
    "norm2.bias": (12,),
    "mlp.fc1.weight": (20, 12),
    "mlp.fc1.bias": (20,),
    "mlp.fc2.weight": (12, 20),
    "mlp.fc2.bias": (12,),
}
NAMES: dict[str, tuple[int, ...]] = {
    "cls_token": (1, 1, 12),
    "pos_embed": (1, TOKENS, 12),
    "patch_embed.proj.weight": (12, 2, 4, 3),
    "patch_embed.proj.bias": (12,),
    **{f"blocks.0.{name}": shape for name, shape in BLOCK.items()},
    **{f"blocks.1.{name}": shape for name, shape in BLOCK.items()},
    "norm.weight": (12,),
    "norm.bias": (12,),
    "head.weight": (5, 12),
    "head.bias": (5,),
}
NO_DECAY = {"cls_token", "pos_embed"}


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_names_and_shapes_are_timm_s(gradient_checkpointing: bool, xp: ArrayModule) -> None:
    model = small(xp, gradient_checkpointing=gradient_checkpointing)
    assert {name: p.shape for name, p in model.named_parameters()} == NAMES
    state = model.state_dict()
    assert {name: value.shape for name, value in state.items()} == NAMES
    assert list(state) == list(NAMES)  # timm's order too
    decaying = {name for name, p in model.named_parameters() if p.decay}
    assert decaying == {n for n in NAMES if len(NAMES[n]) > 1} - NO_DECAY


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_a_state_dict_of_timm_s_loads_strictly(
    gradient_checkpointing: bool, xp: ArrayModule
) -> None:
    rng = philox(0, "released weights")
    released = {name: rng.standard_normal(NAMES[name]).astype("float32") for name in NAMES}
    model = small(xp, gradient_checkpointing=gradient_checkpointing)
    assert model.load_state_dict(released, strict=True) == ([], [])
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value, released[name])


def test_names_with_mean_pooling_and_pre_logits(xp: ArrayModule) -> None:
    model = small(xp, pool="mean", representation_size=7)
    changed = {
        "pos_embed": (1, TOKENS - 1, 12),
        "pre_logits.fc.weight": (7, 12),
        "pre_logits.fc.bias": (7,),
        "head.weight": (5, 7),
    }
    expected = {name: shape for name, shape in NAMES.items() if name != "cls_token"} | changed
    assert {name: p.shape for name, p in model.named_parameters()} == expected


@options
def test_the_head_starts_at_zero(extra: dict[str, Any], xp: ArrayModule) -> None:
    model = small(xp, fill=False, **extra)
    logits = to_numpy(model(draw(model)))
    assert logits.shape == (3, 5)
    assert not logits.any()
    for name, value in model.state_dict().items():
        if name.startswith("head."):
            assert not value.any()
    assert to_numpy(model.features(draw(model))).any()


@options
def test_gradient_of_images_and_all_parameters(extra: dict[str, Any], xp: ArrayModule) -> None:
    model = small(xp, dtype="float64", **extra)
    images, labels = draw(model), xp.asarray([0, 4, 2])

    def loss(ctx: Context) -> tuple[Array, Array]:
        logits = model.forward(images, ctx)
        return ops.softmax_cross_entropy(logits, labels, 0.1, xp=xp)

    ctx = Context(train=True, seed=2)
    _, dlogits = loss(ctx)
    dimages = model.backward(dlogits, ctx)
    assert len(ctx) == 0
    parameters = [p for _, p in model.named_parameters()]
    errors = [
        directional_derivative_error(
            lambda *_: loss(Context(train=True, seed=2))[0],
            [images, *(p.value for p in parameters)],
            [dimages, *(p.grad for p in parameters)],
            seed=seed,
            xp=xp,
        )
        for seed in range(3)
    ]
    assert min(errors) < 1e-6  # a wrong gradient is wrong along every direction


@options
def test_without_the_gradient_of_images(extra: dict[str, Any], xp: ArrayModule) -> None:
    model = small(xp, **extra)
    images, found = draw(model), []
    for wanted in (True, False):
        ctx = Context(train=True, seed=2, input_gradient=wanted)
        dlogits = xp.ones_like(model.forward(images, ctx))
        model.zero_grad()
        assert (model.backward(dlogits, ctx) is not None) == wanted
        assert len(ctx) == 0
        found.append([to_numpy(p.grad).copy() for _, p in model.named_parameters()])
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_of_each_parameter_alone(name: str, xp: ArrayModule) -> None:
    model = small(xp, dtype="float64")
    images, labels = draw(model), xp.asarray([0, 4, 2])
    ctx = Context(train=True)
    _, dlogits = ops.softmax_cross_entropy(model.forward(images, ctx), labels, xp=xp)
    model.backward(dlogits, ctx)
    parameter = dict(model.named_parameters())[name]
    errors = [
        directional_derivative_error(
            lambda *_: ops.softmax_cross_entropy(model(images), labels, xp=xp)[0],
            [parameter.value],
            [parameter.grad],
            seed=seed,
            eps=1e-5,  # a part of the gradient is small, so rounding counts for more
            xp=xp,
        )
        for seed in range(3)
    ]
    assert min(errors) < 1e-6


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6) * weight + bias


def by_the_paper(w: dict[str, np.ndarray], image: np.ndarray, heads: int) -> np.ndarray:
    """Return the logits of one image by Eq. 1 to 8, one token and one head at a time."""
    (dim, _, down, across), (_, height, width) = w["patch_embed.proj.weight"].shape, image.shape
    embedding = w["patch_embed.proj.weight"].reshape(dim, -1)
    tokens = [w["cls_token"][0, 0]]
    for top in range(0, height, down):
        for left in range(0, width, across):
            patch = image[:, top : top + down, left : left + across].ravel()
            tokens.append(embedding @ patch + w["patch_embed.proj.bias"])
    z = np.stack(tokens) + w["pos_embed"][0]
    for index in range(2):
        p = {
            name.removeprefix(f"blocks.{index}."): value
            for name, value in w.items()
            if name.startswith(f"blocks.{index}.")
        }
        x = layer_norm(z, p["norm1.weight"], p["norm1.bias"])
        q, k, v = np.split(x @ p["attn.qkv.weight"].T + p["attn.qkv.bias"], 3, axis=1)
        size, out = dim // heads, []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            a = np.exp(q[:, part] @ k[:, part].T / np.sqrt(size))
            out.append(a / a.sum(axis=1, keepdims=True) @ v[:, part])
        z = z + np.concatenate(out, axis=1) @ p["attn.proj.weight"].T + p["attn.proj.bias"]
        x = layer_norm(z, p["norm2.weight"], p["norm2.bias"])
        hidden = np.maximum(x @ p["mlp.fc1.weight"].T + p["mlp.fc1.bias"], 0)
        z = z + hidden @ p["mlp.fc2.weight"].T + p["mlp.fc2.bias"]
    y = layer_norm(z[0], w["norm.weight"], w["norm.bias"])
    return w["head.weight"] @ y + w["head.bias"]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_it_is_the_paper_s_model(dtype: str, xp: ArrayModule) -> None:
    model = small(xp, dtype=dtype, activation="relu")
    weights = {name: value.astype("float64") for name, value in model.state_dict().items()}
    images = draw(model)
    expected = [by_the_paper(weights, image, 3) for image in to_numpy(images).astype("float64")]
    assert_close(model(images), np.stack(expected), reduction=36)


@options
def test_features_are_what_the_head_sees(extra: dict[str, Any], xp: ArrayModule) -> None:
    model = small(xp, dtype="float64", **extra)
    images, c = draw(model), model.config
    pooled, tokens = model.features(images), to_numpy(model.features(images, tokens=True))
    assert pooled.shape == (3, c.dim)
    assert tokens.shape == (3, c.num_tokens, c.dim)
    expected = tokens[:, 0] if c.pool == "cls" else tokens.mean(axis=1)
    assert_close(pooled, expected)
    if model.pre_logits is not None:
        pooled = model.pre_logits(pooled)
    assert_close(model(images), to_numpy(model.head(pooled)))


@options
def test_attention_maps_are_those_of_forward(extra: dict[str, Any], xp: ArrayModule) -> None:
    model = small(xp, dtype="float64", **extra)
    images, c = draw(model), model.config
    maps = to_numpy(model.attention_maps(images))
    assert maps.shape == (c.depth, 3, c.num_heads, c.num_tokens, c.num_tokens)
    assert (maps >= 0).all()
    assert_close(maps.sum(axis=-1), np.ones(maps.shape[:-1]))
    # The last block's attention, gathered by the map, is what its layer gives.
    x = model._embed(images, Context())
    for wrapped in model.blocks[:-1]:
        x = wrapped(x)
    block = unwrap(model.blocks[-1])
    assert isinstance(block, Block)
    normed = block.norm1(x)
    values = to_numpy(block.attn.qkv(normed))[..., 2 * c.dim :]
    values = values.reshape(3, c.num_tokens, c.num_heads, c.dim // c.num_heads)
    gathered = np.einsum("bhij,bjhd->bihd", maps[-1], values).reshape(3, c.num_tokens, c.dim)
    expected = block.attn.proj(xp.asarray(gathered))
    assert_close(block.attn(normed), to_numpy(expected))


def test_the_model_learns(xp: ArrayModule) -> None:
    model = small(xp, fill=False)
    images, labels = draw(model, 8), xp.asarray(np.arange(8) % 5)
    optimizer = AdamW(1e-2).attach(model)

    def loss() -> float:
        return float(to_numpy(ops.softmax_cross_entropy(model(images), labels, xp=xp)[0]))

    before = loss()
    assert before == pytest.approx(np.log(5))
    for _ in range(30):
        train_step(model, optimizer, images, labels)
    assert loss() < before / 10


@options
def test_every_parameter_changes_in_one_step(extra: dict[str, Any], xp: ArrayModule) -> None:
    model = small(xp, **extra)
    before = model.state_dict()
    images, labels = draw(model, 8), xp.asarray(np.arange(8) % 5)
    train_step(model, AdamW(1e-2).attach(model), images, labels)
    for name, value in model.state_dict().items():
        assert (value != before[name]).mean() > 0.5, name


class Watching(Context):
    """A pass that remembers the precision of all that is kept."""

    dtypes: set[np.dtype]

    def push(self, owner: Module, *kept: Any) -> None:
        super().push(owner, *kept)
        found = {array.dtype for array in kept if hasattr(array, "dtype")}
        self.dtypes = getattr(self, "dtypes", set()) | found


@options
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_precision_everywhere(extra: dict[str, Any], dtype: str, xp: ArrayModule) -> None:
    model = small(xp, dtype=dtype, **extra)
    optimizer = AdamW(1e-2).attach(model)
    ctx = Watching(train=True)
    images = draw(model)
    logits = model.forward(images, ctx)
    loss, dlogits = ops.softmax_cross_entropy(logits, xp.asarray([0, 1, 2]), xp=xp)
    dimages = model.backward(dlogits, ctx)
    optimizer.step()
    arrays = [loss, logits, dlogits, dimages, model(images), model.features(images)]
    arrays += [model.attention_maps(images), *model.state_dict().values()]
    arrays += [a for _, p in model.named_parameters() for a in (p.value, p.grad)]
    arrays += [a for group in model.groups for a in (group.values, group.grads)]
    arrays += [a for name, a in optimizer.state_dict().items() if name != "step"]
    assert {array.dtype for array in arrays} | ctx.dtypes == {np.dtype(dtype)}


def test_float32_unless_asked(xp: ArrayModule) -> None:
    model = ViT("Ti/4", xp=xp, **SMALL)
    assert {p.value.dtype for _, p in model.named_parameters()} == {np.dtype("float32")}
    images = xp.asarray(np.zeros((1, 2, 8, 12)))  # float64
    assert model(images).dtype == np.float32
    assert ViT("Ti/4", xp=xp, dtype="float64", **SMALL)(images).dtype == np.float64


@options
def test_a_training_step_waits_for_no_device(extra: dict[str, Any]) -> None:
    xp = strict_device.xp
    model = small(xp, **extra)
    images, labels = draw(model), xp.asarray([0, 1, 2])
    optimizer = AdamW(1e-2).attach(model)
    with strict_device.count_syncs() as syncs:
        train_step(model, optimizer, images, labels)
        model(images)
        model.features(images)
        model.attention_maps(images)
    assert syncs == []


def test_two_models_on_two_backends_in_one_process() -> None:
    host, device = (small(xp, dtype="float64") for xp in (np, strict_device.xp))
    assert (host.xp, device.xp) == (np, strict_device.xp)
    # Not Adam: the bias of the keys has no gradient but rounding, which Adam would scale up.
    optimizers = [SGD(1e-1).attach(model) for model in (host, device)]
    for step in range(3):
        for model, optimizer in zip((host, device), optimizers, strict=True):
            images = draw(model, seed=step)
            train_step(model, optimizer, images, model.xp.asarray([0, 1, 2]))
    assert type(host.pos_embed.value) is np.ndarray
    assert isinstance(device.pos_embed.value, strict_device.DeviceArray)
    ours = device.state_dict()
    for name, value in host.state_dict().items():
        assert_close(ours[name], value)


def test_moving_a_model_keeps_its_answers(xp: ArrayModule) -> None:
    model = small(np)
    images = draw(model)
    before = model(images)
    assert model.to(xp) is model
    assert_close(model(xp.asarray(images)), before, reduction=100)


@options
def test_evaluation_is_deterministic(extra: dict[str, Any], xp: ArrayModule) -> None:
    model = small(xp, **extra)
    images = draw(model)
    one = to_numpy(model(images))
    np.testing.assert_array_equal(to_numpy(model(images)), one)
    np.testing.assert_array_equal(to_numpy(model.forward(images, Context(seed=4))), one)
    without = small(xp, **extra | {"dropout": 0.0, "drop_path": 0.0})
    np.testing.assert_array_equal(to_numpy(without(images)), one)


@pytest.mark.parametrize("batch", [0, 1, 2, 5])
def test_any_batch_size(batch: int, xp: ArrayModule) -> None:
    model = small(xp, dtype="float64")
    images = draw(model, 5)
    expected = to_numpy(model(images))[:batch]
    assert_close(model(images[:batch]), expected)
    assert model.attention_maps(images[:batch]).shape == (2, batch, 3, TOKENS, TOKENS)


def test_the_last_batch_may_be_smaller(xp: ArrayModule) -> None:
    model = small(xp)
    optimizer = AdamW(1e-3).attach(model)
    for batch in (4, 4, 1):
        labels = xp.asarray(np.arange(batch))
        ctx = train_step(model, optimizer, draw(model, batch), labels)
        assert len(ctx) == 0


def test_checkpointing_gives_the_same_bits(xp: ArrayModule) -> None:
    models = [
        small(xp, dropout=0.2, drop_path=0.3, gradient_checkpointing=wrapped)
        for wrapped in (False, True)
    ]
    assert all(isinstance(block, Checkpoint) for block in models[1].blocks)
    kept = []
    for model in models:
        ctx = Context(train=True, seed=6)
        logits = model.forward(draw(model), ctx)
        kept.append(ctx.nbytes)
        model.backward(logits, ctx)
    theirs = dict(models[1].named_parameters())
    for name, parameter in models[0].named_parameters():
        np.testing.assert_array_equal(to_numpy(parameter.grad), to_numpy(theirs[name].grad))
    assert kept[1] < kept[0] / 3


def test_drop_path_rises_to_the_last_block() -> None:
    model = ViT("Ti/4", backend=None, **SMALL | {"depth": 5, "drop_path": 0.2})
    blocks = [unwrap(block) for block in model.blocks]
    for part in ("drop_path1", "drop_path2"):
        rates = [getattr(block, part).rate for block in blocks]
        assert rates == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])
    assert ViT("Ti/4", backend=None, **SMALL | {"depth": 1, "drop_path": 0.2}).blocks


@pytest.mark.parametrize(
    "shape", [(2, 8, 12), (1, 3, 8, 12), (1, 2, 12, 8), (1, 2, 8, 12, 1), (8,)]
)
@pytest.mark.parametrize("call", ["__call__", "features", "attention_maps"])
def test_images_of_another_shape_are_refused(
    call: str, shape: tuple[int, ...], xp: ArrayModule
) -> None:
    expected = f"images must have shape (B, 2, 8, 12); got {shape}."
    with pytest.raises(ValueError, match=re.escape(expected)):
        getattr(small(xp), call)(xp.zeros(shape, "float32"))


@pytest.mark.parametrize("dtype", ["uint8", "int64", "bool"])
def test_pixels_are_refused(dtype: str, xp: ArrayModule) -> None:
    expected = f"must be normalised floats; got {dtype}. .* vitkit.ops.normalize_images"
    with pytest.raises(ValueError, match=expected):
        small(xp)(xp.zeros((1, 2, 8, 12), dtype))


def test_images_on_the_host_are_brought_over(xp: ArrayModule) -> None:
    model = small(xp)
    images = draw(model)
    np.testing.assert_array_equal(to_numpy(model(to_numpy(images))), to_numpy(model(images)))


def test_a_model_from_its_config(xp: ArrayModule) -> None:
    model = small(xp, pool="mean", representation_size=7, activation="silu")
    again = ViT(model.config, xp=xp)
    assert again.config == model.config == ViTConfig(**model.config.to_dict())
    again.load_state_dict(model.state_dict())
    images = draw(model)
    np.testing.assert_array_equal(to_numpy(again(images)), to_numpy(model(images)))
    assert ViT(model.config, xp=xp, num_classes=9).config.num_classes == 9


def test_repr(xp: ArrayModule) -> None:
    sizes = (
        "ViT('Ti/4', image_size=(8, 12), patch_size=(4, 3), in_channels=2, num_classes=5, dim=12, "
        "depth=2, num_heads=3, mlp_dim=20, pool='cls': 2,877 parameters, "
    )
    assert repr(small(xp)) == sizes + f"{xp.__name__}, float32)"
    assert repr(ViT("Ti/4", backend=None, **SMALL)) == sizes + "not placed)"


def test_the_seed_decides_the_weights(xp: ArrayModule) -> None:
    states = [ViT("Ti/4", xp=xp, seed=seed, **SMALL).state_dict() for seed in (3, 3, 4)]
    for name, value in states[0].items():
        np.testing.assert_array_equal(states[1][name], value)
    assert (states[0]["pos_embed"] != states[2]["pos_embed"]).all()
    zeros = ViT("Ti/4", xp=xp, seed=None, **SMALL).state_dict()
    assert not any(value.any() for value in zeros.values())


def test_a_deeper_model_starts_with_the_same_first_blocks(xp: ArrayModule) -> None:
    shallow, deep = (ViT("Ti/4", xp=xp, **SMALL | {"depth": depth}) for depth in (2, 4))
    theirs = deep.state_dict()
    for name, value in shallow.state_dict().items():
        np.testing.assert_array_equal(theirs[name], value)


def test_backends_by_name() -> None:
    assert ViT("Ti/4", backend="numpy", **SMALL).xp is np
    with pytest.raises(RuntimeError, match="ViT has no arrays yet"):
        ViT("Ti/4", backend=None, **SMALL)(np.zeros((1, 2, 8, 12), "float32"))
