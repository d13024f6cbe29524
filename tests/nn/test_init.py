"""Initializers: mean, spread and bounds of each, and that a scheme reaches every layer."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from vitkit import nn
from vitkit.backend import philox
from vitkit.models import ViT
from vitkit.nn import init
from vitkit.nn.init import SCHEMES, Initializer, Scheme

SHAPE = (300, 4, 10, 10)  # fan-in 400, 120 000 numbers
CUT_AT_2 = 0.87962566103423978  # the spread of a standard normal cut at 2
GLOROT = math.sqrt(6 / (300 + 400))

# The initializer, the shape, the spread it should have, and a bound (None for none).
CASES: dict[str, tuple[Initializer, tuple[int, ...], float, float | None]] = {
    "normal": (init.normal(0.02), SHAPE, 0.02, None),
    "trunc_normal, not cut": (init.trunc_normal(0.02), SHAPE, 0.02, 2.0),
    "trunc_normal": (init.trunc_normal(1.0), SHAPE, CUT_AT_2, 2.0),
    "trunc_normal, cut at 1": (init.trunc_normal(0.5, 1.0), SHAPE, 0.5 * CUT_AT_2, 1.0),
    "lecun_normal": (init.lecun_normal, SHAPE, 1 / 20, 2 / 20 / CUT_AT_2),
    "fan_in_uniform": (init.fan_in_uniform, SHAPE, 1 / 20 / math.sqrt(3), 1 / 20),
    "xavier_uniform": (init.xavier_uniform(), (300, 400), GLOROT / math.sqrt(3), GLOROT),
    "xavier_uniform, three parts": (
        init.xavier_uniform(parts=3),
        (900, 400),
        GLOROT / math.sqrt(3),
        GLOROT,
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_mean_spread_and_bounds(case: Any) -> None:
    initializer, shape, spread, bound = case
    values = initializer(philox(0, "test"), shape)
    assert values.shape == shape
    assert values.dtype == np.float64
    assert abs(values.mean()) < 5 * spread / math.sqrt(values.size)
    assert values.std() == pytest.approx(spread, rel=0.01)
    largest = np.abs(values).max()
    if bound is not None:
        assert largest <= bound
        assert largest > 0.95 * min(bound, 4 * spread)  # the seed's "uniform" was constant
    assert len(np.unique(values)) > 0.99 * values.size


def test_constants() -> None:
    rng = philox(0, "test")
    np.testing.assert_array_equal(init.zeros(rng, (2, 3)), np.zeros((2, 3)))
    np.testing.assert_array_equal(init.ones(rng, (2, 3)), np.ones((2, 3)))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_generator_decides(case: Any) -> None:
    initializer, shape, *_ = case
    one, again, other = (initializer(philox(seed, "test"), shape) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert (one != other).mean() > 0.99


def constant(value: float) -> Initializer:
    return lambda rng, shape: np.full(shape, value)


MARKED = Scheme(
    weight=constant(1),
    qkv=constant(2),
    mlp_bias=constant(3),
    patch=constant(4),
    pos_embed=constant(5),
    cls_token=constant(6),
)
BLOCK = {
    "norm1.weight": 1,
    "norm1.bias": 0,
    "attn.qkv.weight": 2,
    "attn.qkv.bias": 0,
    "attn.proj.weight": 1,
    "attn.proj.bias": 0,
    "norm2.weight": 1,
    "norm2.bias": 0,
    "mlp.fc1.weight": 1,
    "mlp.fc1.bias": 3,
    "mlp.fc2.weight": 1,
    "mlp.fc2.bias": 3,
}


def small_vit(scheme: str, **options: Any) -> ViT:
    return ViT(
        "Ti/4",
        init=scheme,
        **{"image_size": 8, "dim": 12, "depth": 2, "num_classes": 5} | options,
    )


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_a_scheme_reaches_every_layer(
    gradient_checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SCHEMES, "marked", MARKED)
    expected = {
        "cls_token": 6,
        "pos_embed": 5,
        "patch_embed.proj.weight": 4,
        "patch_embed.proj.bias": 0,
        **{f"blocks.{i}.{name}": value for i in range(2) for name, value in BLOCK.items()},
        "norm.weight": 1,
        "norm.bias": 0,
        "head.weight": 0,
        "head.bias": 0,
    }
    model = small_vit("marked", gradient_checkpointing=gradient_checkpointing)
    found = {name: set(value.ravel().tolist()) for name, value in model.state_dict().items()}
    assert found == {name: {value} for name, value in expected.items()}


def test_a_scheme_reaches_every_layer_of_a_block_alone() -> None:
    block = nn.Block(8, 2, 16, init=MARKED, xp=np)
    found = {name: set(value.ravel().tolist()) for name, value in block.state_dict().items()}
    assert found == {name: {value} for name, value in BLOCK.items()}


D, M, PATCH, K = 96, 384, 3 * 8 * 8, 5


def glorot_spread(fan_in: int, fan_out: int) -> float:
    return math.sqrt(2 / (fan_in + fan_out))


# The spread of every parameter that is drawn; the others are 0, and the norms' weights 1.
SPREADS = {
    "jax": {
        "pos_embed": 0.02,
        "patch_embed.proj.weight": math.sqrt(1 / PATCH),
        "attn.qkv.weight": glorot_spread(D, D),
        "attn.proj.weight": glorot_spread(D, D),
        "mlp.fc1.weight": glorot_spread(D, M),
        "mlp.fc1.bias": 1e-6,
        "mlp.fc2.weight": glorot_spread(D, M),
        "mlp.fc2.bias": 1e-6,
    },
    "timm": {
        "cls_token": 1e-6,
        "pos_embed": 0.02,
        "patch_embed.proj.weight": math.sqrt(1 / PATCH / 3),
        "attn.qkv.weight": 0.02,
        "attn.proj.weight": 0.02,
        "mlp.fc1.weight": 0.02,
        "mlp.fc2.weight": 0.02,
    },
}
SPREADS["scratch"] = SPREADS["jax"] | {"pos_embed": 1.0}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_schemes_that_ship(scheme: str) -> None:
    model = small_vit(scheme, image_size=64, patch_size=8, dim=D, num_classes=K)
    for name, value in model.state_dict().items():
        kind = name.split(".", 2)[2] if name.startswith("blocks.") else name
        spread = SPREADS[scheme].get(kind)
        if spread is None:
            constant = 1 if "norm" in name and name.endswith("weight") else 0
            assert (value == constant).all(), name
        else:
            noise = 5 / math.sqrt(value.size)
            assert value.std() == pytest.approx(spread, rel=noise), name
            assert abs(value.mean()) < noise * spread, name


def test_every_scheme_is_here() -> None:
    assert set(SCHEMES) == set(SPREADS)


def test_blocks_are_not_drawn_alike() -> None:
    values = small_vit("jax").state_dict()
    assert (values["blocks.0.attn.qkv.weight"] != values["blocks.1.attn.qkv.weight"]).all()
