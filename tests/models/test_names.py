"""Models of layers, activations and sizes that plugins bring, by name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from vitkit import nn, ops, registry
from vitkit.backend import Array, ArrayModule, philox, to_numpy
from vitkit.errors import ConfigError
from vitkit.models import MODELS, VARIANTS, ViT, ViTConfig
from vitkit.models.sizes import parse_variant
from vitkit.nn import ACTIVATIONS, LAYERS, Context
from vitkit.nn.init import SCHEMES, Scheme, ones
from vitkit.optim import AdamW
from vitkit.registry import BUILTIN
from vitkit.testing import directional_derivative_error, strict_device

SMALL: dict[str, Any] = {
    "image_size": (8, 12), "patch_size": (4, 3), "in_channels": 2, "num_classes": 5,
    "dim": 12, "depth": 2, "num_heads": 3, "mlp_dim": 20,
}  # fmt: skip


class SwiGLU(nn.Module):
    """A gated MLP (arXiv 2002.05202): ``W3 (act(W1 x) * W2 x)``."""

    def __init__(
        self,
        dim: int,
        mlp_dim: int,
        activation: nn.ActivationPair,
        *,
        dropout: float = 0.0,
        init: Scheme = SCHEMES["jax"],
        xp: ArrayModule = None,
    ) -> None:
        self.gate = nn.Linear(dim, mlp_dim, weight_init=init.weight)
        self.act = nn.Activation((activation.forward, activation.backward))
        self.up = nn.Linear(dim, mlp_dim, weight_init=init.weight)
        self.down = nn.Linear(mlp_dim, dim, weight_init=init.weight)
        self.drop = nn.Dropout(dropout)
        if xp is not None:
            self.place(xp)

    def forward(self, x: Array, ctx: Context) -> Array:
        g = self.act.forward(self.gate.forward(x, ctx), ctx)
        u = self.up.forward(x, ctx)
        ctx.push(self, g, u)
        return self.drop.forward(self.down.forward(g * u, ctx), ctx)

    def backward(self, dy: Array, ctx: Context) -> Array:
        dh = self.down.backward(self.drop.backward(dy, ctx), ctx)
        g, u = ctx.pop(self)
        dx = self.up.backward(dh * g, ctx)
        return dx + self.gate.backward(self.act.backward(dh * u, ctx), ctx)


class RMSNorm(nn.Module):
    """Scale each token to unit mean square (arXiv 1910.07467)."""

    def __init__(self, dim: int, eps: float = 1e-6, *, xp: ArrayModule = None) -> None:
        self.eps = eps
        self.weight = nn.Parameter((dim,), ones, decay=False)
        if xp is not None:
            self.place(xp)

    def forward(self, x: Array, ctx: Context) -> Array:
        r = 1 / self.xp.sqrt((x * x).mean(axis=-1, keepdims=True) + self.eps)
        ctx.push(self, x, r)
        return x * r * self.weight.value

    def backward(self, dy: Array, ctx: Context) -> Array:
        x, r = ctx.pop(self)
        normed, dnormed = x * r, dy * self.weight.value
        self.weight.add_grad((dy * normed).sum(axis=(0, 1)))
        return r * (dnormed - normed * (dnormed * normed).mean(axis=-1, keepdims=True))


class LinearAttention(nn.Module):
    """Attention without softmax, ``Q (K^T V) / N``, which has no weights to show."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        dropout: float = 0.0,
        init: Scheme = SCHEMES["jax"],
        xp: ArrayModule = None,
    ) -> None:
        self.q, self.k, self.v = (nn.Linear(dim, dim, weight_init=init.weight) for _ in range(3))
        self.drop = nn.Dropout(dropout)
        if xp is not None:
            self.place(xp)

    def forward(self, x: Array, ctx: Context) -> Array:
        q, k, v = (layer.forward(x, ctx) for layer in (self.q, self.k, self.v))
        s = self.xp.swapaxes(k, 1, 2) @ v / x.shape[1]
        ctx.push(self, q, k, v, s)
        return self.drop.forward(q @ s, ctx)

    def backward(self, dy: Array, ctx: Context) -> Array:
        dy = self.drop.backward(dy, ctx)
        q, k, v, s = ctx.pop(self)
        ds = self.xp.swapaxes(q, 1, 2) @ dy / q.shape[1]
        dx = self.v.backward(k @ ds, ctx)
        dx = dx + self.k.backward(v @ self.xp.swapaxes(ds, 1, 2), ctx)
        return dx + self.q.backward(dy @ self.xp.swapaxes(s, 1, 2), ctx)


