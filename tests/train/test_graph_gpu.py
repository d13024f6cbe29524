"""Graphs, uploads and checkpoints of whole runs: on a GPU that works, emulated elsewhere.

``VITKIT_TEST_XP=gpu`` asks for the GPU, as in the rest of the suite.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from spoiling import assert_same_bits

import vitkit.checkpoint.files as files
from vitkit import ops, optim
from vitkit.backend import ArrayModule, can_record, memory_left, record, to_numpy, uploader
from vitkit.data import ArrayDataset, Loader
from vitkit.models import ViT
from vitkit.optim import EMA, Optimizer
from vitkit.testing import cuda_on_cpu, strict_device
from vitkit.train import LossScale, Trainer, TrainState
from vitkit.train.callbacks import Average, Callback, Checkpointing
from vitkit.train.restore import find_checkpoint

MakeModel = Callable[..., ViT]
MakeData = Callable[..., ArrayDataset]
OPTIMIZERS: dict[str, Callable[[], Optimizer]] = {
    "adamw": lambda: optim.AdamW(1e-2, weight_decay=0.1),
    "lamb": lambda: optim.LAMB(1e-2),
}


@pytest.fixture
def device(xp: ArrayModule, kernels_on: None) -> Iterator[ArrayModule]:
    """Return CuPy where it is under test, and the strict device with kernels elsewhere."""
    if xp.__name__ == "cupy":
        yield xp
        return
    if reason := cuda_on_cpu.why_not():
        pytest.skip(reason)
    with cuda_on_cpu.emulated():
        yield strict_device.xp


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, state: TrainState, log: Any) -> None:
        if state.step == self.step:
            state.stop = "told to"


class Run:
    """A run with all that a checkpoint holds; a batch of 26 images is smaller than the others."""

    def __init__(
        self,
        folder: Path,
        model: ViT,
        data: ArrayDataset,
        optimizer: Optimizer,
        stop_at: int = 0,
        graph: bool = True,
    ) -> None:
        self.folder, self.data, self.graph = folder, data, graph
        self.model, self.optimizer = model, optimizer.attach(model)
        self.ema = EMA(model, 0.9)
        self.scale = LossScale(model.xp) if model.precision == "float16" else None
        watching = [Average(self.ema), StopAt(stop_at)]
        kept = {"ema": self.ema, "loss_scale": self.scale}
        self.callbacks = [
            *watching,
            Checkpointing(folder, model, self.optimizer, watching, {}, **kept),
        ]

    @property
    def parts(self) -> dict[str, Any]:
        """What has a state."""
        parts = {"model": self.model, "optim": self.optimizer, "ema": self.ema}
        return parts | ({"loss_scale": self.scale} if self.scale is not None else {})

    @property
    def arrays(self) -> dict[str, dict[str, np.ndarray]]:
        """What a checkpoint is to hold."""
        return {stem: part.state_dict() for stem, part in self.parts.items()}

    def fit(self, state: TrainState | None = None) -> Run:
        trainer = Trainer(
            self.model,
            self.optimizer,
            callbacks=self.callbacks,
            max_grad_norm=1.0,
            loss_scale=self.scale,
            graph=self.graph,
        )
        trainer.fit(Loader(self.data, 4, shuffle=True), epochs=2, state=state)
        return self

    def load(self) -> TrainState:
        """Take up the last checkpoint of the folder."""
        checkpoint = files.load(find_checkpoint(self.folder, "last"))
        for stem, part in self.parts.items():
            part.load_state_dict(checkpoint.arrays[stem])
        return TrainState.from_dict(checkpoint.documents["trainer"]["state"])


@pytest.fixture
def make_run(tmp_path: Path, make_model: MakeModel, make_data: MakeData) -> Callable[..., Run]:
    """Return a function that makes a run in a folder of its own."""

    def make(
        name: str, xp: ArrayModule, precision: str, optimizer: str = "adamw", **options: Any
    ) -> Run:
        model = make_model(xp=xp, precision=precision, dropout=0.2, drop_path=0.2, dim=32)
        assert model.precision == precision
        return Run(tmp_path / name, model, make_data(), OPTIMIZERS[optimizer](), **options)

    return make


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_in_graphs_ends_with_the_bits_of_one_without(
    name: str, device: ArrayModule, make_run: Callable[..., Run]
) -> None:
    ends = [
        make_run(f"graph {graph}", device, "float32", name, graph=graph).fit().arrays
        for graph in (True, False)
    ]
    for stem, arrays in ends[1].items():
        assert_same_bits(ends[0][stem], arrays)
    assert ends[0]["optim"]["step"] == 14


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_checkpoint_of_a_run_in_graphs_opens_on_the_host_and_goes_on_in_graphs(
    precision: str, device: ArrayModule, make_run: Callable[..., Run]
) -> None:
    whole = make_run("whole", device, precision).fit()
    stopped = make_run("parts", device, precision, stop_at=10).fit()  # between two replays
    checkpoint = files.load(find_checkpoint(stopped.folder, "last"))
    with ops.reference_only():
        on_host = make_run("parts", np, precision)
        assert on_host.load().step == 10
    for stem, arrays in stopped.arrays.items():
        assert_same_bits(checkpoint.arrays[stem], arrays)
        assert_same_bits(on_host.arrays[stem], arrays)
    resumed = make_run("parts", device, precision)
    resumed.fit(resumed.load())
    for stem, arrays in whole.arrays.items():
        assert_same_bits(resumed.arrays[stem], arrays)


def test_uploads_and_replays_that_nothing_waits_for(device: ArrayModule) -> None:
    given, total = device.zeros((512, 257), "float32"), device.zeros((512, 257), "float32")
    upload = uploader(given, xp=device)

    def step() -> Any:
        total.__iadd__(given)
        return total * 2

    for _ in range(2):
        step()
    total.fill(0)
    graph, doubled = record(step, xp=device)
    host, seen = np.empty((512, 257), "float32"), []
    for number in range(1, 33):
        host.fill(number)
        upload(host)
        host.fill(-1)  # may be changed at once
        graph.replay()
        seen.append(doubled[-1, -1].copy())
    assert [float(to_numpy(each)) for each in seen] == [n * (n + 1.0) for n in range(1, 33)]
    assert (to_numpy(total) == 32 * 33 / 2).all()


def test_what_cannot_be_recorded_leaves_the_device_as_it_was(device: ArrayModule) -> None:
    given = device.zeros((3,), "float32")
    given += 1
    assert can_record(device)
    with pytest.raises(RuntimeError, match="captur"):
        record(lambda: to_numpy(given * 2), xp=device)
    with pytest.raises(ZeroDivisionError):
        record(lambda: given * (1 // 0), xp=device)
    given += 2
    graph, doubled = record(lambda: given * 2, xp=device)
    assert to_numpy(doubled).tolist() == [6, 6, 6]
    graph.replay()
    assert to_numpy(doubled).tolist() == [6, 6, 6]


@pytest.mark.gpu
def test_graphs_give_their_memory_back(make_run: Callable[..., Run]) -> None:
    cupy = pytest.importorskip("cupy", reason="CuPy is missing")

    def left() -> int:
        gc.collect()
        cupy.get_default_memory_pool().free_all_blocks()
        found = memory_left(cupy)
        assert found is not None
        return found[0]

    make_run("first", cupy, "float32").fit()
    before = left()
    for number in range(3):
        make_run(f"again {number}", cupy, "float32").fit()
    assert left() > before - (8 << 20)
