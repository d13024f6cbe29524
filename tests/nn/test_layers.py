"""The contract that every layer that ships keeps, generated for each of them."""

from __future__ import annotations

import gc
import inspect
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest

from vitkit import nn
from vitkit.backend import Array, ArrayModule, philox, to_numpy
from vitkit.models.vit import PreLogits, ViT
from vitkit.nn import Context, Module, Parameter
from vitkit.nn.activation import ACTIVATIONS
from vitkit.optim import AdamW
from vitkit.testing import assert_close, directional_derivative_error


class Case(NamedTuple):
    """A layer, how it is made, the shape of one sample, and the rates of its dropout."""

    name: str
    make: Callable[..., Module]
    shape: tuple[int, ...]
    random: bool = False


TOKENS, WIDTH = 5, 8
SIZES = {"image_size": (4, 6), "patch_size": (2, 3), "dim": 8, "depth": 2, "num_heads": 2}
TINY = SIZES | {"num_classes": 3, "in_channels": 2, "dropout": 0.2, "drop_path": 0.3}


def vit(**options: Any) -> Module:
    """Return a whole model, which unlike a layer is placed unless told not to be."""
    placed = {"backend": None} if options.get("xp") is None else {}
    return ViT("Ti/2", **TINY | placed | options)


def block(**options: Any) -> Module:
    return nn.Block(WIDTH, 2, 12, dropout=0.2, drop_path=0.3, **options)


def checkpoint(**options: Any) -> Module:
    return nn.Checkpoint(block(), **options)


LAYERS = [
    Case("LayerNorm", lambda **o: nn.LayerNorm(WIDTH, **o), (TOKENS, WIDTH)),
    Case("Linear", lambda **o: nn.Linear(WIDTH, 3, **o), (TOKENS, WIDTH)),
    Case("Linear of vectors", lambda **o: nn.Linear(WIDTH, 3, **o), (WIDTH,)),
    *(
        Case(f"Activation {name}", lambda p=pair, **o: nn.Activation(p, **o), (TOKENS, WIDTH))
        for name, pair in ACTIVATIONS.items()
    ),
    Case("Dropout", lambda **o: nn.Dropout(0.3, **o), (TOKENS, WIDTH), True),
    Case("DropPath", lambda **o: nn.DropPath(0.5, **o), (TOKENS, WIDTH), True),
    Case("Attention", lambda **o: nn.Attention(WIDTH, 2, **o), (TOKENS, WIDTH)),
    Case(
        "Attention with dropout",
        lambda **o: nn.Attention(WIDTH, 4, dropout=0.2, **o),
        (TOKENS, WIDTH),
        True,
    ),
    Case("MLP", lambda **o: nn.MLP(WIDTH, 12, **o), (TOKENS, WIDTH)),
    Case(
        "MLP with dropout", lambda **o: nn.MLP(WIDTH, 12, dropout=0.2, **o), (TOKENS, WIDTH), True
    ),
    Case("Block", lambda **o: nn.Block(WIDTH, 2, 12, **o), (TOKENS, WIDTH)),
    Case("Block with dropout", block, (TOKENS, WIDTH), True),
    Case("Checkpoint", checkpoint, (TOKENS, WIDTH), True),
    Case("Checkpoint twice", lambda **o: nn.Checkpoint(checkpoint(), **o), (TOKENS, WIDTH), True),
    Case("PatchProjection", lambda **o: nn.PatchProjection(WIDTH, 2, (2, 3), **o), (4, 12)),
    Case("PatchEmbed", lambda **o: nn.PatchEmbed((4, 9), (2, 3), 2, WIDTH, **o), (2, 4, 9)),
    Case("FirstToken", lambda **o: nn.FirstToken(**o), (TOKENS, WIDTH)),
    Case("MeanToken", lambda **o: nn.MeanToken(**o), (TOKENS, WIDTH)),
    Case("PreLogits", lambda **o: PreLogits(WIDTH, 4, **o), (WIDTH,)),
    Case("ViT", vit, (2, 4, 6), True),
    Case(
        "ViT with everything",
        lambda **o: vit(pool="mean", representation_size=4, gradient_checkpointing=True, **o),
        (2, 4, 6),
        True,
    ),
]
layers = pytest.mark.parametrize("case", LAYERS, ids=[case.name for case in LAYERS])
dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])
BATCH = 4


