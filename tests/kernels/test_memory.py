"""The memory that kernels lend out: aligned, used again, given back, and enough for a step."""

from __future__ import annotations

import gc
import threading
import tracemalloc

import numpy as np
import pytest

import vitkit
from vitkit import kernels, ops
from vitkit.data import Batch
from vitkit.optim import AdamW
from vitkit.train.preprocess import Preprocess
from vitkit.train.step import train_step

if reason := kernels.why_none(np):
    pytest.skip(f"no CPU kernels here: {reason}", allow_module_level=True)

from vitkit.kernels.cpu._memory import Workspace, workspace

MIB = 2**20


@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (0, 4), (1000, 1000)])
@pytest.mark.parametrize("dtype", ["float32", "uint16", "float64"])
def test_an_array_is_plain_and_aligned(shape: tuple[int, ...], dtype: str) -> None:
    array = Workspace().empty(shape, dtype)
    assert (array.shape, array.dtype) == (shape, np.dtype(dtype))
    assert array.flags.c_contiguous
    assert array.flags.writeable
    assert array.ctypes.data % 64 == 0


def test_memory_comes_back_with_the_last_view() -> None:
    shelf = Workspace()
    array = shelf.empty((300, 1000))
    place, view = array.ctypes.data, array[10:].reshape(-1)[5:]
    del array
    assert shelf.lent > 0
    assert shelf.empty((300, 1000)).ctypes.data != place
    del view
    assert shelf.lent == 0
    assert shelf.empty((300, 1000)).ctypes.data == place


def test_what_is_no_longer_asked_for_is_let_go_of(monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = Workspace()
    monkeypatch.setattr(shelf, "PATIENCE", 10)
    shelf.empty((300_000,))
    for _ in range(9):
        shelf.empty((1000,))
    assert shelf.held > 1_200_000
    shelf.empty((2000,))  # a size that is not there: time to look for what is in the way
    shelf.empty((3000,))
    assert shelf.held < 40_000


def test_everything_that_waits_can_be_given_back() -> None:
    shelf = Workspace()
    kept = shelf.empty((1000,))
    shelf.empty((300_000,))
    shelf.clear()
    assert shelf.held == shelf.lent > 0
    del kept
    shelf.clear()
    assert (shelf.lent, shelf.held) == (0, 0)


def test_threads_never_share_an_array() -> None:
    shelf, wrong = Workspace(), []

    def work(mark: int) -> None:
        for _ in range(300):
            array = shelf.empty((5000,))
            array.fill(mark)
            if not (array == mark).all():
                wrong.append(mark)

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert shelf.lent == 0


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_steady_step_asks_the_system_for_nothing(precision: str) -> None:
    model = vitkit.ViT(
        "Ti/4",
        image_size=32,
        num_classes=10,
        dim=192,
        depth=2,
        num_heads=3,
        drop_path=0.1,
        precision=precision,
    )
    if model.precision != precision:
        pytest.skip("no bfloat16 kernels here: a line of the log said why")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (48, 3, 32, 32), np.uint8)
    batch = Batch(images, rng.integers(0, 10, 48), np.arange(48), 0)
    preprocess, optimizer = Preprocess(255.0, (0.5,) * 3, (0.5,) * 3), AdamW(1e-3).attach(model)

    def step() -> None:
        train_step(
            model,
            optimizer,
            [batch],
            ops.softmax_cross_entropy,
            preprocess,
            lr=1e-3,
            seed=0,
            step=0,
            max_grad_norm=1.0,
        )

    step()
    step()  # the first one may still have found its largest arrays in use
    gc.collect()
    held = workspace.held
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        step()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held > 20 * MIB  # there is something to save: one array of the MLP alone has 9 MiB
    assert workspace.held == held
    assert peak - before < MIB
