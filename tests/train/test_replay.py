"""A step made again names its first number that is not finite, and leaves the model as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vitkit.backend import backend_of
from vitkit.data import ArrayDataset, Batch, Loader
from vitkit.models import ViT
from vitkit.nn import Checkpoint, Module
from vitkit.ops import softmax_cross_entropy
from vitkit.optim import SGD, AdamW
from vitkit.train import Preprocess
from vitkit.train.bad_steps import CURE, BadStep, BadSteps, bad_steps_of, batches_of, cure_of
from vitkit.train.replay import Finding, first_after_update, first_not_finite

MakeData = Callable[..., ArrayDataset]
MakeModel = Callable[..., ViT]
HUGE = np.float32(3e38)


@pytest.fixture(autouse=True)
def on_host(xp: Any) -> None:
    if not backend_of(xp).on_host:
        pytest.skip("steps are made again on the host alone")


def two_batches(data: ArrayDataset) -> list[Batch]:
    return list(Loader(data, 6, shuffle=True).batches(0))[:2]


def find(model: Module, data: ArrayDataset, loss: Any = softmax_cross_entropy) -> Finding | None:
    return first_not_finite(model, two_batches(data), loss, Preprocess.of(data), seed=1, step=3)


def learnable(model: ViT) -> ViT:
    """Return the model with a head that lets gradients through."""
    weight = model.head.weight.value
    weight[...] = np.random.default_rng(0).normal(0, 0.5, weight.shape)
    return model


@pytest.mark.parametrize(
    "options", [{}, {"dropout": 0.2}, {"gradient_checkpointing": True}], ids=str
)
def test_a_sound_step_has_nothing_and_is_left_as_it_was(
    options: dict[str, Any], make_model: MakeModel, make_data: MakeData
) -> None:
    model = learnable(make_model(**options))
    before, kept = model.state_dict(), [set(vars(module)) for _, module in model.modules()]
    assert find(model, make_data()) is None
    for name, value in model.state_dict().items():
        assert value.tobytes() == before[name].tobytes()
    assert [set(vars(module)) - {"_snapshot"} for _, module in model.modules()] == [
        names - {"_snapshot"} for names in kept
    ]
    model.zero_grad()
    model.flat_groups()


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(
    ("name", "label", "last"),
    [
        ("patch_embed.proj", "PatchProjection 'patch_embed.proj'", 16),
        ("blocks.0.attn.qkv", "Linear 'blocks.0.attn.qkv'", 48),
        ("blocks.1.mlp.fc1", "Linear 'blocks.1.mlp.fc1'", 32),
        ("head", "Linear 'head'", 4),
    ],
)
def test_the_layer_whose_output_overflows_is_named(
    name: str, label: str, last: int, wrapped: bool, make_model: MakeModel, make_data: MakeData
) -> None:
    """Though the operations of a block do the work of several layers in training."""
    model = learnable(make_model(gradient_checkpointing=wrapped))
    weight = dict(model.named_parameters())[f"{name}.weight"].value
    weight[...] = HUGE
    found = find(model, make_data())
    assert found is not None
    assert (found.stage, found.module, found.array) == ("forward", label, "output")
    assert found.shape[0] == 6
    assert found.shape[-1] == last
    assert (found.piece, found.item) == (0, found.index[0])
    assert found.sample == two_batches(make_data())[0].indices[found.index[0]]
    assert found.value in ("inf", "-inf", "nan")
    assert found.low is not None
    assert found.high is not None
    assert -1e3 < found.low < found.high < 1e3
    assert f"{label} has {found.value} at " in str(found)


def test_the_second_batch_is_told_from_the_first(
    make_model: MakeModel, make_data: MakeData
) -> None:
    model, calls = learnable(make_model()), []

    def loss(logits: Any, labels: Any, *, xp: Any) -> Any:
        value, dlogits = softmax_cross_entropy(logits, labels, xp=xp)
        calls.append(1)
        if len(calls) == 2:
            dlogits = dlogits.copy()
            dlogits[4, 1] = np.inf
        return value, dlogits

    found = find(model, make_data(), loss)
    assert found is not None
    assert (found.stage, found.array, found.index) == ("loss", "gradient of the logits", (4, 1))
    assert (found.piece, found.item) == (1, 4)
    assert found.module.endswith("loss")


def test_a_loss_that_is_not_finite_is_named_by_itself(
    make_model: MakeModel, make_data: MakeData
) -> None:
    def loss(logits: Any, labels: Any, *, xp: Any) -> Any:
        value, dlogits = softmax_cross_entropy(logits, labels, xp=xp)
        return float(value) * float("nan"), dlogits

    found = find(learnable(make_model()), make_data(), loss)
    assert found is not None
    assert (found.stage, found.array, found.value, found.item) == ("loss", "value", "nan", None)
    assert cure_of(found) != CURE


def test_a_weight_is_named_before_what_is_made_of_it(
    make_model: MakeModel, make_data: MakeData
) -> None:
    model = make_model()
    model.blocks[1].norm2.bias.value[7] = np.nan  # type: ignore[attr-defined]
    found = find(model, make_data())
    assert found is not None
    assert (found.stage, found.array) == ("weights", "parameter blocks.1.norm2.bias")
    assert (found.index, found.value, found.shape) == ((7,), "nan", (16,))
    assert "earlier checkpoint" in cure_of(found)


def test_an_input_is_named_before_any_layer(make_model: MakeModel, make_data: MakeData) -> None:
    data = make_data()
    preprocess = Preprocess(data.scale, (float("nan"),), data.std)
    found = first_not_finite(
        make_model(), two_batches(data), softmax_cross_entropy, preprocess, seed=0, step=0
    )
    assert found is not None
    assert (found.stage, found.item, found.low, found.high) == ("input", 0, 0.0, 16.0)
    assert "normalised" in cure_of(found)


@pytest.mark.parametrize("name", ["blocks.0.mlp.fc2.weight", "blocks.1.attn.proj.bias"])
def test_a_gradient_of_a_weight_is_named_with_the_layer_that_made_it(
    name: str, make_model: MakeModel, make_data: MakeData
) -> None:
    model = learnable(make_model())
    layer = model
    *path, last = name.split(".")
    for part in path:
        layer = layer[int(part)] if part.isdecimal() else getattr(layer, part)  # type: ignore
    inner = layer.backward

    def backward(dy: Any, ctx: Any) -> Any:
        dx = inner(dy, ctx)
        getattr(layer, last).grad[...] = np.inf
        return dx

    layer.backward = backward  # type: ignore[method-assign]
    found = find(model, make_data())
    assert found is not None
    assert (found.stage, found.array) == ("backward", f"gradient of {name}")
    assert found.module == layer.label
    assert found.item is None
    assert layer.backward is backward


def test_only_what_fused_operations_make_is_found_too(
    make_model: MakeModel, make_data: MakeData
) -> None:
    model = learnable(make_model())
    mlp: Any = model.blocks[1].mlp  # type: ignore[attr-defined]
    branch = mlp.branch
    mlp.branch = lambda *args: branch(*args) * np.inf
    found = find(model, make_data())
    assert found is not None
    assert (found.stage, found.module) == ("forward", "MLP 'blocks.1.mlp'")


@pytest.mark.parametrize(
    ("optimizer", "lr", "array"),
    [(AdamW(1e-3), 1e38, "parameter "), (SGD(1e-3, momentum=0.9), 3.4e38, "parameter ")],
)
def test_what_an_update_makes_is_named(
    optimizer: Any, lr: float, array: str, make_model: MakeModel, make_data: MakeData
) -> None:
    model = learnable(make_model())
    optimizer.attach(model)
    assert find(model, make_data()) is None
    for group in model.groups:
        group.values[...] *= np.float32(1e3)
        group.grads[...] *= np.float32(1e4)
    found = first_after_update(model, optimizer, lr=lr, max_grad_norm=None)
    assert found is not None
    assert (found.stage, found.module) == ("optimizer", type(optimizer).__name__)
    assert found.array.startswith(array)


def test_a_moment_is_named_before_the_update(make_model: MakeModel, make_data: MakeData) -> None:
    model = learnable(make_model())
    optimizer = AdamW(1e-3).attach(model)
    arrays = optimizer.state_dict()
    arrays["blocks.0.norm1.weight.v"][2] = np.inf
    optimizer.load_state_dict(arrays)
    assert find(model, make_data()) is None
    found = first_after_update(model, optimizer, lr=1e-3, max_grad_norm=1.0)
    assert found is not None
    assert found.module == "AdamW before the step"
    assert (found.array, found.index) == ("state blocks.0.norm1.weight.v", (2,))


def test_a_step_that_is_sound_has_a_sound_update(
    make_model: MakeModel, make_data: MakeData
) -> None:
    model = learnable(make_model())
    optimizer = AdamW(1e-3).attach(model)
    assert find(model, make_data()) is None
    assert first_after_update(model, optimizer, lr=1e-3, max_grad_norm=1.0) is None


def test_a_wrapper_bears_the_name_of_what_it_wraps(
    make_model: MakeModel, make_data: MakeData
) -> None:
    model = learnable(make_model(gradient_checkpointing=True))
    assert isinstance(model.blocks[0], Checkpoint)
    inner = model.blocks[0].inner
    forward = inner.forward
    inner.forward = lambda x, ctx: forward(x, ctx) * np.inf  # type: ignore[method-assign]
    found = find(model, make_data())
    assert found is not None
    assert found.module == "Block 'blocks.0'"


def bad_step(make_model: MakeModel, make_data: MakeData, step: int = 4) -> BadStep:
    model, data = learnable(make_model()), make_data()
    optimizer = AdamW(1e-3).attach(model)
    preprocess = Preprocess.of(data)
    batches = two_batches(data)
    return BadStep(
        model, optimizer, batches, softmax_cross_entropy, preprocess, 1, step, 1e-3, None
    )


def test_the_latest_bad_steps_are_kept(
    make_model: MakeModel, make_data: MakeData, tmp_path: Any
) -> None:
    keeper = BadSteps(tmp_path, {"more": {"a": 1}}, "look ")
    for step in (4, 9, 4, 20, 21):
        said = keeper.said(bad_step(make_model, make_data, step), None)
        assert said == f"To look at it: look {tmp_path}/bad-step-{step + 1:08d}"
    names = [path.name for path in bad_steps_of(tmp_path)]
    assert names == [f"bad-step-{step + 1:08d}" for step in (4, 20, 21)]


def test_a_folder_that_cannot_be_written_is_said(
    make_model: MakeModel, make_data: MakeData, tmp_path: Any
) -> None:
    (tmp_path / "file").write_text("")
    said = BadSteps(tmp_path / "file").said(bad_step(make_model, make_data), None)
    assert said.startswith("Cannot write the checkpoint")


def test_batches_come_back(make_model: MakeModel, make_data: MakeData, tmp_path: Any) -> None:
    import vitkit.checkpoint.files as files

    step = bad_step(make_model, make_data)
    path = BadSteps(tmp_path).write(step, None)
    read = files.load(path)
    assert read.documents["step"] == {
        **{"seed": 1, "step": 4, "max_grad_norm": None, "lr": 1e-3, "found": None}
    }
    for mine, theirs in zip(batches_of(read.arrays["batch"]), step.batches, strict=True):
        for part in ("images", "labels", "indices"):
            np.testing.assert_array_equal(getattr(mine, part), getattr(theirs, part))


@pytest.mark.parametrize(
    "changed",
    [
        {"0.images": np.zeros((2, 1, 8, 8), "f4")},
        {"0.labels": np.zeros(3, "i8")},
        {"0.indices": None},
        {"0.images": None, "0.labels": None, "0.indices": None},
        {"2.images": np.zeros((2, 1, 8, 8), "u1")},
    ],
    ids=lambda changed: " ".join(changed),
)
def test_batches_that_are_none_are_refused(changed: dict[str, Any]) -> None:
    arrays: dict[str, Any] = {
        **{"0.images": np.zeros((2, 1, 8, 8), "u1"), "0.labels": np.zeros(2, "i8")},
        **{"0.indices": np.zeros(2, "i8"), **changed},
    }
    with pytest.raises((KeyError, ValueError)):
        batches_of({name: array for name, array in arrays.items() if array is not None})
