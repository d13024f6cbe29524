"""The last block of a model with a class token computes no more than the head reads of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vitkit import ops
from vitkit.backend import Array, ArrayModule, philox
from vitkit.models import ViT
from vitkit.nn import (
    ACTIVATIONS,
    MLP,
    Activation,
    Attention,
    Block,
    Context,
    DropPath,
    LayerNorm,
    Linear,
    Module,
    Timed,
)
from vitkit.nn.block import ROWS
from vitkit.testing import assert_close, strict_device

SIZES: dict[str, Any] = {
    "image_size": 16, "patch_size": 4, "in_channels": 2, "num_classes": 5, "dim": 12, "depth": 2,
    "num_heads": 3, "mlp_dim": 20,
}  # fmt: skip
TOKENS = 17
ROOT = Path(__file__).parents[2]
BATCHES = [1, 3, 16, 31, 32, 33]  # from all tokens that there are to one of each


def vit(xp: ArrayModule, **options: Any) -> ViT:
    """Return a model, none of whose weights are zero."""
    model = ViT("Ti/4", xp=xp, **SIZES | options)
    for name, parameter in model.named_parameters():
        noise = 0.3 * philox(0, f"noise of {name}").standard_normal(parameter.shape)
        parameter.value[...] += xp.asarray(noise, dtype=parameter.value.dtype)
    return model


def images(model: ViT, batch: int) -> Array:
    values = philox(batch, "images").standard_normal((batch, 2, 16, 16))
    return model.xp.asarray(values, dtype=model.pos_embed.value.dtype)


def passed(model: ViT, batch: int, *, train: bool = True) -> dict[str, Array]:
    """Return logits and every gradient of one pass; nothing is left of it."""
    ctx = Context(train=train, seed=3, keep=True)
    logits = model.forward(images(model, batch), ctx)
    dlogits = model.xp.asarray(philox(9, "dlogits").standard_normal(logits.shape), logits.dtype)
    model.zero_grad()
    dx = model.backward(dlogits, ctx)
    assert len(ctx) == 0
    gradients = {name: p.grad.copy() for name, p in model.named_parameters()}
    return {"logits": logits, "images": dx, **gradients}


def whole(model: ViT) -> ViT:
    """Have a model's last block computed to its end: a wrapped one is not asked for less."""
    model.replace(f"blocks.{len(model.blocks) - 1}", Timed(model.blocks[-1]))
    return model


def rows_of_mlps(run: Callable[[], Any]) -> list[int]:
    """Return of how many tokens each MLP of a model is computed."""
    seen: list[int] = []
    branch = ops.mlp_branch.reference

    def told(x: Array, *arguments: Any, **settings: Any) -> Any:
        seen.append(x.shape[0] * x.shape[1])
        return branch(x, *arguments, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops.mlp_branch, "reference", told)
        with ops.reference_only():
            run()
    return seen


@pytest.mark.parametrize(
    "options", [{}, {"drop_path": 0.5}, {"depth": 1}, {"activation": "silu"}], ids=str
)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nothing_changes(batch: int, dtype: str, options: dict[str, Any], xp: ArrayModule) -> None:
    found = passed(vit(xp, dtype=dtype, **options), batch)
    expected = passed(whole(vit(xp, dtype=dtype, **options)), batch)
    for name, array in expected.items():
        assert_close(found[name], array, reduction=batch * TOKENS)


@pytest.mark.parametrize("batch", BATCHES)
def test_its_mlp_sees_the_tokens_that_kernels_want_at_once_and_no_more(
    batch: int, xp: ArrayModule
) -> None:
    model = vit(xp)
    every, last = rows_of_mlps(lambda: model(images(model, batch)))
    assert every == batch * TOKENS
    assert min(ROWS, every) <= last < max(ROWS, batch) + batch
    assert rows_of_mlps(lambda: passed(model, batch)) == [every, last]
    assert rows_of_mlps(lambda: model.features(images(model, batch))) == [every, last]