def test_every_layer_that_ships_is_here() -> None:
    shipped = {
        value
        for value in vars(nn).values()
        if inspect.isclass(value) and issubclass(value, Module) and value is not Module
    }
    tested = {type(module) for case in LAYERS for _, module in case.make().modules()}
    assert shipped <= tested


def placed(case: Case, xp: ArrayModule, dtype: str = "float32") -> Module:
    """Return the layer with random parameters, those that start at zero included."""
    layer = case.make().place(xp, dtype=dtype)
    for name, parameter in layer.named_parameters():
        values = 0.5 * philox(0, f"values of {name}").standard_normal(parameter.shape)
        parameter.value[...] = xp.asarray(values, dtype=dtype)
    return layer


def draw(xp: ArrayModule, shape: tuple[int, ...], seed: int = 0, dtype: str = "float32") -> Array:
    return xp.asarray(philox(seed, "inputs").standard_normal(shape), dtype=dtype)


def inputs(case: Case, xp: ArrayModule, dtype: str = "float32", seed: int = 0) -> Array:
    return draw(xp, (BATCH, *case.shape), seed, dtype)


def gradient_error(
    function: Callable[..., Array], arrays: list[Array], gradients: list[Array], xp: ArrayModule
) -> float:
    """Return the smallest error of three directions; a wrong gradient is wrong along each."""
    return min(
        directional_derivative_error(function, arrays, gradients, seed=seed, xp=xp)
        for seed in range(3)
    )


def arrays_in(entry: Any) -> Iterator[Array]:
    for item in entry:
        if hasattr(item, "nbytes"):
            yield item


