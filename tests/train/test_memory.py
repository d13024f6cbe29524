"""Too little memory: what is said, what is let go of, and that training can go on."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from vitkit.backend import Array, ArrayModule
from vitkit.data import ArrayDataset, Loader
from vitkit.errors import BackendError
from vitkit.models import ViT
from vitkit.ops import softmax_cross_entropy
from vitkit.optim import AdamW
from vitkit.train import Trainer
from vitkit.train.memory import ledger, shown

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
