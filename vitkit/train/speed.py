"""How fast a model trains and infers here: the device waited for, warm-up left out."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np

from vitkit.backend import philox, synchronize
from vitkit.data import Batch
from vitkit.models import ViT
from vitkit.ops import softmax_cross_entropy
from vitkit.optim import AdamW
from vitkit.train.preprocess import Preprocess
from vitkit.train.step import train_step


def flops(model: ViT) -> float:
    """Return the floating-point operations of one image's forward pass.

    Two for each multiply-add of a matrix product; everything else is left out, as is usual.
    """
    c = model.config
    tokens, patches = c.num_tokens, c.grid[0] * c.grid[1]
    pixels = c.in_channels * c.patch_size[0] * c.patch_size[1]
    block = tokens * c.dim * (4 * c.dim + 2 * c.mlp_dim) + 2 * tokens**2 * c.dim
    return 2.0 * (patches * pixels * c.dim + c.depth * block + c.dim * c.num_classes)


def measure(model: ViT, *, batch_size: int, rounds: int = 5) -> dict[str, dict[str, float]]:
    """Time training steps (AdamW, clipping) and inference on random images.

    Parameters
    ----------
    model : ViT
        The model; its weights change.
    batch_size : int
        Images at once.
    rounds : int, default 5
        Timed repetitions, of which the median counts.

    Returns
    -------
    dict
        For ``"train"`` and ``"infer"``: ``seconds``, ``images_per_second`` and ``gflops``.
    """
    c, rng = model.config, philox(0, "speed")
    images = rng.integers(0, 256, (batch_size, c.in_channels, *c.image_size), np.uint8)
    labels = rng.integers(0, c.num_classes, batch_size)
    batch = Batch(images, labels, np.arange(batch_size), 0)
    preprocess = Preprocess(255.0, (0.5,) * c.in_channels, (0.5,) * c.in_channels)
    optimizer = AdamW(1e-3).attach(model)

    def train(step: int) -> None:
        train_step(
            model,
            optimizer,
            [batch],
            softmax_cross_entropy,
            preprocess,
            lr=1e-3,
            seed=0,
            step=step,
            max_grad_norm=1.0,
        )

    def infer(step: int) -> None:
        model(preprocess(images, model))

    work = flops(model) * batch_size
    timed = {"train": (train, 3 * work), "infer": (infer, work)}
    return {
        what: _row(_median_seconds(function, rounds, model), batch_size, total)
        for what, (function, total) in timed.items()
    }


def _median_seconds(function: Callable[[int], None], rounds: int, model: ViT) -> float:
    times = []
    for step in range(rounds + 1):
        started = time.perf_counter()
        function(step)
        synchronize(model.xp)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def _row(seconds: float, images: int, operations: float) -> dict[str, float]:
    return {
        "seconds": seconds,
        "images_per_second": images / seconds,
        "gflops": operations / seconds / 1e9,
    }
