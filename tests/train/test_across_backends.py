"""Checkpoints that one backend writes and the other opens: the same bits, and the same run.

The other backend is CuPy where a GPU works, and the strict stand-in for it elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from spoiling import Spoiling, assert_same_bits

import vitkit.checkpoint.files as files
from vitkit import ops, optim
from vitkit.backend import ArrayModule, array_module, cuda_status, to_numpy
from vitkit.data import ArrayDataset, Loader
from vitkit.models import ViT
from vitkit.optim import EMA, Optimizer
from vitkit.testing import strict_device
from vitkit.train import LossScale, Preprocess, StepLog, Trainer, TrainState, restore
from vitkit.train.callbacks import Average, Callback, Checkpointing
from vitkit.train.loss_scale import FIRST
from vitkit.train.restore import documents, find_checkpoint

MakeModel = Callable[..., ViT]
DEVICE: ArrayModule = array_module("cupy") if cuda_status().usable else strict_device.xp
WAYS = {"to the host": (DEVICE, np), "to the device": (np, DEVICE)}
OPTIMIZERS: dict[str, Callable[[], Optimizer]] = {
    "adam": lambda: optim.Adam(1e-2),
    "adamw": lambda: optim.AdamW(1e-2, weight_decay=0.1),
    "lamb": lambda: optim.LAMB(1e-2),
    "lion": lambda: optim.Lion(1e-3),
    "sgd": lambda: optim.SGD(1e-2, momentum=0.9),
}
STEPS = 7  # an epoch: 26 images in batches of 4


@pytest.fixture(autouse=True)
def by_references() -> Iterator[None]:
    """Have both compute by the same formulas, which serve float16 everywhere."""
    with ops.reference_only():
        yield


class Run(Callback):
    """A run in float16 with everything that a checkpoint holds; steps 1 and 4 are skipped."""

    name = "run"

    def __init__(
        self,
        folder: Path,
        model: ViT,
        data: ArrayDataset,
        optimizer: Optimizer | None = None,
        stop_at: int = 0,
    ) -> None:
        self.folder, self.model, self.data, self.stop_at = folder, model, data, stop_at
        self.optimizer = (optimizer or OPTIMIZERS["adamw"]()).attach(model, layer_decay=0.7)
        self.ema, self.scale = EMA(model, 0.9), LossScale(model.xp)
        self.logs: list[StepLog] = []
        self.seen: list[list[int]] = []
        self.preprocess = Preprocess.of(data)
        kept = documents(model, self.preprocess, data.classes)
        watching = [Average(self.ema), self]
        parts = {"ema": self.ema, "loss_scale": self.scale}
        self.saving = Checkpointing(folder, model, self.optimizer, watching, kept, **parts)
        self.callbacks = [*watching, self.saving]

    @property
    def arrays(self) -> dict[str, dict[str, np.ndarray]]:
        """What a checkpoint is to hold."""
        parts = {"model": self.model, "optim": self.optimizer, "ema": self.ema}
        return {
            stem: part.state_dict() for stem, part in {**parts, "loss_scale": self.scale}.items()
        }

    def on_step_end(self, state: TrainState, log: StepLog) -> None:
        self.logs.append(log)
        if state.step == self.stop_at:
            state.stop = "told to"

    def fit(self, state: TrainState | None = None) -> Run:
        """Train for two epochs, or until told to stop."""
        begun = state.step if state is not None else 0
        spoilt = Spoiling(1 - begun, 4 - begun, gradient=float("inf"))

        def loss(logits: Any, labels: Any, *, xp: ArrayModule) -> Any:
            self.seen.append(to_numpy(labels).tolist())
            return spoilt(logits, labels, xp=xp)

        trainer = Trainer(
            self.model,
            self.optimizer,
            loss=loss,
            callbacks=self.callbacks,
            max_grad_norm=1.0,
            loss_scale=self.scale,
            graph=False,  # this loss looks at the labels
        )
        trainer.fit(Loader(self.data, 4, shuffle=True), epochs=2, state=state)
        return self

    def load(self, checkpoint: Any) -> TrainState:
        """Take up a checkpoint."""
        self.model.load_state_dict(checkpoint.arrays["model"])
        self.optimizer.load_state_dict(checkpoint.arrays["optim"])
        self.ema.load_state_dict(checkpoint.arrays["ema"])
        self.scale.load_state_dict(checkpoint.arrays["loss_scale"])
        trainer = checkpoint.documents["trainer"]
        self.saving.load_state_dict(trainer["callbacks"]["checkpointing"])
        return TrainState.from_dict(trainer["state"])


@pytest.fixture
def make_run(
    tmp_path: Path, make_model: MakeModel, make_data: Callable[..., ArrayDataset]
) -> Callable[..., Run]:
    """Return a function that makes a run on a backend, in a folder of its own."""

    def make(name: str, xp: ArrayModule, **options: Any) -> Run:
        model = make_model(xp=xp, precision="float16", dropout=0.2, drop_path=0.2)
        assert model.precision == "float16"
        return Run(tmp_path / name, model, make_data(), **options)

    return make


def last(folder: Path) -> Any:
    return files.load(find_checkpoint(folder, "last"))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("way", WAYS)
def test_every_array_comes_over_bit_for_bit(
    way: str, name: str, make_run: Callable[..., Run], tmp_path: Path
) -> None:
    here, there = WAYS[way]
    written = make_run("written", here, optimizer=OPTIMIZERS[name](), stop_at=9).fit()
    checkpoint = last(written.folder)
    for stem, arrays in written.arrays.items():
        assert_same_bits(checkpoint.arrays[stem], arrays)
    slots = [key for key in checkpoint.arrays["optim"] if key != "step"]
    assert all(checkpoint.arrays["optim"][key].any() for key in slots)
    assert (checkpoint.arrays["optim"]["step"], checkpoint.arrays["ema"]["updates"]) == (7, 7)
    scale = checkpoint.arrays["loss_scale"]
    assert (scale["scale"], scale["good_steps"], scale["skipped"]) == (FIRST / 4, 4, 2)

    opened = make_run("opened", there, optimizer=OPTIMIZERS[name]())
    assert any(  # a model of its own, until it is loaded
        not np.array_equal(opened.arrays["model"][key], array)
        for key, array in checkpoint.arrays["model"].items()
    )
    opened.load(checkpoint)
    for stem, arrays in opened.arrays.items():
        assert_same_bits(arrays, checkpoint.arrays[stem])
        assert {key: a.dtype for key, a in arrays.items()} == {
            key: a.dtype for key, a in checkpoint.arrays[stem].items()
        }
    again = tmp_path / "again"
    files.save(again, opened.arrays, checkpoint.documents)
    for file in sorted(checkpoint.path.glob("*.safetensors")):
        assert (again / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("way", WAYS)
def test_a_model_that_is_restored_there_says_the_same(
    way: str, make_run: Callable[..., Run], make_data: Callable[..., ArrayDataset]
) -> None:
    here, there = WAYS[way]
    written = make_run("written", here, stop_at=5).fit()
    images = make_data().images(np.arange(6))
    for weights, expected in (("raw", "model"), ("ema", "ema")):
        restored = restore(written.folder, which="last", weights=weights, backend=there)
        assert restored.model.xp is there
        assert restored.model.precision == "float16"
        arrays = {k: v for k, v in written.arrays[expected].items() if k != "updates"}
        assert_same_bits(restored.model.state_dict(), arrays)
        logits = to_numpy(restored.model(restored.preprocess(images, restored.model)))
        back = restore(written.folder, which="last", weights=weights, backend=here)
        same = to_numpy(back.model(back.preprocess(images, back.model)))
        np.testing.assert_allclose(logits, same, atol=2e-3 * np.abs(same).max())


@pytest.mark.parametrize("stop_at", [3, STEPS, 9])
@pytest.mark.parametrize("way", WAYS)
def test_a_resumed_run_goes_on_there_from_the_same_place(
    way: str, stop_at: int, make_run: Callable[..., Run]
) -> None:
    here, there = WAYS[way]
    whole = make_run("whole", here).fit()
    make_run("parts", here, stop_at=stop_at).fit()
    resumed = make_run("parts", there)
    state = resumed.load(last(resumed.folder))
    assert state.step == stop_at
    resumed.fit(state)
    assert resumed.seen == whole.seen[stop_at:]  # the images that were left, in their order
    first, expected = resumed.logs[0], whole.logs[stop_at]
    for name in ("loss", "grad_norm"):  # from the same weights and masks, by another library
        found, right = (float(to_numpy(getattr(log, name))) for log in (first, expected))
        assert found == pytest.approx(right, rel=5e-3)
    ends = [run.arrays for run in (resumed, whole)]
    for stem, key in (("optim", "step"), ("ema", "updates"), ("loss_scale", "skipped")):
        assert ends[0][stem][key] == ends[1][stem][key]
    for key in ends[1]["model"]:
        found, right = (meant(key, run["model"][key]) for run in ends)
        np.testing.assert_allclose(found, right, atol=0.05, err_msg=key)


def meant(key: str, array: np.ndarray) -> np.ndarray:
    """Return what of a weight two libraries agree on: the gradient of keys' biases is 0, rounded.

    Adam makes whole steps of it, to either side.
    """
    return array.reshape(3, -1)[[0, 2]] if key.endswith("qkv.bias") else array


@pytest.mark.parametrize("way", WAYS)
def test_there_and_back_is_as_if_nothing_had_been(way: str, make_run: Callable[..., Run]) -> None:
    here, there = WAYS[way]
    whole = make_run("whole", here).fit()
    make_run("parts", here, stop_at=9).fit()
    between = make_run("parts", there)
    between.saving.save(between.load(last(between.folder)))
    assert last(between.folder).path.name == "step-00000009-2"
    resumed = make_run("parts", here)
    resumed.fit(resumed.load(last(resumed.folder)))
    for stem, arrays in whole.arrays.items():
        assert_same_bits(resumed.arrays[stem], arrays)
        assert_same_bits(last(resumed.folder).arrays[stem], arrays)


@pytest.mark.parametrize("way", WAYS)
def test_without_a_loss_scale_and_in_float64(
    way: str, make_model: MakeModel, make_data: Callable[..., ArrayDataset], tmp_path: Path
) -> None:
    here, there = WAYS[way]
    ends = []
    for xp in (here, there):
        model = make_model(xp=xp, dtype="float64", dropout=0.2)
        optimizer, ema = optim.AdamW(1e-2).attach(model), EMA(model, 0.9)
        if xp is there:
            loaded = files.load(tmp_path / "it").arrays
            for stem, part in (("model", model), ("optim", optimizer), ("ema", ema)):
                part.load_state_dict(loaded[stem])
                assert_same_bits(part.state_dict(), loaded[stem])
        trainer = Trainer(model, optimizer, callbacks=[Average(ema)])
        trainer.fit(Loader(make_data(), 4), epochs=1)
        arrays = {"model": model.state_dict(), "optim": optimizer.state_dict()}
        if xp is here:
            files.save(tmp_path / "it", {**arrays, "ema": ema.state_dict()}, {})
            trainer.fit(Loader(make_data(), 4), epochs=1)
            arrays["model"] = model.state_dict()
        ends.append(arrays["model"])
    for key, array in ends[0].items():
        assert array.dtype == "float64"
        np.testing.assert_allclose(ends[1][key], array, rtol=1e-6, atol=1e-9)
