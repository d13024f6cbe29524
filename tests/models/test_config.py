"""What a ViT may be, and every message about what it may not."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from vitkit.errors import ConfigError, VitkitError
from vitkit.models import VARIANTS, ViT, ViTConfig
from vitkit.models.config import DEEPEST, LARGEST
from vitkit.models.sizes import Options

SIZES = {  # dim, depth, heads, MLP, patch
    "Ti/16": (192, 12, 3, 768, 16),
    "S/16": (384, 12, 6, 1536, 16),
    "B/16": (768, 12, 12, 3072, 16),
    "B/32": (768, 12, 12, 3072, 32),
    "L/16": (1024, 24, 16, 4096, 16),
    "L/32": (1024, 24, 16, 4096, 32),
    "H/14": (1280, 32, 16, 5120, 14),
}


@pytest.mark.parametrize("variant", SIZES)
def test_the_table_of_the_paper(variant: str) -> None:
    c = ViTConfig.of(variant)
    patch = SIZES[variant][4]
    assert (c.dim, c.depth, c.num_heads, c.mlp_dim) == SIZES[variant][:4]
    assert (c.variant, c.image_size, c.patch_size) == (variant, (224, 224), (patch, patch))
    assert (c.in_channels, c.num_classes, c.representation_size) == (3, 1000, None)
    assert (c.activation, c.pool, c.init, c.layer_norm_eps) == ("gelu", "cls", "jax", 1e-6)
    assert (c.dropout, c.drop_path, c.gradient_checkpointing) == (0.0, 0.0, False)


def test_the_variants() -> None:
    assert tuple(SIZES) == VARIANTS
    assert ViTConfig.of() == ViTConfig.of("B/16")
    assert ViTConfig.of("S/4", image_size=32).patch_size == (4, 4)  # any patch side


@pytest.mark.parametrize(
    ("options", "grid", "num_tokens"),
    [
        ({}, (14, 14), 197),
        ({"pool": "mean"}, (14, 14), 196),
        ({"image_size": (32, 64), "patch_size": (4, 16)}, (8, 4), 33),
        ({"image_size": [32, 64], "patch_size": 8}, (4, 8), 33),
        ({"image_size": 16}, (1, 1), 2),
    ],
)
def test_grid_and_tokens(options: dict[str, Any], grid: tuple[int, int], num_tokens: int) -> None:
    c = ViTConfig.of("B/16", **options)
    assert (c.grid, c.num_tokens) == (grid, num_tokens)


def test_overrides() -> None:
    given = {
        "dim": 48,
        "depth": 2,
        "num_heads": 4,
        "mlp_dim": 100,
        "image_size": 32,
        "num_classes": 7,
        "layer_norm_eps": 1e-5,
    }
    c = ViTConfig.of("Ti/4", **given)
    assert {name: getattr(c, name) for name in given} == given | {"image_size": (32, 32)}
    assert ViTConfig.of("Ti/16", dim=48).mlp_dim == 192  # four times the width, as in the table
    assert ViTConfig.of("Ti/16", dim=None, patch_size=None) == ViTConfig.of("Ti/16")


def test_round_trip_and_frozen() -> None:
    c = ViTConfig.of("Ti/4", image_size=(8, 12), pool="mean", representation_size=5)
    assert ViTConfig(**c.to_dict()) == c
    options = c.to_dict()
    assert ViTConfig.of(options.pop("variant"), **options) == c
    with pytest.raises(dataclasses.FrozenInstanceError):
        c.dim = 5  # type: ignore[misc]
    assert hash(c) == hash(ViTConfig(**c.to_dict()))


def test_the_keywords_of_vit_are_the_fields() -> None:
    fields = {field.name for field in dataclasses.fields(ViTConfig)}
    assert set(Options.__annotations__) == fields - {"variant"}


WHOLE = "expected a whole number of 1 or more"
PIXELS = "expected a number of pixels, or (height, width)"
RATE = "expected a number in [0, 1)"
CASES: list[tuple[dict[str, Any], str]] = [
    *(
        ({name: value}, f"{name}: got {value!r}; {WHOLE}")
        for name in ("in_channels", "num_classes", "dim", "depth", "num_heads", "mlp_dim")
        for value in (0, -1, 2.0, "3", True)
    ),
    *(
        ({name: value}, f"{name}: got {got!r}; {PIXELS}")
        for name in ("image_size", "patch_size")
        for value, got in [
            (0, (0, 0)),
            (-16, (-16, -16)),
            ("16", "16"),
            (16.0, 16.0),
            (True, True),
            ((16,), (16,)),
            ([16, 16, 3], (16, 16, 3)),
            ((16, 0), (16, 0)),
            ((16, 16.0), (16, 16.0)),
        ]
    ),
    *(
        (
            {"representation_size": value},
            f"representation_size: got {value!r}; {WHOLE}, or None",
        )
        for value in (0, -1, 1.5, "2", True)
    ),
    *(
        ({name: value}, f"{name}: got {value!r}; {RATE}")
        for name in ("dropout", "drop_path")
        for value in (-0.1, 1, 1.5, float("nan"), "0.1", True)
    ),
    *(
        ({"layer_norm_eps": value}, f"layer_norm_eps: got {value!r}; expected a number above 0")
        for value in (0, -1e-6, "1e-6", float("nan"))
    ),
    *(  # those that it would take forever to look for the nearest fits of, or to make blocks of
        ({name: 2**62}, f"{name}: got {2**62}; expected at most {most}")
        for name, most in [("dim", LARGEST), ("mlp_dim", LARGEST), ("depth", DEEPEST)]
    ),
    ({"patch_size": 2**62}, f"patch_size: got {(2**62, 2**62)}; expected at most {LARGEST}"),
    (
        {"representation_size": 2**62},
        f"representation_size: got {2**62}; expected at most 10000000, or None",
    ),
    (
        {"activation": "gleu"},
        "activation: got 'gleu'; expected one of gelu, gelu_tanh, relu, silu, quick_gelu, tanh; "
        "did you mean 'gelu'?",
    ),
    ({"pool": "max"}, "pool: got 'max'; expected one of cls, mean"),
    ({"pool": "maen"}, "pool: got 'maen'; expected one of cls, mean; did you mean 'mean'?"),
    ({"init": "tim"}, "init: got 'tim'; expected one of jax, scratch, timm; did you mean 'timm'?"),
    (
        {"num_heads": 5},
        "num_heads: 5 heads do not divide dim 192; nearest valid: num_heads 4 or 6, or dim 190 or "
        "195",
    ),
    (
        {"dim": 100, "num_heads": 64},
        "num_heads: 64 heads do not divide dim 100; nearest valid: num_heads 50 or 100, or dim 64 "
        "or 128",
    ),
    (
        {"dim": 2, "num_heads": 3},
        "num_heads: 3 heads do not divide dim 2; nearest valid: num_heads 1 or 2, or dim 3",
    ),
    (
        {"image_size": (30, 32)},
        "patch_size: 16 does not divide the image height 30; nearest valid: patch_size 10 or 15, "
        "or image height 16 or 32",
    ),
    (
        {"image_size": (32, 40), "patch_size": (8, 12)},
        "patch_size: 12 does not divide the image width 40; nearest valid: patch_size 8 or 10, "
        "or image width 36 or 48",
    ),
    (
        {"image_size": (8, 16)},
        "patch_size: 16 does not divide the image height 8; nearest valid: patch_size 4 or 8, or "
        "image height 16",
    ),
    ({"drop_rate": 0.1}, "drop_rate: not an option of ViT; did you mean 'drop_path'?"),
    ({"xyz": 1}, "xyz: not an option of ViT"),
    ({"patchsize": 4}, "patchsize: not an option of ViT; did you mean 'patch_size'?"),
]


@pytest.mark.parametrize(("options", "message"), CASES, ids=[message for _, message in CASES])
def test_what_cannot_be_and_why(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ViTConfig.of("Ti/16", **options)
    assert message in caught.value.problems
    assert len(caught.value.problems) == 1
    assert str(caught.value) == message


@pytest.mark.parametrize("variant", ["B16", "B", "X/16", "B/0", "B/x", "b/16", "", "B/-4", "B/²"])
def test_an_unknown_variant(variant: str) -> None:
    expected = (
        f"variant: got {variant!r}; expected a size (Ti, S, B, L, H), a slash and a patch side, "
        "such as Ti/16, S/16, B/16, B/32, L/16, L/32, H/14"
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(expected)}"):
        ViTConfig.of(variant)


def test_an_unknown_variant_gets_a_hint() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'B/16'\?$"):
        ViTConfig.of("B16")


def test_every_problem_is_listed_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        ViTConfig.of(
            "Ti/16", image_size=(30, 33), num_heads=5, dropout=2, pool="none", layer_norm_eps=0
        )
    keys = [problem.split(":")[0] for problem in caught.value.problems]
    assert keys == [*("dropout", "layer_norm_eps", "pool", "num_heads", "patch_size", "patch_size")]
    assert str(caught.value).splitlines() == caught.value.problems


def test_unknown_keywords_are_all_listed() -> None:
    with pytest.raises(ConfigError) as caught:
        ViTConfig.of("Ti/16", widht=1, heads=2)
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["widht", "heads"]


def test_a_wrong_size_is_found_before_anything_is_allocated() -> None:
    with pytest.raises(VitkitError, match="num_heads"):
        ViT("H/14", dim=2**20 + 1, depth=10**4, num_heads=2)  # some 500 TB, if it were allocated


def test_the_nearest_valid_sizes_are_valid() -> None:
    for heads in (4, 6):
        ViTConfig.of("Ti/16", num_heads=heads)
    for dim in (190, 195):
        ViTConfig.of("Ti/16", num_heads=5, dim=dim)


def test_what_was_written_comes_back_whatever_its_size_is_called() -> None:
    config = ViTConfig.of("Ti/4", image_size=(8, 12), depth=2, representation_size=5, pool="mean")
    assert ViTConfig.from_dict(config.to_dict()) == config
    told = {**config.to_dict(), "variant": "Nobodys/3", "image_size": [8, 12], "patch_size": 4}
    stranger = ViTConfig.from_dict(told)
    assert stranger == dataclasses.replace(config, variant="Nobodys/3")
    assert ViT(stranger, backend=None).config == stranger
    assert ViT(stranger, backend=None, depth=3, dim=None).config.depth == 3


def test_what_is_missing_or_unknown_in_what_was_written_is_listed() -> None:
    told = {**ViTConfig.of("Ti/4", image_size=8).to_dict(), "head": 3}
    del told["dim"], told["patch_size"], told["mlp"]  # the last was not written once
    with pytest.raises(ConfigError) as caught:
        ViTConfig.from_dict(told)
    assert caught.value.problems == [
        "head: not an option of ViT; did you mean 'num_heads'?",
        "patch_size: is missing",
        "dim: is missing",
    ]
    with pytest.raises(ConfigError, match="num_heads: 3 heads do not divide dim 16"):
        ViTConfig.from_dict({**ViTConfig.of("Ti/4", image_size=8).to_dict(), "dim": 16})