def mish(x: Array, *, xp: ArrayModule) -> Array:
    return x * xp.tanh(xp.log1p(xp.exp(x)))


def mish_backward(dy: Array, x: Array, *, xp: ArrayModule) -> Array:
    t = xp.tanh(xp.log1p(xp.exp(x)))
    return dy * (t + x * (1 - t * t) / (1 + xp.exp(-x)))


@pytest.fixture
def zoo() -> Iterator[str]:
    """Register a plugin's layers, activation and size, and forget them when the test ends."""
    LAYERS.add("swiglu", SwiGLU, plugin="zoo", part="mlp")
    LAYERS.add("rms_norm", RMSNorm, plugin="zoo", part="norm")
    LAYERS.add("linear_attention", LinearAttention, plugin="zoo", part="attention")
    LAYERS.add("blur", nn.MeanToken, plugin="zoo", part=None)
    ACTIVATIONS.add("mish", mish, mish_backward, plugin="zoo")
    sizes = {"dim": 24, "depth": 3, "num_heads": 4, "mlp_dim": 36}
    MODELS.add("Mu", {**sizes, "activation": "mish", "mlp": "swiglu"}, plugin="zoo")
    yield "zoo"
    for table in (LAYERS, ACTIVATIONS, MODELS):
        table.remove("zoo")


NAMES: dict[str, dict[str, Any]] = {
    "mlp": {"mlp": "swiglu"},
    "norm": {"norm": "rms_norm"},
    "attention": {"attention": "linear_attention"},
    "activation": {"activation": "mish"},
    "all": {
        "mlp": "swiglu", "norm": "rms_norm", "attention": "linear_attention",
        "activation": "mish", "pool": "mean", "gradient_checkpointing": True, "dropout": 0.1,
        "drop_path": 0.1,
    },
}  # fmt: skip
names = pytest.mark.parametrize("options", NAMES.values(), ids=NAMES)


def small(xp: ArrayModule, dtype: str = "float32", **options: Any) -> ViT:
    """Return a small model with random numbers where it starts with zeros."""
    model = ViT("Ti/4", xp=xp, dtype=dtype, **SMALL | options)
    for name, parameter in model.named_parameters():
        noise = 0.3 * philox(0, f"noise of {name}").standard_normal(parameter.shape)
        parameter.value[...] += xp.asarray(noise, dtype=dtype)
    return model


def draw(model: ViT, batch: int = 3) -> Array:
    shape = (batch, model.config.in_channels, *model.config.image_size)
    values = philox(0, "images").standard_normal(shape)
    return model.xp.asarray(values, dtype=model.pos_embed.value.dtype)


# --- layers and activations --------------------------------------------------------------------


@names
def test_every_gradient_is_right(zoo: str, options: dict[str, Any], xp: ArrayModule) -> None:
    model = small(xp, "float64", **options)
    images, labels = draw(model), xp.asarray([0, 4, 2])

    def loss(ctx: Context) -> tuple[Array, Array]:
        return ops.softmax_cross_entropy(model.forward(images, ctx), labels, xp=xp)

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
    assert min(errors) < 1e-6


