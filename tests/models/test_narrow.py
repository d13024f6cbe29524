"""Models whose blocks pass each other bfloat16: how exact, how much is kept, and who sees what."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from vitkit import ViT, kernels, nn, ops
from vitkit.backend import Array, ArrayModule, to_numpy
from vitkit.testing import strict_device

UNIT = 2.0**-8  # half a last digit of bfloat16
SIZES: dict[str, Any] = {
    "image_size": 12, "patch_size": 4, "in_channels": 3, "num_classes": 7, "dim": 48, "depth": 3,
    "num_heads": 3, "mlp_dim": 64,
}  # fmt: skip
BATCH, TOKENS = 5, 10
# Both operands of each product on the way from the images to the logits and back are rounded: of
# each block six, one of the patches; and what flows, twice in each block and once before them. They
# are independent and add up by their squares. Twice that is allowed: gradients cancel in part.
ROUNDINGS = 2 * (2 * (6 * SIZES["depth"] + 1) + 2 * SIZES["depth"] + 1)
TOLERANCE = 2 * ROUNDINGS**0.5 * UNIT
USES: dict[str, dict[str, Any]] = {
    "plain": {},
    "mean": {"pool": "mean"},
    "dropout": {"dropout": 0.2, "drop_path": 0.3},
    "drop path": {"drop_path": 0.3},
    "an activation of its own": {"activation": "silu"},
    "gradient checkpointing": {"drop_path": 0.3, "gradient_checkpointing": True},
}
uses = pytest.mark.parametrize("use", USES)


@pytest.fixture
def references() -> Iterator[None]:
    """Compute by the references, which serve every precision everywhere."""
    with ops.reference_only():
        yield


def vit(xp: ArrayModule, narrow: bool = True, **options: Any) -> ViT:
    """Return a model in bfloat16, none of whose weights are zero."""
    given = {"precision": "bfloat16", **SIZES, "residual_in_fp32": not narrow, **options}
    return filled(ViT("Ti/4", xp=xp, **given))


def filled(model: ViT) -> ViT:
    rng = np.random.default_rng(1)
    weights = {
        name: value + 0.1 * rng.standard_normal(value.shape).astype("float32")
        for name, value in model.state_dict().items()
    }
    model.load_state_dict(weights)
    return model


def exact(**options: Any) -> ViT:
    return vit(np, False, precision="float32", dtype="float64", **options)


def drawn(xp: ArrayModule, side: int = 12) -> Array:
    shape = (BATCH, 3, side, side)
    return xp.asarray(np.random.default_rng(2).standard_normal(shape).astype("f4"))


def gradients(model: ViT) -> dict[str, np.ndarray]:
    """Return the logits and every gradient of one pass of training."""
    ctx = nn.Context(train=True, seed=3, step=4)
    model.zero_grad()
    with model.rounded_once():
        logits = model.forward(drawn(model.xp, model.config.image_size[0]), ctx)
        labels = model.xp.asarray(np.arange(BATCH))
        _, dlogits = ops.softmax_cross_entropy(logits, labels, xp=model.xp)
        dx = model.backward(dlogits, ctx)
    assert len(ctx) == 0
    found = {name: to_numpy(p.grad) for name, p in model.named_parameters()}
    assert {each.dtype for each in (logits, dx, *found.values())} == {model.pos_embed.value.dtype}
    return {"logits": to_numpy(logits), "images": to_numpy(dx), **found}


def apart(found: np.ndarray, expected: np.ndarray) -> float:
    """Return how far apart two arrays are, as a part of their norm."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    for name, array in one.items():
        np.testing.assert_array_equal(other[name], array, err_msg=name)


