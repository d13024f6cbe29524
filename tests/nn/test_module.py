"""Declare, then place: buffers, names, seeds, state dicts and moving."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest

from vitkit import nn
from vitkit.backend import Array, ArrayModule, to_numpy
from vitkit.errors import BackendError
from vitkit.nn import Context, Module, Parameter
from vitkit.nn.init import normal, ones
from vitkit.nn.place import ALIGNMENT
from vitkit.testing import strict_device


class Pair(Module):
    """Two layers in a list, a wrapped one, and a parameter of its own."""

    def __init__(self, extra: bool = False, *, xp: ArrayModule = None) -> None:
        self.scale = Parameter((3,), ones, decay=False)
        self.layers = [nn.Linear(3, 4), nn.Linear(4, 3)]
        if extra:
            self.extra = nn.Linear(3, 3)
        self.last = nn.Checkpoint(nn.MLP(3, 5))
        if xp is not None:
            self.place(xp)


SHAPES = {
    "scale": (3,),
    "layers.0.weight": (4, 3),
    "layers.0.bias": (4,),
    "layers.1.weight": (3, 4),
    "layers.1.bias": (3,),
    "last.fc1.weight": (5, 3),
    "last.fc1.bias": (5,),
    "last.fc2.weight": (3, 5),
    "last.fc2.bias": (3,),
}


def test_names_are_dotted_in_forward_order_and_wrappers_leave_no_trace() -> None:
    assert {name: p.shape for name, p in Pair().named_parameters()} == SHAPES
    assert [name for name, _ in Pair().named_parameters()] == list(SHAPES)
    assert [name for name, _ in Pair().modules()] == [
        *("", "layers.0", "layers.1", "last", "last"),
        *(f"last.{part}" for part in ("fc1", "act", "drop1", "fc2", "drop2")),
    ]


def test_placing_gives_names(xp: ArrayModule) -> None:
    model = Pair(xp=xp)
    assert [p.name for _, p in model.named_parameters()] == list(SHAPES)
    assert model.layers[1].label == "Linear 'layers.1'"
    assert model.label == "Pair"
    assert repr(model.scale) == "Parameter(scale, (3,), float32)"
    assert repr(Parameter((2,), ones)) == "Parameter(unnamed, (2,), not placed)"


def test_one_flat_buffer_a_decay_group_in_backward_order(xp: ArrayModule) -> None:
    model = Pair(xp=xp)
    assert [group.decay for group in model.groups] == [True, False]
    for group in model.groups:
        expected = [n for n, p in model.named_parameters() if p.decay is group.decay][::-1]
        assert list(group.slices) == expected
        start = 0
        for name, part in group.slices.items():
            assert part == slice(start, start + math.prod(SHAPES[name]))
            start += -(-math.prod(SHAPES[name]) // ALIGNMENT) * ALIGNMENT
        assert group.values.shape == group.grads.shape == (start,)
    assert [name for name in model.groups[0].slices if "bias" in name or name == "scale"] == []


@pytest.mark.parametrize("which", ["value", "grad"])
def test_parameters_are_views_of_the_buffers(which: str, xp: ArrayModule) -> None:
    model = Pair(xp=xp)
    parameters = dict(model.named_parameters())
    for group in model.groups:
        flat = group.values if which == "value" else group.grads
        flat[...] = xp.arange(len(flat), dtype="float32")
        for name, part in group.slices.items():
            array = getattr(parameters[name], which)
            assert array.shape == SHAPES[name]
            expected = np.arange(part.start, part.stop).reshape(SHAPES[name])
            np.testing.assert_array_equal(to_numpy(array), expected)
            array += 1  # and the other way round
            assert to_numpy(flat[part]).tolist() == [i + 1 for i in range(part.start, part.stop)]


def test_a_model_without_one_kind_has_one_group(xp: ArrayModule) -> None:
    assert [group.decay for group in nn.LayerNorm(3, xp=xp).groups] == [False]
    assert nn.Dropout(0.1, xp=xp).groups == ()


def test_seeds_go_by_name(xp: ArrayModule) -> None:
    one, two = Pair().place(xp, seed=5), Pair(extra=True).place(xp, seed=5)
    ours, theirs = one.state_dict(), two.state_dict()
    assert set(theirs) - set(ours) == {"extra.weight", "extra.bias"}
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name])
    other = Pair().place(xp, seed=6).state_dict()
    assert (other["layers.0.weight"] != ours["layers.0.weight"]).all()
    assert (ours["layers.0.weight"].ravel() != ours["layers.1.weight"].ravel()).all()


def test_every_backend_and_precision_draws_the_same(xp: ArrayModule) -> None:
    ours = Pair().place(xp, seed=5).state_dict()
    exact = Pair().place(np, seed=5, dtype="float64").state_dict()
    for name, value in exact.items():
        assert (ours[name].dtype, value.dtype) == (np.float32, np.float64)
        np.testing.assert_array_equal(ours[name], value.astype("float32"))


def test_no_seed_leaves_zeros(xp: ArrayModule) -> None:
    model = Pair().place(xp, seed=None)
    assert not any(value.any() for value in model.state_dict().values())


@pytest.mark.parametrize("dtype", ["float32", "float64", np.float64, np.dtype("float32")])
def test_float32_and_float64(dtype: Any, xp: ArrayModule) -> None:
    model = Pair().place(xp, dtype=dtype)
    for _, parameter in model.named_parameters():
        assert parameter.value.dtype == parameter.grad.dtype == dtype


@pytest.mark.parametrize("dtype", ["float16", "int64", "complex64"])
def test_no_other_dtype(dtype: str, xp: ArrayModule) -> None:
    with pytest.raises(ValueError, match=f"must be 'float32' or 'float64'; got '{dtype}'"):
        Pair().place(xp, dtype=dtype)


def test_float32_unless_asked(xp: ArrayModule) -> None:
    assert {p.value.dtype for _, p in Pair(xp=xp).named_parameters()} == {np.dtype("float32")}


def test_what_is_not_an_array_module_is_refused() -> None:
    with pytest.raises(BackendError, match="xp must be an array module"):
        Pair().place(math)
    with pytest.raises(BackendError, match=r"got 'nunpy'.*id you mean 'numpy'\?"):
        Pair().place("nunpy")
    assert Pair().place("numpy").xp is np


def test_counting_allocates_nothing() -> None:
    layer = nn.Linear(2**30, 2**30)  # 4 EiB
    assert layer.num_parameters == 2**60 + 2**30
    assert not {"value", "grad"} & set(vars(layer.weight))
    assert sum(math.prod(shape) for shape in SHAPES.values()) == Pair().num_parameters


def test_a_shared_layer_counts_once_and_is_placed_once(xp: ArrayModule) -> None:
    class Shared(Module):
        def __init__(self) -> None:
            self.first = nn.Linear(3, 3)
            self.again = self.first

    model = Shared().place(xp)
    assert [name for name, _ in model.named_parameters()] == ["first.weight", "first.bias"]
    assert model.num_parameters == 12
    assert sum(group.values.size for group in model.groups) == 2 * ALIGNMENT  # 9 and 3 numbers


def test_not_placed_names_the_layer_and_the_cure() -> None:
    expected = (
        "Linear has no arrays yet: pass xp= when making it, or call place(xp) on the model it "
        "is part of."
    )
    layer = nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match=f"^{re.escape(expected)}$"):
        _ = layer.xp


@pytest.mark.parametrize("method", ["zero_grad", "state_dict", "load_state_dict"])
def test_what_needs_buffers_says_so(method: str, xp: ArrayModule) -> None:
    arguments = ({},) if method == "load_state_dict" else ()
    with pytest.raises(RuntimeError, match=r"Pair owns no buffers: .* pass xp="):
        getattr(Pair(), method)(*arguments)
    part = Pair(xp=xp).layers[0]
    with pytest.raises(RuntimeError, match=r"Linear 'layers\.0' owns no buffers"):
        getattr(part, method)(*arguments)


def test_a_module_without_parameters_has_an_empty_state(xp: ArrayModule) -> None:
    layer = nn.Dropout(0.1, xp=xp)
    layer.zero_grad()
    assert layer.state_dict() == {}
    assert layer.load_state_dict({}) == ([], [])


def test_zero_grad(xp: ArrayModule) -> None:
    model = Pair(xp=xp)
    before = model.state_dict()
    for _, parameter in model.named_parameters():
        parameter.add_grad(xp.ones(parameter.shape, "float32"))
        parameter.add_grad(xp.ones(parameter.shape, "float32"))
        assert (to_numpy(parameter.grad) == 2).all()  # added, not assigned
    model.zero_grad()
    assert not any(to_numpy(p.grad).any() for _, p in model.named_parameters())
    assert not any(to_numpy(group.grads).any() for group in model.groups)
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_a_state_dict_is_a_copy_on_the_host(xp: ArrayModule) -> None:
    model = Pair(xp=xp)
    state = model.state_dict()
    assert list(state) == list(SHAPES)
    for value in state.values():
        assert type(value) is np.ndarray
        value.fill(9)
    assert not any((value == 9).any() for value in model.state_dict().values())


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_loading_gives_back_what_was_saved(on_device: bool, dtype: str, xp: ArrayModule) -> None:
    source, model = Pair().place(xp, seed=1, dtype=dtype), Pair().place(xp, seed=2)
    views = [p.value for _, p in model.named_parameters()]
    state = source.state_dict()
    given = {n: xp.asarray(v) for n, v in state.items()} if on_device else state
    assert model.load_state_dict(given) == ([], [])
    for name, value in model.state_dict().items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, state[name].astype("float32"))
    assert all(p.value is v for (_, p), v in zip(model.named_parameters(), views, strict=True))


def broken(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    del state["layers.0.bias"], state["last.fc2.weight"]
    state["head.weight"] = np.zeros(3)
    state["scale"] = np.zeros((1, 3))
    state["layers.1.weight"] = state["layers.1.weight"].T
    return state


def test_a_strict_load_lists_everything_and_changes_nothing(xp: ArrayModule) -> None:
    model = Pair(xp=xp)
    before = model.state_dict()
    with pytest.raises(ValueError, match="The weights do not fit this Pair") as caught:
        model.load_state_dict(broken({n: v + 1 for n, v in before.items()}))
    assert str(caught.value).splitlines() == [
        "The weights do not fit this Pair:",
        "  scale: shape (1, 3), expected (3,)",
        "  layers.1.weight: shape (4, 3), expected (3, 4)",
        "  layers.0.bias: missing",
        "  last.fc2.weight: missing",
        "  head.weight: not a parameter of this model",
        "Use strict=False to load only the names that both have.",
    ]
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_a_loose_load_says_what_it_left_but_still_minds_shapes(xp: ArrayModule) -> None:
    model = Pair(xp=xp)
    before = model.state_dict()
    state = broken({n: v + 1 for n, v in before.items()})
    with pytest.raises(ValueError, match="scale: shape") as caught:
        model.load_state_dict(state, strict=False)
    assert "missing" not in str(caught.value)
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
    del state["scale"], state["layers.1.weight"]
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert missing == ["scale", "layers.0.bias", "layers.1.weight", "last.fc2.weight"]
    assert unexpected == ["head.weight"]
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value, before[name] + (name not in missing))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_moving_keeps_values_and_precision(dtype: str) -> None:
    model = Pair().place(np, seed=3, dtype=dtype)
    before = model.state_dict()
    for group in model.groups:
        group.grads.fill(1)
    assert model.to(strict_device.xp) is model
    assert model.xp is model.layers[0].xp is strict_device.xp
    for name, parameter in model.named_parameters():
        assert isinstance(parameter.value, strict_device.DeviceArray)
        assert parameter.value.dtype == dtype
        np.testing.assert_array_equal(to_numpy(parameter.value), before[name])
        assert not to_numpy(parameter.grad).any()
    model.to("numpy")
    assert model.xp is np
    for name, parameter in model.named_parameters():
        assert type(parameter.value) is np.ndarray
        np.testing.assert_array_equal(parameter.value, before[name])


def test_moving_to_where_it_is_changes_nothing(xp: ArrayModule) -> None:
    model = Pair(xp=xp)
    groups = model.groups
    assert model.to(xp).groups is groups


def test_a_subclass_writes_forward_and_backward() -> None:
    class Half(Module):
        def forward(self, x: Array, ctx: Context) -> Array:
            return x / 2

    with pytest.raises(NotImplementedError, match=r"Half must define backward\(dy, ctx\)"):
        Half().backward(1, Context())
    with pytest.raises(NotImplementedError, match=r"Module must define forward\(x, ctx\)"):
        Module()(1)
    assert Half()(4) == 2


def test_parameters_remember_what_was_declared() -> None:
    parameter = Parameter([2, 3], normal(1.0), decay=False)  # type: ignore[arg-type]
    assert (parameter.shape, parameter.size, parameter.decay) == ((2, 3), 6, False)


def test_too_little_memory_to_be_placed(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise MemoryError("Out of memory allocating 400 bytes")

    layer = nn.Linear(3, 4)
    with monkeypatch.context() as patch:
        patch.setattr("vitkit.nn.module.allocate", full)
        said = r"Linear has 16 parameters, .* take 128 bytes \(MemoryError: .* 400 bytes\)"
        with pytest.raises(BackendError, match=said):
            layer.place(np)
    assert layer.place(np)(np.ones((1, 3), "float32")).shape == (1, 4)  # nothing is spoilt
