"""What products of layers are made of: those of a precision, and of float32 where they stay so."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from vitkit import ViT, kernels, nn, ops
from vitkit.backend import ArrayModule, to_numpy
from vitkit.ops import reference_only, softmax_cross_entropy
from vitkit.train import LossScale

UNIT = {"tf32": 2.0**-11, "bfloat16": 2.0**-8, "float16": 2.0**-11}  # half a last digit
SIZES: dict[str, Any] = {
    "image_size": 12, "patch_size": 4, "in_channels": 3, "num_classes": 7, "dim": 48, "depth": 2,
    "num_heads": 3, "mlp_dim": 64, "representation_size": 11,
}  # fmt: skip
# Products one after another from the images to the logits and back, both of whose operands are
# rounded: of each block six, one of the patches. Rounding errors are independent, so they add up by
# their squares; a sum of rounded products is as wrong as its terms are, however long it is.
# Twice that is allowed, since gradients are sums that cancel in part.
ROUNDINGS = 2 * 2 * (6 * SIZES["depth"] + 1)
TOLERANCE = 2 * ROUNDINGS**0.5
precisions = pytest.mark.parametrize("precision", UNIT)
USES = {
    "dropout": {"dropout": 0.2, "drop_path": 0.3},
    "an activation of its own": {"activation": "silu"},
    "gradient checkpointing": {"dropout": 0.2, "gradient_checkpointing": True},
}
uses = pytest.mark.parametrize("use", USES)


@pytest.fixture
def references() -> Iterator[None]:
    """Compute by the references, which serve every precision everywhere."""
    with reference_only():
        yield


def vit(xp: ArrayModule, precision: str = "float32", **options: Any) -> ViT:
    """Return a model, none of whose weights are zero."""
    dtype = options.pop("dtype", "float32")
    model = ViT("Ti/4", xp=xp, dtype=dtype, precision=precision, **{**SIZES, **options})
    rng = np.random.default_rng(1)
    for name, value in model.state_dict().items():
        value += 0.1 * rng.standard_normal(value.shape).astype("float32")
        model.load_state_dict({name: value}, strict=False)
    return model


def gradients(model: ViT, scale: float = 1.0) -> dict[str, np.ndarray]:
    """Return every gradient of one pass of training, and the logits, in float64."""
    rng, xp = np.random.default_rng(2), model.xp
    images = xp.asarray(rng.standard_normal((5, 3, 12, 12)).astype("float32"))
    ctx = nn.Context(train=True, seed=3, step=4, input_gradient=False)
    model.zero_grad()
    with model.rounded_once():
        logits = model.forward(images, ctx)
        _, dlogits = softmax_cross_entropy(logits, xp.asarray(np.arange(5)), xp=xp)
        model.backward(dlogits * scale, ctx)
    found = {name: to_numpy(p.grad) / scale for name, p in model.named_parameters()}
    return {"logits": to_numpy(logits), **found}


def apart(found: np.ndarray, expected: np.ndarray) -> float:
    """Return how far apart two arrays are, as a part of their norm."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@precisions
@pytest.mark.usefixtures("references")
def test_an_affine_layer_multiplies_in_its_precision(
    precision: str, xp: ArrayModule, rng: np.random.Generator
) -> None:
    layer = nn.Linear(33, 5).place(xp, precision=precision)
    x, dy = (xp.asarray(rng.standard_normal(s).astype("float32")) for s in [(2, 3, 33), (2, 3, 5)])
    ctx = nn.Context(keep=True)
    found = [layer.forward(x, ctx), layer.backward(dy, ctx), layer.weight.grad, layer.bias.grad]
    w, b = layer.weight.value, layer.bias.value
    for other, equal in ((precision, True), ("float32", False)):
        y = ops.linear(x, w, b, precision=other, xp=xp)
        expected = [y, *ops.linear_backward(dy, x, w, precision=other, xp=xp)]
        same = [bool((one == two).all()) for one, two in zip(found, expected, strict=True)]
        assert same == [equal] * 4


def test_an_affine_layer_used_alone_is_of_float32(
    xp: ArrayModule, rng: np.random.Generator
) -> None:
    layer = nn.Linear(33, 5, xp=xp)
    x = xp.asarray(rng.standard_normal((2, 33)).astype("float32"))
    assert layer.precision == "float32"
    assert (layer(x) == ops.linear(x, layer.weight.value, layer.bias.value, xp=xp)).all()


@precisions
@pytest.mark.usefixtures("references")
def test_attention_multiplies_in_its_precision(
    precision: str, xp: ArrayModule, rng: np.random.Generator
) -> None:
    layer = nn.Attention(12, 2).place(xp, precision=precision)
    x, dy = (xp.asarray(rng.standard_normal((2, 5, 12)).astype("float32")) for _ in range(2))
    ctx = nn.Context(keep=True)
    y, dx = layer.forward(x, ctx), layer.backward(dy, ctx)
    qkv, proj = layer.qkv, layer.proj
    kept = nn.Context(keep=True)
    q = qkv.forward(x, kept)
    for other, equal in ((precision, True), ("float32", False)):
        mixed, *stats = ops.multi_head_attention(q, 2, other, xp=xp)
        assert bool((y == proj.forward(mixed, kept)).all()) is equal
        dmixed = proj.backward(dy, kept)
        dq = ops.multi_head_attention_backward(dmixed, q, mixed, *stats, other, xp=xp)
        du, _, _ = ops.linear_backward(dq, x, qkv.weight.value, precision=precision, xp=xp)
        assert bool((dx == du).all()) is equal


