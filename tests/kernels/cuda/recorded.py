"""Training steps on the strict device, asked for one by one or recorded."""

from __future__ import annotations

from typing import Any

import numpy as np

from vitkit import ViT, ops
from vitkit.data import Batch
from vitkit.optim import AdamW
from vitkit.testing import strict_device
from vitkit.train.graph import GraphedStep
from vitkit.train.preprocess import Preprocess
from vitkit.train.recorded import WARM_UP

xp = strict_device.xp


def trained(graphed: bool, syncs: list[Any], **options: Any) -> list[np.ndarray]:
    """Return the weights after some steps, all of which but the first two may be recorded."""
    sizes = {"dim": 32, "depth": 2, "num_heads": 1, "mlp_dim": 48, "num_classes": 3}
    kind = {"activation": "gelu_tanh", "init": "scratch", "precision": "bfloat16"}
    model = ViT("Ti/4", image_size=8, xp=xp, **sizes, **{**kind, **options})
    optimizer = AdamW(1e-3).attach(model)
    preprocess, rng = Preprocess(255.0, (0.5,) * 3, (0.5,) * 3), np.random.default_rng(5)
    given = model, optimizer, ops.softmax_cross_entropy, preprocess
    step = GraphedStep(*given, records=graphed)
    for number in range(WARM_UP + 3):
        images = rng.integers(0, 256, (2, 3, 8, 8), "uint8")
        batch = Batch(images, rng.integers(0, 3, 2), np.arange(2), number)
        with strict_device.count_syncs() as waits:
            step([batch], lr=1e-3, seed=0, step=number)
        syncs += waits
    return list(model.state_dict().values())
