"""Too little memory: what is said, what is let go of, and that training can go on."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vitkit.backend import Array, ArrayModule
from vitkit.data import ArrayDataset, Loader
from vitkit.errors import BackendError
from vitkit.models import ViT
from vitkit.ops import softmax_cross_entropy
from vitkit.optim import AdamW
from vitkit.train import Trainer, memory
from vitkit.train.callbacks import Validation
from vitkit.train.evaluate import evaluate, predict
from vitkit.train.memory import ledger, memory_for, shown
from vitkit.train.preprocess import Preprocess

SAID = "Out of memory allocating 1,234 bytes (allocated so far: 5 bytes)."


class Hungry:
    """A loss that finds no memory the first time, while it holds a large array."""

    def __init__(self) -> None:
        self.calls, self.held = 0, lambda: None

    def __call__(self, logits: Array, labels: Array, *, xp: ArrayModule) -> tuple[Any, Any]:
        self.calls += 1
        if self.calls == 1:
            room = type("Room", (), {"array": xp.zeros((1000, 1000))})()
            self.held = weakref.ref(room)
            raise MemoryError(SAID)
        return softmax_cross_entropy(logits, labels, xp=xp)


def test_the_error_says_what_there_is_and_what_to_do_and_training_can_go_on(
    make_data: Callable[..., ArrayDataset], make_model: Callable[..., ViT]
) -> None:
    model, loss = make_model(), Hungry()
    trainer = Trainer(model, AdamW(), loss=loss, grad_accum=2)
    data = Loader(make_data(24), 6)
    before = model.state_dict()
    with pytest.raises(BackendError) as raised:
        trainer.fit(data)
    said = str(raised.value)
    size = sum(group.values.nbytes for group in model.groups)
    assert said.startswith("Out of memory in a training step of 12 images, 6 at a time: ")
    assert SAID.split("(")[0] in said
    for part in (
        f"weights {shown(size)}",
        f"optimizer {shown(2 * size)}",
        "batch_size=3",
        "grad_accum",
        "gradient_checkpointing",
        "precision='bfloat16'",
    ):
        assert part in said
    gc.collect()
    assert loss.held() is None  # what the failed step held has been let go of
    assert all((before[name] == value).all() for name, value in model.state_dict().items())
    assert trainer.fit(data).step == 2


def said_of(doing: str, images: int, model: ViT) -> tuple[str, Any]:
    """Return what is said where a forward finds no memory, and what watches its large array."""
    loss, logits = Hungry(), model.xp.zeros((images, 4), "float32")
    with pytest.raises(BackendError) as raised, memory_for(doing, images, model):
        loss(logits, logits, xp=model.xp)
    gc.collect()
    return str(raised.value), loss.held()


def test_a_forward_says_what_there_is_and_what_to_do(make_model: Callable[..., ViT]) -> None:
    model = make_model()
    said, held = said_of("evaluating", 7, model)
    size = shown(sum(group.values.nbytes for group in model.groups))
    assert said.startswith("Out of memory evaluating 7 images at once: ")
    assert SAID.split("(")[0] in said
    assert f"at least weights {size}, gradients {size}; the rest" in said
    assert "take batch_size=3, with which the results are the same" in said
    assert "precision='bfloat16'" in said
    assert "gradient_checkpointing" not in said  # nothing is kept for backward
    assert held is None


def test_a_forward_of_one_image_is_not_told_to_take_fewer(
    half: Callable[..., ViT],
) -> None:
    said, _ = said_of("predicting", 1, half())
    assert said.startswith("Out of memory predicting 1 image at once: ")
    assert "batch_size" not in said
    assert "precision" not in said
    assert said.endswith("To need less: end what else uses this device's memory.")


def test_how_much_is_free_is_said_where_it_is_known(
    make_model: Callable[..., ViT], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    monkeypatch.setattr(memory, "memory_left", lambda xp: (3 << 20, 80 << 30))
    assert " 3.0 MiB of 80.0 GiB are free without it. " in said_of("evaluating", 2, model)[0]


def test_evaluation_says_it_and_can_be_done_again(
    make_data: Callable[..., ArrayDataset], make_model: Callable[..., ViT]
) -> None:
    model, loss, data = make_model(), Hungry(), Loader(make_data(10), 6)
    with pytest.raises(BackendError, match=r"evaluating 6 images at once: .* batch_size=3"):
        evaluate(model, data, loss=loss)
    gc.collect()
    assert loss.held() is None
    assert evaluate(model, data, loss=loss).confusion.sum() == 10


def test_validation_at_the_end_of_an_epoch_says_it(
    make_data: Callable[..., ArrayDataset], make_model: Callable[..., ViT]
) -> None:
    data, loss = Loader(make_data(10), 5), Hungry()
    loss.calls = -2  # two steps, and then the validation
    model, preprocess = make_model(), Preprocess.of(data.dataset)
    validation = Validation(model, data, loss, preprocess)
    trainer = Trainer(model, AdamW(), loss=loss, callbacks=[validation])
    with pytest.raises(BackendError, match="Out of memory evaluating 5 images at once"):
        trainer.fit(data)
    assert trainer.fit(data).step == 2


def test_prediction_says_it_and_can_be_done_again(
    make_data: Callable[..., ArrayDataset],
    make_model: Callable[..., ViT],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, data = make_model(), make_data(10)
    images, preprocess = data.images(np.arange(10)), Preprocess.of(data)
    with monkeypatch.context() as patch:

        def find_none(*args: Any, **kwargs: Any) -> Any:
            raise MemoryError(SAID)

        patch.setattr(type(model), "forward", find_none)
        with pytest.raises(BackendError, match=r"predicting 4 images at once: .* batch_size=2"):
            predict(model, images, preprocess, batch_size=4)
    assert predict(model, images, preprocess, batch_size=4).shape == (10, 4)


def test_the_ledger_counts_what_there_is(make_model: Callable[..., ViT]) -> None:
    model = make_model()
    sizes = ledger(model, AdamW().attach(model))
    assert sizes["weights"] == sizes["gradients"] == sizes["optimizer"] // 2
    assert sizes["weights"] >= 4 * model.num_parameters


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (2048, "2.0 KiB"),
        (3 << 20, "3.0 MiB"),
        (141 << 30, "141.0 GiB"),
    ],
)
def test_bytes_for_people(size: int, text: str) -> None:
    assert shown(size) == text
