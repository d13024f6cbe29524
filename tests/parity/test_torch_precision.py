"""The 16-bit precisions beside PyTorch's autocast, and beside all of it in bfloat16.

The truth is float64.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from vitkit import ViT, nn, ops
from vitkit.backend import to_numpy

SIZES: dict[str, Any] = {
    "image_size": 12, "patch_size": 4, "in_channels": 3, "num_classes": 7, "dim": 48, "depth": 2,
    "num_heads": 3, "mlp_dim": 96, "dropout": 0.2,
}  # fmt: skip
UNIT = {"bfloat16": 2.0**-8, "float16": 2.0**-11}  # half a last digit
# Two operands of each product on the way from the images to the logits and back are rounded, by
# PyTorch what comes out of it too; errors add up by their squares. Twice that is allowed, since
# gradients are sums that cancel in part.
TOLERANCE = 2 * (2 * 2 * (6 * SIZES["depth"] + 1)) ** 0.5
BATCH, SEED, STEP = 4, 21, 4


def gradients(twin: Any, images: Any, dlogits: Any, autocast: Any) -> dict[str, np.ndarray]:
    """Return logits and gradients of a torch model, whose head is float32."""
    with autocast:
        features = twin.features(images)
    logits = twin.head(features.to(dlogits.dtype))
    logits.backward(dlogits)
    found = {name: p.grad.double().numpy() for name, p in twin.named_parameters()}
    return {"logits": logits.detach().double().numpy(), **found}


def ours(
    model: ViT, images: Any, dlogits: Any, precision: str, torch_name: Any
) -> dict[str, np.ndarray]:
    """Return the same of a model of vitkit's, placed anew, by names of PyTorch's."""
    with ops.reference_only():  # what every kernel is held to
        weights = model.state_dict()
        model.place(model.xp, seed=None, precision=precision)
        model.load_state_dict(weights)
        ctx = nn.Context(train=True, seed=SEED, step=STEP, input_gradient=False)
        logits = model.forward(images, ctx)
        model.backward(dlogits, ctx)
    found = {torch_name(name): to_numpy(p.grad) for name, p in model.named_parameters()}
    return {"logits": to_numpy(logits), **found}


def apart(found: np.ndarray, expected: np.ndarray) -> float:
    """Return how far apart two arrays are, as a part of their norm."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("parity", ["float32"], indirect=True)
@pytest.mark.parametrize("precision", UNIT)
def test_training_with_dropout(
    precision: str, parity: Any, torch_vit: Any, torch_name: Any, draws: Any
) -> None:
    torch, scale = parity.torch, 2.0**10  # which float16 needs, and a power of two changes no digit
    model = ViT("Ti/16", backend=None, **SIZES)
    parity.place(model)
    twin = torch_vit(model.config)
    parity.copy_weights(model, twin, torch_name)
    drawn, rate = draws(SEED, STEP), SIZES["dropout"]
    twin.pos_drop = drawn.times(drawn.mask((BATCH, 10, 48), rate))
    for block in twin.blocks:
        drawn.put_in_block(block, BATCH, 10, rate, 0.0)
    images, timages = parity.normal(BATCH, 3, 12, 12)
    dlogits, tdlogits = parity.normal(BATCH, 7, scale=scale)

    exact_twin = copy.deepcopy(twin).double()
    nothing = torch.autocast("cpu", enabled=False)
    exact = gradients(exact_twin, timages.double(), tdlogits.double(), nothing)
    low = torch.autocast("cpu", dtype=getattr(torch, precision))
    theirs = gradients(twin, timages, tdlogits, low)

    found = ours(model, images, dlogits, precision, torch_name)

    assert found.keys() == exact.keys()
    errors = {name: apart(found[name], exact[name]) for name in exact}
    autocast = {name: apart(theirs[name], exact[name]) for name in exact}
    for name in exact:
        assert errors[name] < TOLERANCE * UNIT[precision], name
        assert apart(found[name], theirs[name]) < 1.5 * TOLERANCE * UNIT[precision], name
    assert np.mean(list(errors.values())) < np.mean(list(autocast.values()))


@pytest.mark.parametrize("parity", ["float32"], indirect=True)
@pytest.mark.parametrize("rates", [(0.0, 0.0), (0.2, 0.0), (0.0, 0.1)], ids=str)
def test_a_residual_in_bfloat16(
    rates: tuple[float, float], parity: Any, torch_vit: Any, torch_name: Any, draws: Any
) -> None:
    """Beside a PyTorch model in bfloat16, weights, residual and all, as the fast ones train."""
    torch, (rate, path) = parity.torch, rates
    given = {**SIZES, "depth": 4, "dropout": rate, "drop_path": path}
    model = ViT("Ti/16", backend=None, residual_in_fp32=False, **given)
    parity.place(model)
    twin = torch_vit(model.config)
    parity.copy_weights(model, twin, torch_name)
    low = copy.deepcopy(twin).to(torch.bfloat16)
    for each in (twin.double(), low):
        drawn = draws(SEED, STEP)
        each.pos_drop = drawn.times(drawn.mask((BATCH, 10, 48), rate))
        for which, block in enumerate(each.blocks):
            drawn.put_in_block(block, BATCH, 10, rate, path * which / 3)
    images, timages = parity.normal(BATCH, 3, 12, 12)
    dlogits, tdlogits = parity.normal(BATCH, 7)

    nothing = torch.autocast("cpu", enabled=False)
    exact = gradients(twin, timages.double(), tdlogits.double(), nothing)
    theirs = gradients(low, timages.bfloat16(), tdlogits.bfloat16(), nothing)

    found = ours(model, images, dlogits, "bfloat16", torch_name)

    assert found.keys() == exact.keys()
    errors = {name: apart(found[name], exact[name]) for name in exact}
    pure = {name: apart(theirs[name], exact[name]) for name in exact}
    for name, error in errors.items():
        assert error < 2 * pure[name], name
    assert np.mean(list(errors.values())) < np.mean(list(pure.values()))