def flowing(model: ViT, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Return the dtypes of what comes into vitkit's own blocks in a pass, there and back."""
    seen: set[str] = set()

    def noting(inner: Any) -> Any:
        def call(block: nn.Block, x: Array, ctx: nn.Context) -> Array:
            seen.add(x.dtype.name)
            y: Array = inner(block, x, ctx)
            seen.add(y.dtype.name)
            return y

        return call

    with monkeypatch.context() as patch:
        for name in ("forward", "backward"):
            patch.setattr(nn.Block, name, noting(getattr(nn.Block, name)))
        gradients(model)
    return seen


@uses
@pytest.mark.usefixtures("references")
def test_gradients_are_as_exact_as_their_precision(use: str, xp: ArrayModule) -> None:
    options = USES[use]
    found, truth = gradients(vit(xp, **options)), gradients(exact(**options))
    for name, expected in truth.items():
        assert apart(found[name], expected) < TOLERANCE, name
    wide = gradients(vit(xp, False, **options))
    assert all((found[name] != wide[name]).any() for name in ("logits", "pos_embed"))


@pytest.mark.slow
@pytest.mark.usefixtures("references")
def test_what_it_costs_is_as_the_guide_says(xp: ArrayModule) -> None:
    sizes = {**SIZES, "image_size": 32, "patch_size": 8, "dim": 192, "depth": 12, "mlp_dim": 768}
    found = []
    for precision, fp32 in (("float32", True), ("bfloat16", True), ("bfloat16", False)):
        given = {**sizes, "precision": precision, "residual_in_fp32": fp32, "init": "timm"}
        model = ViT("Ti/8", xp=xp, dtype="float32", **given)
        head = np.random.default_rng(5).standard_normal((7, 192)).astype("float32")
        model.load_state_dict({"head.weight": xp.asarray(0.05 * head)}, strict=False)
        grads = gradients(model)
        found.append(np.concatenate([grads[name].ravel() for name, _ in model.named_parameters()]))
    exact, wide, narrow = found  # float32 is a thousand times as exact
    assert 0.007 < apart(wide, exact) < 0.011
    assert 0.011 < apart(narrow, exact) < 0.017


@uses
@pytest.mark.usefixtures("references")
def test_bits_flow_there_and_back(
    use: str, xp: ArrayModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert flowing(vit(xp, **USES[use]), monkeypatch) == {"uint16"}
    assert flowing(vit(xp, False, **USES[use]), monkeypatch) == {"float32"}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.usefixtures("references")
def test_inputs_of_branches_are_kept_in_half_the_bytes(
    checkpointing: bool, xp: ArrayModule
) -> None:
    kept = []
    for narrow in (True, False):
        model = vit(xp, narrow, pool="mean", gradient_checkpointing=checkpointing)
        ctx = nn.Context(train=True)
        model.forward(drawn(xp), ctx)
        kept.append(ctx.nbytes)
    inputs = SIZES["depth"] * (1 if checkpointing else 2)
    assert kept[1] - kept[0] == inputs * BATCH * (TOKENS - 1) * SIZES["dim"] * 2


@pytest.mark.usefixtures("references")
def test_features_and_maps_are_float32(xp: ArrayModule) -> None:
    model, truth = vit(xp), exact()
    images, exactly = drawn(xp), np.float64(to_numpy(drawn(xp)))
    for tokens in (False, True):
        found, expected = (
            model.features(images, tokens=tokens),
            truth.features(exactly, tokens=tokens),
        )
        assert (found.dtype, found.shape) == (np.float32, expected.shape)
        assert apart(to_numpy(found), expected) < TOLERANCE
    maps, expected = model.attention_maps(images), truth.attention_maps(exactly)
    assert (maps.dtype, maps.shape) == (np.float32, (3, BATCH, 3, TOKENS, TOKENS))
    np.testing.assert_allclose(to_numpy(maps).sum(axis=-1), 1, rtol=1e-5)
    assert apart(to_numpy(maps), expected) < TOLERANCE
    wide = vit(xp, False).attention_maps(images)
    assert all((one != other).any() for one, other in zip(maps, wide, strict=True))


@pytest.mark.parametrize("use", ["dropout", "drop path", "an activation of its own", "mean"])
@pytest.mark.usefixtures("references")
def test_recomputing_changes_no_bit(use: str, xp: ArrayModule) -> None:
    options = {"pool": "mean", **USES[use]}  # or a last block that is wrapped computes more
    again = gradients(vit(xp, gradient_checkpointing=True, **options))
    assert_same(gradients(vit(xp, **options)), again)


@pytest.mark.usefixtures("references")
def test_timing_changes_no_bit(xp: ArrayModule, monkeypatch: pytest.MonkeyPatch) -> None:
    model = vit(xp, pool="mean", drop_path=0.3)
    expected = gradients(model)
    for which in range(3):
        model.blocks[which] = nn.Timed(model.blocks[which])
        assert_same(expected, gradients(model))
        assert flowing(model, monkeypatch) == {"uint16"}
    both = vit(xp, pool="mean", drop_path=0.3, gradient_checkpointing=True)
    both.blocks[1] = nn.Timed(both.blocks[1])
    assert_same(expected, gradients(both))
    assert flowing(both, monkeypatch) == {"uint16"}


@pytest.mark.usefixtures("references")
def test_a_branch_that_is_timed_sees_float32(xp: ArrayModule) -> None:
    """Norm, layer and drop path are each computed alone, as those of a plugin would be."""
    model, seen = vit(xp), []

    class Seeing(nn.Timed):
        def forward(self, x: Array, ctx: nn.Context) -> Array:
            seen.append(x.dtype.name)
            return super().forward(x, ctx)

        def backward(self, dy: Array, ctx: nn.Context) -> Array:
            seen.append(dy.dtype.name)
            return super().backward(dy, ctx)

    block = model.blocks[1]
    block.mlp, block.attn, block.norm1 = (
        Seeing(each) for each in (block.mlp, block.attn, block.norm1)
    )
    found = gradients(model)
    assert seen == ["float32"] * 6
    for name, expected in gradients(exact()).items():
        assert apart(found[name], expected) < TOLERANCE, name


class Own(nn.Block):
    """A block that looks at what comes in, in methods of its own."""

    seen: list[str]

    def forward(self, x: Array, ctx: nn.Context) -> Array:
        self.seen.append(x.dtype.name)
        return super().forward(x, ctx) * 1.0

    def backward(self, dy: Array, ctx: nn.Context) -> Array:
        self.seen.append(dy.dtype.name)
        return super().backward(dy * 1.0, ctx)


class Mixer(nn.Module):
    """No block of vitkit's at all."""

    def __init__(self, dim: int) -> None:
        self.linear = nn.Linear(dim, dim)
        self.seen: list[str] = []

    def forward(self, x: Array, ctx: nn.Context) -> Array:
        self.seen.append(x.dtype.name)
        return x + self.linear.forward(x, ctx)

    def backward(self, dy: Array, ctx: nn.Context) -> Array:
        self.seen.append(dy.dtype.name)
        return dy + self.linear.backward(dy, ctx)


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("kind", ["a subclass", "another module"])
@pytest.mark.usefixtures("references")
def test_a_block_that_is_not_ours_sees_float32(
    kind: str, wrapped: bool, place: int, xp: ArrayModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    def put(model: ViT) -> Any:
        block: Any = Own(48, 3, 64) if kind == "a subclass" else Mixer(48)
        block.seen = []
        model.replace(f"blocks.{place}", nn.Checkpoint(block) if wrapped else block)
        filled(model)
        return block

    model = vit(xp)
    block = put(model)
    found = gradients(model)
    assert block.seen == ["float32"] * (3 if wrapped else 2)
    truth = exact()
    put(truth)
    for name, expected in gradients(truth).items():
        assert apart(found[name], expected) < TOLERANCE, name
    if kind == "another module":  # a subclass's own forward asks that of a block
        assert flowing(model, monkeypatch) == {"uint16"}


@pytest.mark.usefixtures("references")
def test_layers_of_plugins_in_a_block_see_float32(xp: ArrayModule) -> None:
    seen: list[str] = []

    class Halved(nn.MLP):
        def forward(self, x: Array, ctx: nn.Context) -> Array:
            seen.append(x.dtype.name)
            return 0.5 * super().forward(x, ctx)

        def backward(self, dy: Array, ctx: nn.Context) -> Array:
            seen.append(dy.dtype.name)
            return super().backward(0.5 * dy, ctx)

    model, truth = vit(xp), exact()
    for each in (model, truth):
        each.replace("blocks.0.mlp", Halved(48, 64))
        filled(each)
    found = gradients(model)
    assert seen == ["float32"] * 2
    for name, expected in gradients(truth).items():
        assert apart(found[name], expected) < TOLERANCE, name


@pytest.mark.usefixtures("references")
def test_another_precision_is_that_of_what_flows(
    xp: ArrayModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = vit(xp)
    for precision, dtype in (
        ("tf32", "float32"), ("bfloat16", "uint16"), ("float16", "float32"), ("float32", "float32"),
        ("bfloat16", "uint16"),
    ):  # fmt: skip
        weights = model.state_dict()
        model.place(xp, seed=None, precision=precision)
        model.load_state_dict(weights)
        assert flowing(model, monkeypatch) == {dtype}
    assert_same(gradients(vit(xp)), gradients(model))
    model.place(xp, dtype="float64", precision="float32")
    assert flowing(model, monkeypatch) == {"float64"}


@pytest.mark.usefixtures("references")
def test_a_copy_passes_bits_too(xp: ArrayModule, monkeypatch: pytest.MonkeyPatch) -> None:
    model = vit(xp)
    other = copy.deepcopy(model)
    assert flowing(other, monkeypatch) == {"uint16"}
    found = gradients(other)
    for name, expected in gradients(exact()).items():
        assert apart(found[name], expected) < TOLERANCE, name
    other.replace("head", nn.Linear(48, 7))
    assert flowing(other, monkeypatch) == {"uint16"}


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Return what keeps what the library says."""
    kernels._say_it_stays_wide.cache_clear()
    with caplog.at_level(logging.WARNING, logger="vitkit"):
        yield caplog
    kernels._say_it_stays_wide.cache_clear()


LINE = "residual_in_fp32=False is for GPUs: what flows from block to block stays float32 here."


@pytest.mark.usefixtures("kernels_on")
def test_on_a_cpu_float32_flows_and_a_line_says_so(
    said: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "_why_not", lambda precision, xp: "")
    options = {"dropout": 0.2, "activation": "silu"}  # what no CPU needs instructions for
    narrow = vit(np, **options)
    assert said.messages == [LINE]
    assert flowing(narrow, monkeypatch) == {"float32"}
    found, expected = gradients(narrow), gradients(vit(np, False, **options))
    assert_same(expected, found)
    assert said.messages == [LINE]


@pytest.mark.usefixtures("kernels_on")
def test_where_bfloat16_is_not_served_only_that_is_said(
    said: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "_why_not", lambda precision, xp: "it is an old one")
    model = vit(np)
    assert said.messages == ["precision='bfloat16' is computed in float32 here: it is an old one."]
    assert_same(gradients(vit(np, False, precision="float32")), gradients(model))


def test_to_the_cpu_and_back(said: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By references on a device, with kernels on the CPU."""
    device = strict_device.xp
    monkeypatch.setattr(kernels, "_why_not", lambda precision, xp: "")
    options = {"dropout": 0.2, "activation": "silu"}
    with ops.reference_only():
        model = vit(device, **options)
        expected = gradients(model)
    assert said.messages == []
    if not ops._op.SWITCHED_OFF:
        model.to("numpy")
        assert said.messages == [LINE]
        assert flowing(model, monkeypatch) == {"float32"}
        assert_same(gradients(vit(np, False, **options)), gradients(model))
    with ops.reference_only():
        model.to(device)
        assert flowing(model, monkeypatch) == {"uint16"}
        assert_same(expected, gradients(model))