def test_less_is_kept_for_backward(xp: ArrayModule) -> None:
    kept = []
    for model in (vit(xp), whole(vit(xp))):
        ctx = Context(train=True)
        model.forward(images(model, 32), ctx)
        kept.append(ctx.nbytes)
    mlp = 32 * (TOKENS - 1) * 4 * (12 + 2 * 20 + 2)  # x, f(h), f'(h), two statistics
    norm = 32 * (TOKENS - 1) * 4 * (12 + 2)
    assert kept[1] - kept[0] == pytest.approx(mlp + norm, rel=0.05)


def mixing(kind: type[Module]) -> type[Module]:
    """Return a layer like one of vitkit's that adds to each token the mean of all."""

    class Mixes(kind):  # type: ignore[misc,valid-type]
        def forward(self, x: Array, ctx: Context) -> Array:
            y = super().forward(x, ctx)
            return y + y.mean(axis=1, keepdims=True)

        def backward(self, dy: Array, ctx: Context) -> Array:
            return super().backward(dy + dy.mean(axis=1, keepdims=True), ctx)

    return Mixes


MIXING: dict[str, Callable[[], Module]] = {
    "blocks.1.mlp": lambda: mixing(MLP)(12, 20),
    "blocks.1.mlp.fc2": lambda: mixing(Linear)(20, 12),
    "blocks.1.mlp.act": lambda: mixing(Activation)(ACTIVATIONS["gelu"]),
    "blocks.1.norm2": lambda: mixing(LayerNorm)(12),
    "blocks.1.drop_path2": lambda: mixing(DropPath)(0.0),
    "blocks.1": lambda: mixing(Block)(12, 3, 20),
    "norm": lambda: mixing(LayerNorm)(12),
}


@pytest.mark.parametrize("name", [*MIXING, "blocks.1.mlp, one that is vitkit's own"])
def test_what_may_mix_tokens_sees_them_all(name: str, xp: ArrayModule) -> None:
    def changed() -> ViT:
        model = vit(xp)
        layer = MIXING[name]() if name in MIXING else Attention(12, 3)  # which fuses, as MLPs do
        model.replace(name.partition(",")[0], layer)
        return model

    found, expected = passed(changed(), 32), passed(whole(changed()), 32)
    for key, array in expected.items():
        assert_close(found[key], array, reduction=32 * TOKENS)
    assert not changed()._reads_one_token(Context())


class Unhurried(ViT):
    """A model with a forward of its own, which computes every block to its end."""

    def forward(self, x: Array, ctx: Context) -> Array:
        return self.head.forward(
            self.pool.forward(self.norm.forward(self._encode(x, ctx, every=True), ctx), ctx), ctx
        )


def test_backward_is_that_of_the_forward_that_was(xp: ArrayModule) -> None:
    model = Unhurried("Ti/4", xp=xp, **SIZES)
    model.load_state_dict(vit(xp).state_dict())
    found, expected = passed(model, 32), passed(vit(xp), 32)
    for name, array in expected.items():
        assert_close(found[name], array, reduction=32 * TOKENS)


def test_the_benchmarks_count_as_many_rows() -> None:
    text = (ROOT / "benchmarks" / "contenders" / "costs.py").read_text("utf-8")
    assert f"\nROWS = {ROWS}\n" in text


@pytest.mark.parametrize("options", [{"pool": "mean"}, {"dropout": 0.2}], ids=str)
def test_where_all_tokens_matter_or_draw_a_number(options: dict[str, Any], xp: ArrayModule) -> None:
    model = vit(xp, **options)
    assert not model._reads_one_token(Context(train=True))
    assert model._reads_one_token(Context()) == ("dropout" in options)  # inference draws none


def test_every_token_can_still_be_had(xp: ArrayModule) -> None:
    model = vit(xp)
    tokens = model.features(images(model, 32), tokens=True)
    assert tokens.shape == (32, TOKENS, 12)
    assert_close(model.features(images(model, 32)), tokens[:, 0])


def test_waits_for_no_device() -> None:
    model = vit(strict_device.xp)
    given = images(model, 32)
    with strict_device.count_syncs() as syncs:
        ctx = Context(train=True)
        model.backward(model.forward(given, ctx), ctx)
    assert syncs == []