@names
def test_it_learns(zoo: str, options: dict[str, Any], xp: ArrayModule) -> None:
    model = ViT("Ti/4", xp=xp, **SMALL | options)
    images, labels = draw(model, 8), xp.asarray(np.arange(8) % 5)
    optimizer = AdamW(1e-2).attach(model)

    def loss() -> float:
        return float(to_numpy(ops.softmax_cross_entropy(model(images), labels, xp=xp)[0]))

    assert loss() == pytest.approx(np.log(5))
    for step in range(40):
        ctx = Context(train=True, seed=1, step=step)
        _, dlogits = ops.softmax_cross_entropy(model.forward(images, ctx), labels, xp=xp)
        model.zero_grad()
        model.backward(dlogits, ctx)
        optimizer.step()
    assert loss() < np.log(5) / 5


def test_the_layers_stand_where_they_are_named(zoo: str) -> None:
    model = ViT("Ti/4", backend=None, **SMALL | NAMES["all"])
    for wrapped in model.blocks:
        block = nn.unwrap(wrapped)
        kinds = {name: type(part) for name, part in block.children()}
        assert kinds["norm1"] is kinds["norm2"] is type(model.norm) is RMSNorm
        assert (kinds["attn"], kinds["mlp"]) == (LinearAttention, SwiGLU)
    state = {name for name, _ in model.named_parameters()}
    assert {"norm.weight", "blocks.1.mlp.gate.weight", "blocks.0.attn.q.bias"} <= state
    assert "norm.bias" not in state


def test_numbers_of_parameters_follow_the_layers(zoo: str) -> None:
    plain = ViT("Ti/4", backend=None, **SMALL)
    named = ViT("Ti/4", backend=None, mlp="mlp", norm="layer_norm", attention="attention", **SMALL)
    assert named.num_parameters == plain.num_parameters == 2877
    assert named.config == plain.config
    gated = ViT("Ti/4", backend=None, mlp="swiglu", **SMALL)
    assert gated.num_parameters == 2877 + 2 * (12 * 20 + 20)


def test_an_attention_without_weights_has_no_maps(zoo: str, xp: ArrayModule) -> None:
    model = small(xp, attention="linear_attention")
    with pytest.raises(NotImplementedError) as caught:
        model.attention_maps(draw(model))
    assert str(caught.value) == (
        "LinearAttention 'blocks.0.attn' has no method weights(x), so it cannot show what each "
        "token takes from each. Define it, as vitkit.nn.Attention does, or use a model with "
        "attention='attention'."
    )
    assert model.features(draw(model)).shape == (3, 12)
    checkpointed = small(xp, mlp="swiglu", norm="rms_norm", gradient_checkpointing=True)
    assert checkpointed.attention_maps(draw(checkpointed)).shape == (2, 3, 3, 9, 9)


def test_a_wrong_result_of_an_activation_names_layer_and_function(
    zoo: str, xp: ArrayModule
) -> None:
    def widened(x: Array, *, xp: ArrayModule) -> Array:
        return x.astype("float64")

    ACTIVATIONS.add("widened", widened, mish_backward, plugin=zoo)
    model = small(xp, activation="widened")
    with pytest.raises(ValueError, match=r"^Activation 'blocks\.0\.mlp\.act': .*\.widened returned "
                       r"float64 \(3, 9, 20\) for float32 \(3, 9, 20\); "):  # fmt: skip
        model(draw(model))


