"""Blocks that are computed layer by layer on a GPU, as those with dropout are in training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from vitkit import ViT, kernels, nn
from vitkit.backend import to_numpy
from vitkit.data import Batch
from vitkit.kernels.cuda import _kernel, _products
from vitkit.ops import softmax_cross_entropy
from vitkit.ops.residual import as_wide, narrowed
from vitkit.optim import AdamW
from vitkit.testing import cuda_on_cpu, strict_device
from vitkit.train import LossScale
from vitkit.train.preprocess import Preprocess
from vitkit.train.step import train_step

xp = strict_device.xp
UNIT = {"tf32": 2.0**-11, "bfloat16": 2.0**-8, "float16": 2.0**-11}  # half a last digit
OPERANDS = {"tf32": "float32", "bfloat16": "uint16", "float16": "float16"}
SIZES: dict[str, Any] = {
    "image_size": 8, "patch_size": 4, "in_channels": 3, "num_classes": 7, "dim": 64, "depth": 2,
    "num_heads": 2, "mlp_dim": 96,
}  # fmt: skip
# Two operands of each product on the way from the images to the logits and back are rounded; errors
# add up by their squares. Twice that is allowed: of gradients, parts cancel. What flows between
# blocks may be rounded too, twice in each and once before them.
TOLERANCE = 2 * (2 * 2 * (6 * SIZES["depth"] + 1)) ** 0.5
NARROW_TOLERANCE = 2 * (2 * (2 * (6 * SIZES["depth"] + 1) + 2 * SIZES["depth"] + 1)) ** 0.5
USES = {"dropout": {"dropout": 0.2}, "an activation of its own": {"activation": "silu"}}
NARROW = {
    f"{use}, a residual in bfloat16": {**USES[use], "residual_in_fp32": False} for use in USES
}
USES |= NARROW
CASES = [
    (precision, use)
    for precision in UNIT
    for use in USES
    if precision == "bfloat16" or use not in NARROW
]
cases = pytest.mark.parametrize(("precision", "use"), CASES)
emulated = pytest.mark.usefixtures("emulated")


@pytest.fixture
def on_cpu() -> Iterator[None]:
    """Run kernels for CuPy on the strict device, in one order of threads."""
    if reason := cuda_on_cpu.why_not():
        pytest.skip(reason)
    with cuda_on_cpu.emulated():
        yield


def vit(precision: str = "float32", **options: Any) -> ViT:
    """Return a model, none of whose weights are zero."""
    given = {"xp": xp, "precision": precision, **SIZES, **options}
    model = ViT("Ti/4", **given)
    assert model.precision == precision
    rng = np.random.default_rng(1)
    for name, value in model.state_dict().items():
        value += 0.1 * rng.standard_normal(value.shape).astype("float32")
        model.load_state_dict({name: value}, strict=False)
    return model


def gradients(model: ViT, scale: float = 1.0) -> dict[str, np.ndarray]:
    """Return every gradient of one pass of training, and the logits, in float64."""
    images = np.random.default_rng(2).standard_normal((4, 3, 8, 8)).astype("float32")
    ctx = nn.Context(train=True, seed=3, step=4, input_gradient=False)
    model.zero_grad()
    with model.rounded_once():
        logits = model.forward(model.xp.asarray(images), ctx)
        labels = model.xp.asarray(np.arange(4))
        _, dlogits = softmax_cross_entropy(logits, labels, xp=model.xp)
        model.backward(dlogits * scale, ctx)
    found = {name: to_numpy(p.grad) / scale for name, p in model.named_parameters()}
    return {"logits": to_numpy(logits), **found}


def apart(found: np.ndarray, expected: np.ndarray) -> float:
    """Return how far apart two arrays are, as a part of their norm."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@emulated
@cases
def test_gradients_are_as_exact_as_their_precision(precision: str, use: str) -> None:
    found = gradients(vit(precision, **USES[use]), 2.0**10 if precision == "float16" else 1.0)
    exact = gradients(vit(xp=np, dtype="float64", **USES[use]))
    for name, expected in exact.items():
        tolerance = NARROW_TOLERANCE if use in NARROW else TOLERANCE
        assert apart(found[name], expected) < tolerance * UNIT[precision], name


