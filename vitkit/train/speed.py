"""How fast a model trains and infers here: the device waited for, warm-up left out.

Kernels, references and matrix products alone take turns, and ratios are those of one round: a
machine is not the same a minute later.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from vitkit.backend import philox, synchronize
from vitkit.data import Batch
from vitkit.models import ViT
from vitkit.ops import reference_only, softmax_cross_entropy
from vitkit.optim import AdamW
from vitkit.train.loss_scale import loss_scale_for
from vitkit.train.preprocess import Preprocess
from vitkit.train.step import train_step

PAUSE = 0.05  # seconds before each turn: threads of the last one may still wait for more, actively
ENOUGH = 20e9  # operations of matrix products in a turn, so that it takes a while

Turn = Callable[[], None]


def flops(model: ViT) -> float:
    """Return the floating-point operations of one image's forward pass.

    Two for each multiply-add of a matrix product; everything else is left out, as is usual. All
    tokens count, though the last block computes only those that are read.
    """
    c = model.config
    tokens, patches = c.num_tokens, c.grid[0] * c.grid[1]
    pixels = c.in_channels * c.patch_size[0] * c.patch_size[1]
    block = tokens * c.dim * (4 * c.dim + 2 * c.mlp_dim) + 2 * tokens**2 * c.dim
    return 2.0 * (patches * pixels * c.dim + c.depth * block + c.dim * c.num_classes)


def measure(
    model: ViT,
    *,
    batch_size: int,
    rounds: int = 5,
    on_turn: Callable[[int], None] | None = None,
) -> dict[str, dict[str, float]]:
    """Time training steps (AdamW, clipping) and inference on random images.

    Parameters
    ----------
    model : ViT
        The model; its weights change.
    batch_size : int
        Images at once.
    rounds : int, default 5
        Timed repetitions, of which the median counts.
    on_turn : callable, optional
        Called with 1 after each of the ``turns(rounds)`` turns.

    Returns
    -------
    dict
        For ``"train"`` and ``"infer"``: ``seconds``, ``images_per_second`` and ``gflops``, then
        ``times_as_fast``, how many times as fast as the references that is, and
        ``share_of_matmul``, what that is of the rate of float32 matrix products alone. For
        ``"matmul"``: that rate, as ``gflops``, of the model's largest product by the array module.
    """
    train, infer = _passes(model, batch_size)
    multiply, operations = _products(model, batch_size)
    entries = {
        "train": train,
        "train by references": _by_references(train),
        "infer": infer,
        "infer by references": _by_references(infer),
        "matmul": multiply,
    }
    seconds = _race(entries, rounds, model, on_turn)
    work = flops(model) * batch_size
    found = {}
    for what, total in (("train", 3 * work), ("infer", work)):
        shares = _ratios(seconds["matmul"], seconds[what])
        found[what] = {
            **_row(statistics.median(seconds[what]), batch_size, total),
            "times_as_fast": statistics.median(
                _ratios(seconds[f"{what} by references"], seconds[what])
            ),
            "share_of_matmul": statistics.median(shares) * total / operations,
        }
    rate = operations / statistics.median(seconds["matmul"]) / 1e9
    return {**found, "matmul": {"gflops": rate}}


def turns(rounds: int) -> int:
    """Return how many turns a measurement takes, those that do not count included."""
    return 5 * (rounds + 1)


def _passes(model: ViT, batch_size: int) -> tuple[Turn, Turn]:
    """Return a training step and an inference of random images."""
    c, rng = model.config, philox(0, "speed")
    images = rng.integers(0, 256, (batch_size, c.in_channels, *c.image_size), np.uint8)
    labels = rng.integers(0, c.num_classes, batch_size)
    batch = Batch(images, labels, np.arange(batch_size), 0)
    preprocess = Preprocess(255.0, (0.5,) * c.in_channels, (0.5,) * c.in_channels)
    optimizer = AdamW(1e-3).attach(model)
    settings: dict[str, Any] = {"lr": 1e-3, "seed": 0, "step": 0, "max_grad_norm": 1.0}
    settings["loss_scale"] = loss_scale_for(model)

    def train() -> None:
        train_step(model, optimizer, [batch], softmax_cross_entropy, preprocess, **settings)

    def infer() -> None:
        model(preprocess(images, model))

    return train, infer


def _products(model: ViT, batch_size: int) -> tuple[Turn, float]:
    """Return a turn of the largest product of the model, and the operations in it."""
    c, xp, rng = model.config, model.xp, philox(0, "speed of products")
    rows = batch_size * c.num_tokens
    x = xp.asarray(rng.random((rows, c.dim), np.float32))
    weight = xp.asarray(rng.random((c.mlp_dim, c.dim), np.float32))
    y = xp.empty((rows, c.mlp_dim), np.float32)
    operations = 2.0 * rows * c.dim * c.mlp_dim
    repeats = math.ceil(ENOUGH / operations)

    def multiply() -> None:
        for _ in range(repeats):
            xp.matmul(x, weight.T, out=y)

    return multiply, repeats * operations


def _by_references(turn: Turn) -> Turn:
    def run() -> None:
        with reference_only():
            turn()

    return run


def _race(
    entries: dict[str, Turn], rounds: int, model: ViT, on_turn: Callable[[int], None] | None
) -> dict[str, list[float]]:
    """Let everyone take turns; return seconds of each round, the first left out."""
    seconds: dict[str, list[float]] = {name: [] for name in entries}
    for turn in range(rounds + 1):
        for name, run in entries.items():
            time.sleep(PAUSE)
            started = time.perf_counter()
            run()
            synchronize(model.xp)
            if turn:
                seconds[name].append(time.perf_counter() - started)
            if on_turn is not None:
                on_turn(1)
    return seconds


def _ratios(theirs: list[float], ours: list[float]) -> list[float]:
    return [their / our for their, our in zip(theirs, ours, strict=True)]


def _row(seconds: float, images: int, operations: float) -> dict[str, float]:
    return {
        "seconds": seconds,
        "images_per_second": images / seconds,
        "gflops": operations / seconds / 1e9,
    }
