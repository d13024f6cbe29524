"""One optimizer step: micro-batches add up, nothing waits for the device, the log is right."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from vitkit import ops
from vitkit.backend import ArrayModule, to_numpy
from vitkit.data import ArrayDataset, Batch, Loader
from vitkit.models import ViT
from vitkit.ops import softmax_cross_entropy
from vitkit.optim import SGD, AdamW
from vitkit.testing import strict_device
from vitkit.train import Preprocess, StepLog, train_step

MakeData = Callable[..., ArrayDataset]
MakeModel = Callable[..., ViT]


def pieces(data: ArrayDataset, *sizes: int) -> list[Batch]:
    """Return the images in order, cut into batches of these sizes."""
    whole = next(iter(Loader(data, sum(sizes)).batches(0)))
    ends = np.cumsum(sizes)
    return [
        Batch(whole.images[e - n : e], whole.labels[e - n : e], whole.indices[e - n : e], i)
        for i, (n, e) in enumerate(zip(sizes, ends, strict=True))
    ]


def step(model: ViT, data: ArrayDataset, batches: list[Batch], **options: Any) -> StepLog:
    settings: dict[str, Any] = {"lr": 0.0, "seed": 0, "step": 0, **options}
    loss = settings.pop("loss", softmax_cross_entropy)
    optimizer = settings.pop("optimizer", None) or SGD(0.1).attach(model)
    return train_step(model, optimizer, batches, loss, Preprocess.of(data), **settings)


def gradients(model: ViT) -> dict[str, np.ndarray]:
    return {name: to_numpy(p.grad).copy() for name, p in model.named_parameters()}


@pytest.mark.parametrize("sizes", [(5, 5, 5), (7, 7, 1), (14, 1), (1,) * 15])
def test_micro_batches_have_the_gradients_of_the_batch_they_make(
    sizes: tuple[int, ...], make_data: MakeData, make_model: MakeModel
) -> None:
    data = make_data()
    loss = partial(softmax_cross_entropy, label_smoothing=0.1)
    whole, parts = make_model(dtype="float64"), make_model(dtype="float64")
    for model, cut in ((whole, (15,)), (parts, sizes)):
        for name, parameter in model.named_parameters():  # so that the zero head hides nothing
            values = np.random.default_rng(len(name)).normal(0, 0.3, parameter.shape)
            parameter.value[...] = model.xp.asarray(values)
        log = step(model, data, pieces(data, *cut), loss=loss)
        assert log.count == 15
    expected = gradients(whole)
    for name, gradient in gradients(parts).items():
        largest = np.abs(expected[name]).max()
        assert largest > 0, name
        np.testing.assert_allclose(
            gradient, expected[name], rtol=1e-10, atol=1e-12 * largest, err_msg=name
        )


def test_the_gradients_of_the_step_before_are_forgotten(
    make_data: MakeData, make_model: MakeModel
) -> None:
    data, model = make_data(), make_model()
    step(model, data, pieces(data, 8))
    first = gradients(model)
    step(model, data, pieces(data, 8))
    for name, gradient in gradients(model).items():
        np.testing.assert_array_equal(gradient, first[name], err_msg=name)


def test_the_log_tells_of_the_model_before_the_update(
    make_data: MakeData, make_model: MakeModel
) -> None:
    data, model = make_data(), make_model(dtype="float64")
    model.head.bias.value[...] = model.xp.asarray([0.0, 3.0, 1.0, 0.5])
    batches = pieces(data, 10, 3)
    images = np.concatenate([batch.images for batch in batches])
    labels = np.concatenate([batch.labels for batch in batches])
    logits = to_numpy(model(Preprocess.of(data)(images, model)))
    shifted = logits - logits.max(axis=1, keepdims=True)
    nll = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(13), labels]

    log = step(model, data, batches, lr=0.1)

    assert float(log.loss) == pytest.approx(nll.mean(), rel=1e-12)
    assert int(log.correct) == (logits.argmax(axis=1) == labels).sum() > 0
    assert (log.count, log.lr, log.grad_norm) == (13, 0.1, None)


def test_clipping_scales_the_gradient_and_logs_its_norm(
    make_data: MakeData, make_model: MakeModel
) -> None:
    data, model = make_data(), make_model(dtype="float64")
    step(model, data, pieces(data, 8))
    free = gradients(model)
    norm = np.sqrt(sum((g**2).sum() for g in free.values()))
    log = step(model, data, pieces(data, 8), max_grad_norm=norm / 4)
    assert float(log.grad_norm) == pytest.approx(norm, rel=1e-12)
    for name, gradient in gradients(model).items():
        # clip_grad_norm_ of PyTorch, whose form this is, adds 1e-6 to the norm.
        np.testing.assert_allclose(gradient, free[name] / 4 * norm / (norm + 1e-6), rtol=1e-9)


@pytest.mark.parametrize("other", [{"step": 1}, {"seed": 1}])
def test_dropout_draws_anew_for_each_step_and_seed(
    other: dict[str, int], make_data: MakeData, make_model: MakeModel
) -> None:
    data = make_data()
    losses = []
    for options in ({}, {}, other):
        model = make_model(dropout=0.5)
        model.head.weight.value[...] = model.xp.asarray(
            np.random.default_rng(0).normal(size=model.head.weight.shape), dtype="float32"
        )
        losses.append(float(step(model, data, pieces(data, 8), **options).loss))
    assert losses[0] == losses[1] != losses[2]


def test_pieces_of_a_step_do_not_share_their_dropout(
    make_data: MakeData, make_model: MakeModel
) -> None:
    data, seen = make_data(), []
    same = pieces(data, 8)[0]

    def loss(logits: Any, labels: Any, *, xp: ArrayModule) -> Any:
        seen.append(to_numpy(logits))
        return softmax_cross_entropy(logits, labels, xp=xp)

    model = make_model(dropout=0.5)
    model.head.weight.value[...] = 1.0
    step(model, data, [same, same], loss=loss)
    assert not np.array_equal(*seen)


def test_a_step_never_waits_for_the_device(make_data: MakeData, make_model: MakeModel) -> None:
    data = make_data()
    model = make_model(xp=strict_device.xp, dropout=0.1, drop_path=0.1)
    optimizer = AdamW(1e-3).attach(model)
    batches = pieces(data, 8, 8, 3)
    with strict_device.count_syncs() as syncs:
        step(model, data, batches, optimizer=optimizer, lr=1e-3, max_grad_norm=1.0)
    assert syncs == []


def test_float32_stays_float32(make_data: MakeData, make_model: MakeModel) -> None:
    data, model = make_data(), make_model(dropout=0.1)
    log = step(model, data, pieces(data, 8, 3), max_grad_norm=1.0)
    assert {str(log.loss.dtype), str(log.grad_norm.dtype)} == {"float32"}


def test_the_update_is_announced_when_the_gradients_are_there(
    make_data: MakeData, make_model: MakeModel
) -> None:
    data, model = make_data(), make_model()
    optimizer, seen = SGD(0.1).attach(model), []
    before = model.state_dict()["head.weight"]

    def look() -> None:
        gradient = to_numpy(dict(model.named_parameters())["head.weight"].grad)
        unchanged = np.array_equal(model.state_dict()["head.weight"], before)
        seen.append((bool(gradient.any()), unchanged, optimizer.steps))

    step(model, data, pieces(data, 5, 5), optimizer=optimizer, lr=0.1, before_update=look)
    assert seen == [(True, True, 0)]
    assert not np.array_equal(model.state_dict()["head.weight"], before)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda loss, d: None, "returned an object of type NoneType; expected"),
        (lambda loss, d: loss, r"returned an object of type \w+; expected"),
        (
            lambda loss, d: (loss, d[:, :1]),
            r"returned arrays of shapes \[\(\), \(5, 1\)\]; expected",
        ),
        (lambda loss, d: (d, loss), r"returned arrays .* expected .* of shapes \(\) and \(5, 4\)"),
        (lambda loss, d: (loss, d, d), r"returned arrays of shapes \[\(\), \(5, 4\), \(5, 4\)\]"),
    ],
)
def test_a_loss_that_returns_something_else_is_named(
    wrong: Callable[..., Any], message: str, make_data: MakeData, make_model: MakeModel
) -> None:
    def focal(logits: Any, labels: Any, *, gamma: float, xp: ArrayModule) -> Any:
        return wrong(*softmax_cross_entropy(logits, labels, xp=xp))

    data = make_data()
    with pytest.raises(ValueError, match=rf"The loss \S*focal {message}") as caught:
        step(make_model(), data, pieces(data, 5), loss=partial(focal, gamma=2.0))
    assert vars(caught.value)["culprit"] == __name__


def test_no_gradient_of_the_images_is_computed(
    make_data: MakeData, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, model, called = make_data(), make_model(), []
    for name in ("patchify", "unpatchify"):
        op = getattr(ops, name)
        monkeypatch.setattr(
            ops, name, lambda *a, _op=op, **k: called.append(_op.__name__) or _op(*a, **k)
        )
    step(model, data, pieces(data, 5))
    assert called == ["patchify"]
