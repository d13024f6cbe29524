"""A whole model in each precision: its gradients, that it learns, and that it can be resumed."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vitkit.checkpoint.files as files
from vitkit import ops
from vitkit.backend import ArrayModule, to_numpy
from vitkit.backend.precision import PRECISIONS
from vitkit.data import ArrayDataset, Loader, digits
from vitkit.models import ViT
from vitkit.nn.context import Context
from vitkit.ops import softmax_cross_entropy
from vitkit.optim import EMA, AdamW
from vitkit.train import LossScale, Trainer, TrainState
from vitkit.train.callbacks import Average, Callback, Checkpointing, Recorder
from vitkit.train.restore import find_checkpoint

MakeData = Callable[..., ArrayDataset]
MakeModel = Callable[..., ViT]
Arrays = dict[str, np.ndarray]

DEPTH, WIDEST = 3, 64  # blocks, and terms of the longest sum in them
SIZES: dict[str, Any] = {"image_size": 16, "num_classes": 5, "dim": 32, "depth": DEPTH}
SIZES |= {"num_heads": 2, "mlp_dim": WIDEST}
ROUNDOFF = {"float32": 2.0**-24, "tf32": 2.0**-11, "bfloat16": 2.0**-8, "float16": 2.0**-11}
PRODUCTS = 13 * DEPTH
"""On the longest way through the model and back: 6 of a block forward, 7 backward."""


def whole_pass(xp: ArrayModule, precision: str, dtype: str, *, scale: float = 1.0) -> Arrays:
    """Return logits, loss and every gradient of a model whose weights are all of some size."""
    with ops.reference_only():
        model = ViT("Ti/4", **SIZES, precision=precision, dtype=dtype, xp=xp)
        for index, (name, parameter) in enumerate(model.named_parameters()):
            drawn = np.random.default_rng(index).normal(0, 0.2, parameter.shape).astype("f4")
            around = 1 if name.endswith(("norm1.weight", "norm2.weight", "norm.weight")) else 0
            parameter.value[...] = xp.asarray(drawn + np.float32(around), dtype=dtype)
        images = np.random.default_rng(99).standard_normal((6, 3, 16, 16)).astype("f4")
        ctx = Context(train=True, seed=0, step=0)
        logits = model.forward(xp.asarray(images, dtype=dtype), ctx)
        loss, dlogits = softmax_cross_entropy(logits, xp.asarray(np.arange(6) % 5), xp=xp)
        model.backward(dlogits * scale, ctx)
    found = {"logits": to_numpy(logits), "loss": np.asarray(to_numpy(loss))}
    return found | {
        name: to_numpy(parameter.grad) / np.asarray(scale, dtype)
        for name, parameter in model.named_parameters()
    }


@pytest.mark.parametrize("precision", PRECISIONS)
def test_gradients_are_off_by_the_rounding_of_operands(precision: str, xp: ArrayModule) -> None:
    """Two operands of each product, off by a roundoff at most and each by itself: a random walk.

    Twice that is allowed; in float32 each sum rounds too, as often as it has terms.
    """
    truth = whole_pass(xp, "float32", "float64")
    found = whole_pass(xp, precision, "float32", scale=1024.0)
    unit = ROUNDOFF[precision]
    terms = WIDEST if precision == "float32" else 1
    allowed = 2 * math.sqrt(2 * PRODUCTS * terms) * unit
    errors = {
        name: np.linalg.norm(found[name] - array) / np.linalg.norm(array)
        for name, array in truth.items()
    }
    assert len(errors) > 12 * DEPTH
    assert {name: error for name, error in errors.items() if not error < allowed} == {}
    assert np.median(list(errors.values())) > unit / 4  # and rounded they were


def learned(precision: str, loss_scale: LossScale | None = None) -> tuple[Trainer, float, float]:
    """Return the trainer, training loss and test accuracy after six epochs of the digits."""
    data, rows = digits(), []
    with ops.reference_only():
        model = ViT(
            "Ti/4",
            image_size=8,
            in_channels=1,
            num_classes=10,
            dim=32,
            depth=2,
            num_heads=2,
            mlp_dim=64,
            init="scratch",
            precision=precision,
        )
        assert model.precision == precision
        trainer = Trainer(
            model,
            AdamW(3e-3, weight_decay=0.05),
            callbacks=[Recorder([rows.append])],
            max_grad_norm=1.0,
            loss_scale=loss_scale,
        )
        trainer.fit(Loader(data.train, 64, shuffle=True), epochs=6)
        accuracy = trainer.evaluate(Loader(data.test, 360)).accuracy
    return trainer, rows[-1]["train_loss"], accuracy


@pytest.fixture(scope="module")
def in_float32() -> tuple[float, float]:
    _, loss, accuracy = learned("float32")
    return loss, accuracy


@pytest.mark.parametrize("precision", ["tf32", "float16"])
def test_the_digits_are_learned_as_in_float32(
    precision: str, in_float32: tuple[float, float]
) -> None:
    """Over three seeds the loss differed by 4% at most, and the accuracy by 1.4%."""
    trainer, loss, accuracy = learned(precision)
    assert loss == pytest.approx(in_float32[0], rel=0.12)
    assert accuracy == pytest.approx(in_float32[1], abs=0.04)
    assert accuracy > 0.92
    assert (trainer.loss_scale is not None) is (precision == "float16")


def test_they_are_learned_from_a_scale_that_is_too_large(in_float32: tuple[float, float]) -> None:
    scale = LossScale(np)
    scale.scale[...] = 2.0**24
    trainer, loss, accuracy = learned("float16", scale)
    skipped = int(scale.skipped)
    assert 0 < skipped < 24
    assert float(scale.scale) == 2.0 ** (24 - skipped)
    assert trainer.optimizer.state_dict()["step"] == 6 * 23 - skipped
    assert loss == pytest.approx(in_float32[0], rel=0.25)  # of fewer steps
    assert accuracy > 0.9


class StopAt(Callback):
    """Ends the run at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, state: TrainState, log: Any) -> None:
        if state.step == self.step:
            state.stop = "told to"