@pytest.mark.usefixtures("references")
@pytest.mark.parametrize("changed", ["made", "moved", "copied", "placed again", "other head"])
def test_the_head_stays_float32(changed: str, xp: ArrayModule) -> None:
    model = vit(xp, "bfloat16")
    if changed == "moved":
        model._xp = np  # as if it came from elsewhere
        model.to(xp)
    elif changed == "copied":
        model = copy.deepcopy(model)
    elif changed == "placed again":
        model.place(xp)
    elif changed == "other head":
        model.replace("head", nn.Linear(11, 5))
    found = {name: module.precision for name, module in model.modules()}
    head = {name for name in found if name.startswith(("head", "pre_logits"))}
    assert {"head", "pre_logits.fc"} <= head
    assert {found.pop(name) for name in head} == {"float32"}
    assert set(found.values()) == {"bfloat16"}
    assert {module.precision for _, module in model.place(xp, precision="tf32").modules()} == {
        "tf32",
        "float32",
    }


@precisions
@pytest.mark.usefixtures("references")
def test_the_head_multiplies_in_float32(precision: str, xp: ArrayModule) -> None:
    model, exact = vit(xp, precision), vit(xp)
    images = xp.asarray(np.random.default_rng(2).standard_normal((5, 3, 12, 12)).astype("float32"))
    pooled = model.features(images)
    assert model.pre_logits is not None
    assert exact.pre_logits is not None
    head, full = (
        m.head.forward(m.pre_logits.forward(pooled, nn.Context()), nn.Context())
        for m in (model, exact)
    )
    assert (head == full).all()
    assert (model(images) == head).all()


@precisions
@uses
@pytest.mark.usefixtures("references")
def test_gradients_are_as_exact_as_their_precision(
    precision: str, use: str, xp: ArrayModule
) -> None:
    full = gradients(vit(xp, **USES[use]))
    exact = gradients(vit(xp, dtype="float64", **USES[use]))
    scale = 2.0**10 if precision == "float16" else 1.0
    found = gradients(vit(xp, precision, **USES[use]), scale)
    for name, expected in exact.items():
        assert apart(full[name], expected) < 1e-5
        assert apart(found[name], expected) < TOLERANCE * UNIT[precision], name


@precisions
@pytest.mark.usefixtures("references")
def test_composed_and_fused_blocks_agree(
    precision: str, xp: ArrayModule, rng: np.random.Generator
) -> None:
    """As inference of a model with dropout is fused, and its training is not."""
    fused, composed, full = nn.Block(48, 3, 64), nn.Block(48, 3, 64), nn.Block(48, 3, 64)
    for block in (composed, full):
        block.attn, block.mlp = nn.Timed(block.attn), nn.Timed(block.mlp)
    x, dy = (xp.asarray(rng.standard_normal((3, 10, 48)).astype("float32")) for _ in range(2))
    found = []
    for block in (fused, composed, full):
        block.place(xp, seed=1, precision="float32" if block is full else precision)
        ctx = nn.Context(keep=True)
        y, dx = block.forward(x, ctx), block.backward(dy, ctx)
        grads = [to_numpy(p.grad) for _, p in block.named_parameters()]
        found.append([to_numpy(y), to_numpy(dx), *grads])
    for one, two in zip(*found[:2], strict=True):
        assert apart(two, one) < 2 * UNIT[precision]  # one rounds what it keeps, the other does not
    assert apart(found[1][0], found[0][0]) < 0.1 * apart(found[2][0], found[0][0])


@precisions
@pytest.mark.usefixtures("references")
def test_recomputing_changes_no_bit(precision: str, xp: ArrayModule) -> None:
    plain = gradients(vit(xp, precision, dropout=0.2))
    again = gradients(vit(xp, precision, dropout=0.2, gradient_checkpointing=True))
    for name, expected in plain.items():
        np.testing.assert_array_equal(again[name], expected)


@pytest.mark.usefixtures("references")
def test_a_scaled_loss_keeps_what_float16_would_lose(xp: ArrayModule) -> None:
    """A mean over so many images that each has a gradient below the smallest float16."""
    model, exact = vit(xp, "float16", dropout=0.2), vit(xp, dropout=0.2)
    share, scale = 2.0**-20, float(LossScale(xp).scale)
    expected = gradients(exact, share)
    lost, kept = gradients(model, share), gradients(model, share * scale)
    name = "blocks.0.mlp.fc1.weight"
    assert apart(lost[name], expected[name]) > 0.5
    for name, gradient in expected.items():
        assert apart(kept[name], gradient) < TOLERANCE * UNIT["float16"], name
    with np.errstate(all="ignore"):
        overflown = gradients(model, 2.0**30)
    assert not np.isfinite(overflown["blocks.0.mlp.fc1.weight"]).all()


@uses
@pytest.mark.usefixtures("kernels_on")
def test_on_a_cpu_blocks_that_are_not_fused_are_served_by_kernels_of_float32(
    use: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason := kernels.why_none(np):
        pytest.skip(f"no CPU kernels here: {reason}")
    monkeypatch.setattr(kernels, "_why_not", lambda precision, xp: "")
    options = {"mlp_dim": 40, "activation": "silu", **USES[use], "dropout": 0.2}
    found, expected = (gradients(vit(np, p, **options)) for p in ("bfloat16", "float32"))
    for name, gradient in expected.items():
        np.testing.assert_array_equal(found[name], gradient)
