"""The base class: attaching, layer-wise rates, state by name, errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vitkit.backend import Array, ArrayModule
from vitkit.nn.module import Module
from vitkit.optim import LAMB, SGD, Adam, AdamW, Lion, Optimizer
from vitkit.optim.layer_decay import layer_id, lr_scales
from vitkit.testing import assert_close

text: Any = "1e-3"
number: Any = 0.9


class SignDescent(Optimizer):
    """What a plugin author writes."""

    slots = ("count",)

    def __init__(self, lr: float = 0.5, *, weight_decay: float = 0.0) -> None:
        super().__init__(lr, weight_decay)
        self.calls: list[tuple[int, ...]] = []

    def update(
        self,
        w: Array,
        g: Array,
        count: Array,
        *,
        lr: float,
        step: int,
        weight_decay: float,
        xp: ArrayModule,
    ) -> None:
        self.calls.append(w.shape)
        count += step
        w -= lr * (xp.sign(g) + weight_decay * w)


def test_an_optimizer_of_one_method(make_model: Any, set_gradients: Any) -> None:
    model = make_model()
    optimizer = SignDescent(weight_decay=0.1).attach(model)
    before, gradients = model.state_dict(), set_gradients(model, 0)
    optimizer.step()
    assert optimizer.calls == [([*g.slices.values()][-1].stop,) for g in model.groups]
    after = model.state_dict()
    for name, parameter in model.named_parameters():
        decay = 0.1 if parameter.decay else 0.0
        expected = before[name] - 0.5 * (np.sign(gradients[name]) + decay * before[name])
        assert_close(after[name], expected)
    optimizer.step()
    state = optimizer.state_dict()
    assert all((state[f"{name}.count"] == 3).all() for name in before)


def test_elementwise_false_is_called_once_for_each_parameter(
    make_model: Any, set_gradients: Any
) -> None:
    model = make_model()
    optimizer = SignDescent()
    optimizer.elementwise = False
    optimizer.attach(model).step()
    assert sorted(optimizer.calls) == sorted(p.shape for _, p in model.named_parameters())


LAYERS = {
    "cls_token": 0,
    "pos_embed": 0,
    "patch_embed.weight": 0,
    "patch_embed.bias": 0,
    "blocks.0.weight": 1,
    "blocks.0.bias": 1,
    "blocks.1.weight": 2,
    "blocks.1.bias": 2,
    "norm.weight": 3,
    "norm.bias": 3,
    "head.weight": 3,
    "head.bias": 3,
}


@pytest.mark.parametrize("elementwise", [True, False])
def test_layer_decay_scales_the_learning_rate(
    elementwise: bool, make_model: Any, set_gradients: Any
) -> None:
    model = make_model()
    optimizer = SGD(0.5)
    optimizer.elementwise = elementwise
    optimizer.attach(model, layer_decay=0.7)
    before, gradients = model.state_dict(), set_gradients(model, 0)
    assert set(before) == set(LAYERS)
    optimizer.step()
    for name, value in model.state_dict().items():
        rate = 0.5 * 0.7 ** (3 - LAYERS[name])
        assert_close(value, before[name] - rate * gradients[name])


def test_layer_decay_makes_one_call_for_each_run_of_equal_rates(make_model: Any) -> None:
    model = make_model()
    optimizer = SignDescent().attach(model, layer_decay=0.7)
    optimizer.step()
    assert len(optimizer.calls) == 2 * 4  # two groups; head and norm, two blocks, embeddings


def test_layers_are_read_off_names() -> None:
    assert layer_id("blocks.11.attn.qkv.weight", 12) == 12
    assert layer_id("encoder.blocks.0.norm1.bias", 12) == 1
    assert layer_id("encoder.patch_embed.proj.weight", 12) == 0
    assert layer_id("norm_pre.weight", 12) == 13
    assert lr_scales(["head.weight", "other"], 1.0) == {"head.weight": 1.0, "other": 1.0}
    with pytest.raises(ValueError, match=r"layer_decay=0\.5 needs parameters named"):
        lr_scales(["head.weight", "other"], 0.5)


@pytest.mark.parametrize("layer_decay", [0, 1.01, -0.5, float("nan"), "0.7"])
def test_refuses_a_layer_decay_out_of_range(layer_decay: Any, make_model: Any) -> None:
    with pytest.raises(ValueError, match=r"layer_decay must be a number <= 1 and > 0|> 0 and <= 1"):
        SGD().attach(make_model(), layer_decay=layer_decay)


def test_knows_what_it_is_attached_to(make_model: Any) -> None:
    model, optimizer = make_model(), AdamW()
    assert [optimizer.attached, optimizer.attach(model).attached] == [None, model]


def test_refuses_to_step_without_a_model() -> None:
    with pytest.raises(RuntimeError, match=r"AdamW has no parameters yet: call attach\(model\)"):
        AdamW().step()
    with pytest.raises(RuntimeError, match="attach"):
        AdamW().state_dict()


def test_refuses_a_model_that_is_not_placed() -> None:
    with pytest.raises(RuntimeError, match=r"no arrays yet.*place\(xp\)"):
        AdamW().attach(Module())


def test_refuses_to_step_after_the_model_moved_and_keeps_its_state(
    make_model: Any, set_gradients: Any, xp: ArrayModule
) -> None:
    model = make_model()
    optimizer = AdamW().attach(model)
    set_gradients(model, 0)
    optimizer.step()
    weights = model.state_dict()
    model.place(xp, seed=None, dtype="float64").load_state_dict(weights)
    with pytest.raises(RuntimeError, match=r"placed or moved.*attach\(model\) again"):
        optimizer.step()
    assert optimizer.steps == 1
    state = optimizer.state_dict()
    optimizer.attach(model).load_state_dict(state)
    set_gradients(model, 1)
    optimizer.step()
    straight = make_model()
    other = AdamW().attach(straight)
    for step in range(2):
        set_gradients(straight, step)
        other.step()
    expected = straight.state_dict()
    for name, value in model.state_dict().items():
        assert_close(value, expected[name])


def test_state_goes_by_name_and_slot(make_model: Any) -> None:
    model = make_model()
    state = Adam().attach(model).state_dict()
    shapes = {name: p.shape for name, p in model.named_parameters()}
    assert {key: array.shape for key, array in state.items()} == {
        "step": (),
        **{f"{name}.{slot}": shape for name, shape in shapes.items() for slot in "mv"},
    }
    assert all(type(array) is np.ndarray for array in state.values())
    assert set(SGD().attach(model).state_dict()) == {"step"}  # no momentum, no velocity


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.pop("head.weight.v"), "head.weight.v: missing"),
        (lambda s: s.pop("step"), "step: missing"),
        (lambda s: s.update(extra=np.ones(2)), "extra: not expected"),
        (lambda s: s.update({"head.bias.m": np.ones(2)}), r"head.bias.m: shape \(2,\), expected"),
        (lambda s: s.update(step=np.asarray(1.5)), "step: .*expected one whole number"),
        (lambda s: s.update(step=np.asarray(-1)), "step: .*expected one whole number"),
        (lambda s: s.update(step=np.asarray([1, 2])), "step: .*expected one whole number"),
    ],
)
def test_refuses_a_state_that_does_not_fit_and_changes_nothing(
    spoil: Any, message: str, make_model: Any, set_gradients: Any
) -> None:
    model = make_model()
    optimizer = Adam().attach(model)
    set_gradients(model, 0)
    optimizer.step()
    before = optimizer.state_dict()
    state = {key: array + 7 for key, array in before.items()}
    spoil(state)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state)
    after = optimizer.state_dict()
    assert all(after[key].tobytes() == array.tobytes() for key, array in before.items())


def test_lists_only_the_first_problems(make_model: Any) -> None:
    with pytest.raises(ValueError, match=r"does not fit this TinyViT") as caught:
        Adam().attach(make_model()).load_state_dict({})
    assert "and 15 more" in str(caught.value)  # 12 parameters, 2 slots, 1 counter


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdamW(-1e-3), r"lr must be a number >= 0; got -0\.001"),
        (lambda: AdamW(float("nan")), "lr must be a number >= 0; got nan"),
        (lambda: AdamW(text), "lr must be a number >= 0; got '1e-3'"),
        (lambda: AdamW(weight_decay=-1), "weight_decay must be a number >= 0; got -1"),
        (lambda: Adam(betas=(0.9, 1.0)), r"betas\[1\] must be a number >= 0 and < 1; got 1\.0"),
        (lambda: LAMB(betas=(-0.1, 0.9)), r"betas\[0\] must be .* got -0\.1"),
        (lambda: Lion(betas=number), r"betas must be two numbers.* got 0\.9"),
        (lambda: Adam(eps=0), "eps must be a number > 0; got 0"),
        (lambda: SGD(momentum=1), "momentum must be a number >= 0 and < 1; got 1"),
        (lambda: SGD(nesterov=True), "nesterov=True needs momentum > 0; got momentum=0.0"),
    ],
)
def test_refuses_settings_out_of_range(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_refuses_a_learning_rate_that_is_not_a_number(make_model: Any) -> None:
    model = make_model()
    optimizer = SGD().attach(model)
    with pytest.raises(ValueError, match="lr must be a number >= 0; got nan"):
        optimizer.step(float("nan"))
    assert optimizer.steps == 0


def test_repr_shows_the_settings() -> None:
    assert repr(AdamW(weight_decay=0.05)) == (
        "AdamW(lr=0.001, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.05)"
    )
    assert repr(SGD(0.1, momentum=0.9)) == (
        "SGD(lr=0.1, momentum=0.9, nesterov=False, weight_decay=0.0)"
    )


def test_the_base_class_asks_for_update(make_model: Any) -> None:
    with pytest.raises(NotImplementedError, match=r"must define update\(w, g, \*slots"):
        Optimizer(0.1).attach(make_model()).step()