@emulated
@pytest.mark.parametrize("path", [0.0, 0.5])
def test_so_are_those_of_fused_blocks_with_a_residual_in_bfloat16(path: float) -> None:
    options = {"activation": "gelu_tanh", "drop_path": path}
    found = gradients(vit("bfloat16", residual_in_fp32=False, **options))
    wide = gradients(vit("bfloat16", **options))
    for name, expected in gradients(vit(xp=np, dtype="float64", **options)).items():
        assert apart(found[name], expected) < NARROW_TOLERANCE * UNIT["bfloat16"], name
        assert (found[name] != wide[name]).any(), name


@pytest.mark.usefixtures("on_cpu")
@cases
def test_only_the_head_multiplies_float32(
    precision: str, use: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seen = vit(precision, **USES[use]), []
    multiply = _products.PRODUCTS[xp.__name__]

    def noted(a: Any, b: Any, out: Any, *others: Any) -> None:
        *_, precision, _ = others
        kind = "tf32" if precision == "tf32" else a.dtype.name
        seen.append((kind, SIZES["num_classes"] in (*a.shape, *b.shape, *out.shape)))
        multiply(a, b, out, *others)

    monkeypatch.setitem(_products.PRODUCTS, xp.__name__, noted)
    gradients(model)
    low = "tf32" if precision == "tf32" else OPERANDS[precision]
    assert set(seen) == {(low, False), ("float32", True)}
    assert sum(head for _, head in seen) == 3


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize(("precision", "use"), [case for case in CASES if case[0] != "tf32"])
def test_weights_are_rounded_once(
    precision: str, use: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, launched = vit(precision, **USES[use]), []
    launch = _kernel.LAUNCHERS[xp.__name__]

    def counted(kernel: Any, *arguments: Any) -> None:
        launched.append(kernel.name.startswith("cast<float, "))
        launch(kernel, *arguments)

    monkeypatch.setitem(_kernel.LAUNCHERS, xp.__name__, counted)
    once, roundings = gradients(model), sum(launched)
    launched.clear()
    monkeypatch.delitem(kernels.ROUNDED, xp.__name__)
    for name, gradient in gradients(model).items():
        np.testing.assert_array_equal(once[name], gradient)
    weights = 2 * (4 * SIZES["depth"] + 1)  # of each block four, of the patches one, there and back
    assert sum(launched) - roundings == weights - len(model.groups)


@emulated
@pytest.mark.parametrize(
    ("precision", "narrow"), [*((each, False) for each in UNIT), ("bfloat16", True)]
)
def test_composed_and_fused_blocks_agree(
    precision: str, narrow: bool, rng: np.random.Generator
) -> None:
    """As inference of a model with dropout is fused, and its training is not."""
    fused, composed = nn.Block(64, 2, 96), nn.Block(64, 2, 96)
    composed.attn, composed.mlp = nn.Timed(composed.attn), nn.Timed(composed.mlp)
    x, dy = (xp.asarray(rng.standard_normal((3, 9, 64)).astype("float32")) for _ in range(2))
    if narrow:
        x, dy = narrowed(x, xp=xp), narrowed(dy, xp=xp)
    found = []
    for block in (fused, composed):
        block.place(xp, seed=1, precision=precision)
        ctx = nn.Context(keep=True)
        y, dx = block.forward(x, ctx), block.backward(dy, ctx)
        grads = [p.grad for _, p in block.named_parameters()]
        assert (y.dtype, dx.dtype) == (x.dtype, x.dtype)
        found.append([to_numpy(as_wide(each, xp=xp)) for each in (y, dx, *grads)])
    for one, two in zip(*found, strict=True):
        assert apart(two, one) < 3 * UNIT[precision]  # each keeps some of it less exact


@emulated
def test_a_step_in_float16_that_overflows_is_skipped() -> None:
    model = vit("float16", dropout=0.2)
    optimizer, images = AdamW(1e-2).attach(model), np.full((2, 3, 8, 8), 9, "uint8")
    batch = Batch(images, np.array([0, 4]), np.arange(2), 0)
    given = [batch], softmax_cross_entropy, Preprocess(255.0, (0.5,) * 3, (0.5,) * 3)
    for step, (scale, skipped) in enumerate([(2.0**16, False), (2.0**40, True)]):
        before, loss_scale = model.state_dict(), LossScale(xp)
        loss_scale.scale[...] = scale
        settings: dict[str, Any] = {"lr": 1e-2, "seed": 0, "step": step}
        train_step(model, optimizer, *given, loss_scale=loss_scale, **settings)
        after = model.state_dict()
        assert all((before[name] == after[name]).all() for name in before) is skipped
        assert float(to_numpy(loss_scale.scale)) == (scale / 2 if skipped else scale)