class HalfRun:
    """A run in float16 with everything on, about to double its scale."""

    def __init__(self, folder: Path, make_model: MakeModel, *extra: Callback) -> None:
        with ops.reference_only():
            self.model = make_model(precision="float16", drop_path=0.2)
        self.folder = folder
        self.optimizer = AdamW(1e-2, weight_decay=0.1).attach(self.model)
        self.ema = EMA(self.model, 0.9)
        self.scale = LossScale(self.model.xp)
        # It doubles at step 10, and is then too large before long.
        start = {"scale": np.float32(2**19), "good_steps": np.int64(1990), "skipped": np.int64(0)}
        self.scale.load_state_dict(start)
        self.rows: list[dict[str, Any]] = []
        self.recorder = Recorder([self.rows.append], every=3)
        watching = [Average(self.ema), self.recorder, *extra]
        self.saving = Checkpointing(
            folder, self.model, self.optimizer, watching, {}, ema=self.ema, loss_scale=self.scale
        )
        self.callbacks = [*watching, self.saving]

    def fit(self, data: ArrayDataset, state: TrainState | None = None) -> TrainState:
        def loss(logits: Any, labels: Any, *, xp: Any) -> Any:
            value, dlogits = softmax_cross_entropy(logits, labels, xp=xp)
            return value, dlogits * 8.0

        trainer = Trainer(
            self.model,
            self.optimizer,
            loss=loss,
            callbacks=self.callbacks,
            max_grad_norm=1.0,
            loss_scale=self.scale,
        )
        return trainer.fit(Loader(data, 4, shuffle=True), epochs=3, state=state)

    def resume(self, data: ArrayDataset) -> None:
        checkpoint = files.load(find_checkpoint(self.folder, "last"))
        parts = {"model": self.model, "optim": self.optimizer, "ema": self.ema}
        for stem, part in (parts | {"loss_scale": self.scale}).items():
            part.load_state_dict(checkpoint.arrays[stem])
        trainer = checkpoint.documents["trainer"]
        self.recorder.load_state_dict(trainer["callbacks"]["recorder"])
        self.fit(data, TrainState.from_dict(trainer["state"]))


@pytest.mark.parametrize("at", [1, 3, 7, 9, 10, 13, 14, 15, 20])
def test_a_resumed_run_ends_with_the_same_bits(
    at: int, tmp_path: Path, make_model: MakeModel, make_data: MakeData
) -> None:
    data = make_data()
    whole = HalfRun(tmp_path / "whole", make_model)
    whole.fit(data)
    HalfRun(tmp_path / "parts", make_model, StopAt(at)).fit(data)
    resumed = HalfRun(tmp_path / "parts", make_model)
    resumed.resume(data)
    ends = [files.load(find_checkpoint(r.folder, "last")).arrays for r in (resumed, whole)]
    assert ends[0].keys() == ends[1].keys() == {"model", "optim", "ema", "loss_scale"}
    for stem, arrays in ends[1].items():
        for name, array in arrays.items():
            assert ends[0][stem][name].tobytes() == array.tobytes(), f"{stem} {name}"
    assert 0 < ends[1]["loss_scale"]["skipped"] < 5
    assert ends[1]["loss_scale"]["good_steps"] < 12
    assert ends[1]["optim"]["step"] == ends[1]["ema"]["updates"]
    assert ends[1]["optim"]["step"] + ends[1]["loss_scale"]["skipped"] == 21
    assert resumed.rows[-1]["skipped"] == whole.rows[-1]["skipped"]
    assert resumed.rows[-1]["train_loss"] == whole.rows[-1]["train_loss"]