@names
def test_a_step_with_them_waits_for_no_device(zoo: str, options: dict[str, Any]) -> None:
    model = small(strict_device.xp, **options)
    images = draw(model)
    with strict_device.count_syncs() as syncs:
        ctx = Context(train=True)
        model.backward(model.forward(images, ctx), ctx)
    assert syncs == []


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"mlp": "swiglo"}, "mlp: got 'swiglo'; expected one of mlp, swiglu; did you mean "
         "'swiglu'?"),
        ({"norm": "rmsnorm"}, "norm: got 'rmsnorm'; expected one of layer_norm, rms_norm; did you "
         "mean 'rms_norm'?"),
        ({"attention": None}, ""),
        ({"attention": 3}, "attention: got 3; expected one of attention, linear_attention"),
        ({"attention": ["attention"]}, "attention: got ['attention']; expected one of attention, "
         "linear_attention"),
        ({"activation": "mihs"}, "activation: got 'mihs'; expected one of gelu, gelu_tanh, relu, "
         "silu, quick_gelu, tanh, mish; did you mean 'mish'?"),
        ({"activation": ["mish"]}, "activation: got ['mish']; expected one of gelu, "),
        ({"mlp": "rms_norm"}, "mlp: 'rms_norm' is a norm, not an mlp; expected one of mlp, swiglu"),
        ({"norm": "attention"}, "norm: 'attention' is an attention, not a norm; expected one of "
         "layer_norm, rms_norm"),
        ({"attention": "swiglu"}, "attention: 'swiglu' is an mlp, not an attention; expected one "
         "of attention, linear_attention"),
        ({"norm": "blur"}, "norm: 'blur' is no part of a block, not a norm; expected one of "
         "layer_norm, rms_norm"),
    ],
)  # fmt: skip
def test_a_wrong_name_is_a_problem(zoo: str, options: dict[str, Any], problem: str) -> None:
    try:
        ViTConfig.of("Ti/16", **options)
    except ConfigError as error:
        (found,) = error.problems
        assert found.startswith(problem)
        assert problem
    else:
        assert not problem