class Watching(Context):
    """A pass that remembers what is kept, without keeping it alive."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.seen: list[weakref.ref[Array]] = []
        self.dtypes: set[np.dtype] = set()

    def push(self, owner: Module, *kept: Any) -> None:
        super().push(owner, *kept)
        for array in arrays_in(kept):
            self.seen.append(weakref.ref(array))
            self.dtypes.add(array.dtype)


def run(layer: Module, x: Array, dy_seed: int = 1) -> tuple[Array, Array, Watching]:
    """Run forward and backward in training; return the output, ``dx`` and the pass."""
    ctx = Watching(train=True, seed=3)
    y = layer.forward(x, ctx)
    dx = layer.backward(draw(layer.xp, y.shape, dy_seed, str(x.dtype)), ctx)
    return y, dx, ctx


@layers
def test_the_context_is_empty_after_backward(case: Case, xp: ArrayModule) -> None:
    layer, x = placed(case, xp), inputs(case, xp)
    ctx = Context(train=True, seed=3)
    y = layer.forward(x, ctx)
    assert len(ctx) > 0
    dx = layer.backward(y, ctx)
    assert (len(ctx), ctx.nbytes) == (0, 0)
    assert dx.shape == x.shape
    with pytest.raises(RuntimeError, match="ran backward but nothing of a forward pass is left"):
        layer.backward(y, ctx)


@layers
def test_used_twice_it_has_the_right_gradient(case: Case, xp: ArrayModule) -> None:
    layer = placed(case, xp, "float64")
    one, two = (inputs(case, xp, "float64", seed) for seed in (0, 1))
    weights = [draw(xp, layer(one).shape, seed, "float64") for seed in (2, 3)]

    def loss(*_: Array) -> Array:
        ctx = Context(train=True, seed=3)
        parts = [layer.forward(x, ctx) for x in (one, two)]
        return sum((y * w).sum() for y, w in zip(parts, weights, strict=True))

    layer.zero_grad()
    ctx = Context(train=True, seed=3)
    for x in (one, two):
        layer.forward(x, ctx)
    dtwo = layer.backward(weights[1], ctx)
    done = layer.backward(weights[0], ctx)
    assert len(ctx) == 0
    parameters = [p for _, p in layer.named_parameters()]
    error = gradient_error(
        loss,
        [one, two, *(p.value for p in parameters)],
        [done, dtwo, *(p.grad for p in parameters)],
        xp=xp,
    )
    assert error < 1e-6


@layers
def test_gradient_of_input_and_all_parameters(case: Case, xp: ArrayModule) -> None:
    layer, x = placed(case, xp, "float64"), inputs(case, xp, "float64")
    y, dx, _ = run(layer, x)
    dy = draw(xp, y.shape, 1, "float64")
    parameters = [p for _, p in layer.named_parameters()]
    error = gradient_error(
        lambda x, *_: (layer.forward(x, Context(train=True, seed=3)) * dy).sum(),
        [x, *(p.value for p in parameters)],
        [dx, *(p.grad for p in parameters)],
        xp=xp,
    )
    assert error < 1e-6


@layers
def test_gradient_of_inference(case: Case, xp: ArrayModule) -> None:
    layer, x = placed(case, xp, "float64"), inputs(case, xp, "float64")
    ctx = Context(keep=True)
    dy = draw(xp, layer.forward(x, ctx).shape, 1, "float64")
    dx = layer.backward(dy, ctx)
    assert len(ctx) == 0
    error = gradient_error(lambda x: (layer(x) * dy).sum(), [x], [dx], xp=xp)
    assert error < 1e-6


def everything_on(layer: Module) -> dict[str, Any]:
    """Return what every module, parameter and class of a tree holds, as it is."""
    held: dict[str, Any] = {}

    def look(at: str, value: Any) -> None:
        held[at] = value
        if isinstance(value, (Module, Parameter)):
            look_into(at, vars(value))
        elif isinstance(value, dict):
            look_into(at, value)
        elif isinstance(value, (list, tuple)):
            look_into(at, dict(enumerate(value)))

    def look_into(at: str, parts: Mapping[Any, Any]) -> None:
        for key, value in parts.items():
            look(f"{at}.{key}", value)

    look("layer", layer)
    for cls in {cls for _, module in layer.modules() for cls in type(module).__mro__[:-1]}:
        look_into(cls.__name__, vars(cls))
    return held


@layers
def test_nothing_of_a_pass_is_kept_on_the_module(case: Case, xp: ArrayModule) -> None:
    layer, x = placed(case, xp), inputs(case, xp)
    before, values = everything_on(layer), layer.state_dict()
    run(layer, x)
    layer(x)
    layer.forward(x, Context(train=True))  # and one whose backward never comes
    after = everything_on(layer)
    assert set(after) == set(before)
    assert [at for at in before if after[at] is not before[at]] == []  # no array was exchanged
    for name, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, values[name])


@layers
def test_inference_keeps_nothing(case: Case, xp: ArrayModule) -> None:
    layer, x = placed(case, xp), inputs(case, xp)
    for ctx in (Context(), Context(train=True, keep=False)):
        layer.forward(x, ctx)
        assert (len(ctx), ctx.nbytes) == (0, 0)


@layers
def test_what_was_kept_is_freed_without_the_garbage_collector(case: Case, xp: ArrayModule) -> None:
    layer, x = placed(case, xp), inputs(case, xp)
    first = weakref.ref(x)
    gc.disable()
    try:
        ctx = Watching(train=True, seed=3)
        dy = draw(xp, layer.forward(x, ctx).shape)
        del x
        layer.backward(dy, ctx)
        assert first() is None
        assert [ref() for ref in ctx.seen if ref() is not None] == []
    finally:
        gc.enable()


@layers
@dtypes
def test_the_dtype_is_kept(case: Case, dtype: str, xp: ArrayModule) -> None:
    layer, x = placed(case, xp, dtype), inputs(case, xp, dtype)
    y, dx, ctx = run(layer, x)
    arrays = [y, dx, layer(x), *(p.grad for _, p in layer.named_parameters())]
    assert {array.dtype for array in arrays} == {np.dtype(dtype)}
    assert ctx.dtypes <= {np.dtype(dtype)}


@layers
def test_every_parameter_gets_a_gradient_and_learns(case: Case, xp: ArrayModule) -> None:
    layer, x = placed(case, xp), inputs(case, xp)
    if not layer.num_parameters:
        assert layer.groups == ()
        return
    before = layer.state_dict()
    layer.zero_grad()
    optimizer = AdamW(1e-2).attach(layer)
    run(layer, x)
    for name, parameter in layer.named_parameters():
        assert to_numpy(parameter.grad).any(), name
    optimizer.step()
    for name, value in layer.state_dict().items():
        assert (value != before[name]).mean() > 0.5, name


@layers
def test_gradients_add_up_over_passes(case: Case, xp: ArrayModule) -> None:
    layer, x = placed(case, xp, "float64"), inputs(case, xp, "float64")
    layer.zero_grad()
    run(layer, x)
    once = {name: to_numpy(p.grad).copy() for name, p in layer.named_parameters()}
    _, dx, _ = run(layer, x)
    _, dx_alone, _ = run(placed(case, xp, "float64"), x)
    for name, parameter in layer.named_parameters():
        assert_close(parameter.grad, 2 * once[name])
    np.testing.assert_array_equal(to_numpy(dx), to_numpy(dx_alone))  # assigned, not added


@layers
@dtypes
def test_checkpointed_is_the_same_to_the_bit(case: Case, dtype: str, xp: ArrayModule) -> None:
    plain, x = placed(case, xp, dtype), inputs(case, xp, dtype)
    wrapped = placed(case._replace(make=lambda **o: nn.Checkpoint(case.make(), **o)), xp, dtype)
    results = [run(layer, x) for layer in (plain, wrapped)]
    for one, two in zip(*(result[:2] for result in results), strict=True):
        np.testing.assert_array_equal(to_numpy(one), to_numpy(two))
    theirs = dict(wrapped.named_parameters())
    assert list(theirs) == [name for name, _ in plain.named_parameters()]
    for name, parameter in plain.named_parameters():
        np.testing.assert_array_equal(to_numpy(parameter.grad), to_numpy(theirs[name].grad))
    ctx = Context(train=True)
    wrapped.forward(x, ctx)
    assert (len(ctx), ctx.nbytes) == (1, x.nbytes)  # the input alone


@layers
def test_inference_is_deterministic_and_without_dropout(case: Case, xp: ArrayModule) -> None:
    layer, x = placed(case, xp), inputs(case, xp)
    one = to_numpy(layer(x))
    np.testing.assert_array_equal(to_numpy(layer(x)), one)
    seeded = layer.forward(x, Context(seed=9, step=9))
    np.testing.assert_array_equal(to_numpy(seeded), one)
    for _, module in layer.modules():  # so is a layer whose rates are zero, in training
        if isinstance(module, nn.Dropout):
            module.rate = 0.0
    np.testing.assert_array_equal(to_numpy(layer.forward(x, Context(train=True))), one)


@layers
def test_training_draws_by_seed_and_step(case: Case, xp: ArrayModule) -> None:
    layer, x = placed(case, xp), inputs(case, xp)

    def output(seed: int, step: int) -> np.ndarray:
        return to_numpy(layer.forward(x, Context(train=True, seed=seed, step=step)))

    base = output(0, 0)
    np.testing.assert_array_equal(output(0, 0), base)
    others = [output(seed, step) for seed in range(3) for step in range(3)][1:]
    assert any((other != base).any() for other in others) == case.random
    assert (to_numpy(layer(x)) != base).any() == case.random


@layers
def test_usable_alone_with_xp(case: Case, xp: ArrayModule) -> None:
    layer = case.make(xp=xp)
    assert all(module.xp is xp for _, module in layer.modules())
    y, dx, _ = run(layer, inputs(case, xp))
    assert y.shape[0] == BATCH
    assert dx.shape == (BATCH, *case.shape)
    expected = case.make().place(xp).state_dict()
    for name, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, expected[name])


@layers
def test_xp_is_the_last_keyword(case: Case) -> None:
    parameters = list(inspect.signature(type(case.make())).parameters.values())
    last = [p for p in parameters if p.kind is not p.VAR_KEYWORD][-1]
    assert (last.name, last.kind, last.default) == ("xp", last.KEYWORD_ONLY, None)


@layers
def test_not_placed_is_an_error_that_says_what_to_do(case: Case) -> None:
    x = np.ones((BATCH, *case.shape), "float32")
    layer = case.make()
    with pytest.raises(RuntimeError, match=r"has no arrays yet: pass xp= .* call place\(xp\)"):
        layer.forward(x, Context(train=True))


@layers
@pytest.mark.parametrize("batch", [0, 1, 2, 3])
def test_any_batch_size(case: Case, batch: int, xp: ArrayModule) -> None:
    layer = placed(case, xp, "float64")
    images = draw(xp, (3, *case.shape), dtype="float64")
    x = images[:batch]
    y = layer(x)
    assert_close(y, to_numpy(layer(images))[:batch])  # a sample does not see its neighbours
    layer.zero_grad()
    out, dx, ctx = run(layer, x)
    assert out.shape == y.shape
    assert dx.shape == x.shape
    assert len(ctx) == 0
    if batch == 0:
        assert not any(to_numpy(p.grad).any() for _, p in layer.named_parameters())


def test_backward_out_of_order_is_an_error(xp: ArrayModule) -> None:
    layer = nn.Block(WIDTH, 2, 12, xp=xp)
    ctx = Context(train=True)
    y = layer.forward(draw(xp, (BATCH, TOKENS, WIDTH)), ctx)
    with pytest.raises(
        RuntimeError, match=r"LayerNorm 'norm2' asked for .* those of DropPath 'drop_path2'"
    ):
        layer.norm2.backward(y, ctx)


@pytest.mark.parametrize("layer", [nn.Dropout, nn.DropPath])
@pytest.mark.parametrize("rate", [-0.1, 1, 1.5, float("nan")])
def test_a_rate_is_below_one(layer: Any, rate: float) -> None:
    with pytest.raises(ValueError, match=r"must be in \[0, 1\); got"):
        layer(rate)


@pytest.mark.parametrize("layer", [nn.Dropout, nn.DropPath])
def test_dropout_in_evaluation_hands_its_input_on(layer: Any, xp: ArrayModule) -> None:
    x = draw(xp, (BATCH, WIDTH))
    assert layer(0.5, xp=xp)(x) is x


@pytest.mark.parametrize("num_heads", [0, 3, 16])
def test_heads_divide_the_width(num_heads: int) -> None:
    with pytest.raises(ValueError, match=f"must divide dim; got num_heads={num_heads}, dim=8"):
        nn.Attention(8, num_heads)


def test_patches_divide_the_image() -> None:
    with pytest.raises(ValueError, match=r"must divide image_size; got patch_size=\(2, 3\)"):
        nn.PatchEmbed((4, 8), (2, 3), 1, 8)
    assert nn.PatchEmbed((4, 9), (2, 3), 1, 8).grid == (2, 3)


def test_attention_weights_are_those_of_forward(xp: ArrayModule) -> None:
    case = next(case for case in LAYERS if case.name == "Attention")
    layer, x = placed(case, xp, "float64"), inputs(case, xp, "float64")
    p = to_numpy(layer.weights(x))
    assert p.shape == (BATCH, 2, TOKENS, TOKENS)
    assert_close(p.sum(axis=-1), np.ones((BATCH, 2, TOKENS)))
    values = to_numpy(layer.qkv(x))[..., 2 * WIDTH :].reshape(BATCH, TOKENS, 2, WIDTH // 2)
    gathered = np.einsum("bhij,bjhd->bihd", p, values).reshape(BATCH, TOKENS, WIDTH)
    assert_close(layer(x), to_numpy(layer.proj(xp.asarray(gathered))))


def test_checkpointing_keeps_less(xp: ArrayModule) -> None:
    kept = []
    for make in (block, checkpoint):
        ctx = Context(train=True)
        make(xp=xp).forward(draw(xp, (BATCH, TOKENS, WIDTH)), ctx)
        kept.append(ctx.nbytes)
    assert kept[1] < kept[0] / 10


def test_unwrap_finds_what_is_inside() -> None:
    inner = block()
    assert nn.unwrap(nn.Checkpoint(nn.Checkpoint(inner))) is inner
    assert nn.unwrap(inner) is inner