def test_names_and_sizes_are_judged_together(zoo: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ViTConfig.of("Ti/16", mlp="x", norm="swiglu", num_heads=5, activation="x")
    keys = [problem.partition(":")[0] for problem in caught.value.problems]
    assert keys == ["activation", "mlp", "norm", "num_heads"]


def test_a_checkpoint_of_before_there_were_names(zoo: str) -> None:
    config = ViTConfig.of("Ti/4", **SMALL)
    options = config.to_dict()
    for part in ("mlp", "norm", "attention"):
        del options[part]
    assert ViTConfig.of(options.pop("variant"), **options) == config


@names
def test_a_model_from_its_config(zoo: str, options: dict[str, Any], xp: ArrayModule) -> None:
    model = small(xp, **options)
    stored = model.config.to_dict()
    again = ViT(ViTConfig.of(stored.pop("variant"), **stored), xp=xp, seed=None)
    again.load_state_dict(model.state_dict())
    images = draw(model)
    np.testing.assert_array_equal(to_numpy(again(images)), to_numpy(model(images)))


# --- sizes -------------------------------------------------------------------------------------


def test_the_table_holds_the_sizes_of_the_papers() -> None:
    assert list(MODELS) == ["Ti", "S", "B", "L", "H"]
    assert {variant.partition("/")[0] for variant in VARIANTS} == set(MODELS)
    assert {entry.plugin for entry in MODELS.entries()} == {BUILTIN}
    assert MODELS["Ti"] == {"dim": 192, "depth": 12, "num_heads": 3, "mlp_dim": 768}


def test_a_size_of_a_plugin(zoo: str, xp: ArrayModule) -> None:
    options: dict[str, Any] = {"image_size": 16, "num_classes": 3}
    c = ViT("Mu/8", backend=None, **options).config
    assert (c.dim, c.depth, c.num_heads, c.mlp_dim, c.patch_size) == (24, 3, 4, 36, (8, 8))
    assert (c.activation, c.mlp, c.norm) == ("mish", "swiglu", "layer_norm")
    assert ViTConfig(**c.to_dict()) == c
    other = ViT("Mu/4", xp=xp, mlp="mlp", activation="relu", patch_size=8, depth=1, **options)
    assert (other.config.mlp, other.config.activation, other.config.depth) == ("mlp", "relu", 1)
    assert other.config.patch_size == (8, 8)
    assert other(draw(other, 2)).shape == (2, 3)
    assert MODELS["Mu"]["depth"] == 3  # the table is left as it was


def test_the_width_of_the_mlp_follows_the_model_s(zoo: str) -> None:
    assert ViTConfig.of("Ti/16", dim=48).mlp_dim == 192
    assert ViTConfig.of("Mu/8", dim=48).mlp_dim == 72
    assert ViTConfig.of("Mu/8", dim=48, mlp_dim=5).mlp_dim == 5
    MODELS.add("Nu", {"dim": 8, "depth": 1, "num_heads": 2}, plugin=zoo)
    assert [ViTConfig.of("Nu/8", dim=dim).mlp_dim for dim in (None, 10)] == [32, 40]


def test_parsing_gives_options_of_their_own(zoo: str) -> None:
    patch, options = parse_variant("Mu/14")
    options["depth"] = 7
    assert (patch, parse_variant("Mu/14")[1]["depth"]) == (14, 3)


@pytest.mark.parametrize(
    ("variant", "hint"),
    [
        ("mu/8", "; did you mean 'Mu/8'?"),
        ("Mu8", "; did you mean 'Mu/8'?"),
        ("Mu", "; did you mean 'Mu/16'?"),
        ("ti/x", "; did you mean 'Ti/16'?"),
        ("Muu/12", "; did you mean 'Mu/12'?"),
        ("Mu/0", "; did you mean 'Mu/16'?"),
        ("Xylophone/8", ""),
    ],
)
def test_an_unknown_size_gets_a_hint(zoo: str, variant: str, hint: str) -> None:
    expected = (
        f"variant: got {variant!r}; expected a size (Ti, S, B, L, H, Mu), a slash and a patch "
        f"side, such as {', '.join(VARIANTS)}{hint}"
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(expected)}$"):
        ViTConfig.of(variant)


@pytest.mark.parametrize(
    ("sizes", "problem"),
    [
        ({"dim": 8, "depth": 1}, "lacks num_heads; expected dim, depth, num_heads and options of "),
        ({"dim": 8, "depth": 1, "num_heads": 2, "widht": 3}, "has widht; expected dim, "),
        ({"dim": 8, "depth": 1, "num_heads": 2, "patch_size": 3}, "has patch_size; expected dim, "),
        ({"representation_size": 3}, "has representation_size and lacks dim and lacks depth and "),
    ],
)
def test_a_size_that_cannot_be_names_its_plugin(
    zoo: str, sizes: dict[str, Any], problem: str
) -> None:
    MODELS.add("Nu", sizes, plugin=zoo)
    expected = f"variant: the model 'Nu' of plugin 'zoo' {problem}"
    with pytest.raises(ConfigError, match=f"^{re.escape(expected)}"):
        ViTConfig.of("Nu/8")


def test_sizes_of_a_wrong_type_are_problems_of_the_model(zoo: str) -> None:
    MODELS.add("Nu", {"dim": "8", "depth": 1, "num_heads": 2}, plugin=zoo)
    for dim in (None, 4):
        with pytest.raises(ConfigError) as caught:
            ViTConfig.of("Nu/8", dim=dim)
        keys = {problem.partition(":")[0] for problem in caught.value.problems}
        assert keys == ({"dim", "mlp_dim"} if dim is None else {"mlp_dim"})


# --- plugins that are not loaded yet -----------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: ViTConfig.of("Ti/16", activation="late").activation,
        lambda: ViTConfig.of("Ti/16", mlp="late").mlp,
        lambda: ViTConfig.of("late/16").variant.partition("/")[0],
    ],
    ids=["activation", "layer", "model"],
)
def test_a_missing_name_is_looked_for_among_installed_plugins(
    make: Any, zoo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def finder() -> None:
        calls.append("called")
        ACTIVATIONS.add("late", mish, mish_backward, plugin=zoo)
        LAYERS.add("late", SwiGLU, plugin=zoo, part="mlp")
        MODELS.add("late", {"dim": 8, "depth": 1, "num_heads": 2}, plugin=zoo)

    monkeypatch.setattr(registry, "_finders", [finder])
    monkeypatch.setattr(registry, "_looked", [])  # as in a new process
    ViTConfig.of("Ti/16")
    assert calls == []  # nothing was missing
    assert make() == "late"
    assert calls == ["called"]
