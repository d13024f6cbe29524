"""What is right: one step's loss and gradients, or the logits, in float64 on the CPU.

They are those of vitkit's references, which its tests compare to PyTorch's in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from contenders.task import Order, read_data
from safetensors.numpy import load_file

TOLERANCES = {"float32": (1e-5, 1e-4), "tf32": (1e-3, 1e-2), "bfloat16": (5e-3, 5e-2)}
"""How far a loss may be from the truth, and all gradients together or all logits, relatively."""


@dataclass
class Truth:
    """What a contender's evidence is compared to.

    Attributes
    ----------
    loss : float or None
        The loss before the step; None for inference.
    arrays : dict of str to numpy.ndarray
        The gradients by the names of the parameters, or the logits.
    """

    loss: float | None
    arrays: dict[str, np.ndarray]

    def check(self, loss: float | None, file: Path, precision: str) -> dict[str, Any]:
        """Return how far the arrays of a file are from the truth, and what is wrong with them."""
        mine, (least, most) = load_file(file), TOLERANCES[precision]
        if missing := set(self.arrays) ^ set(mine):
            return {"wrong": f"not in both: {', '.join(sorted(missing))}"}
        squares = {name: _squares(mine[name], true) for name, true in self.arrays.items()}
        apart, whole = (sum(each) for each in zip(*squares.values(), strict=True))
        worst = max(squares, key=lambda name: squares[name][0] / max(squares[name][1], 1e-300))
        found: dict[str, Any] = {
            "apart": (apart / whole) ** 0.5,
            "worst": {worst: (squares[worst][0] / max(squares[worst][1], 1e-300)) ** 0.5},
            "tolerance": {"loss": least, "apart": most},
        }
        wrong = [] if found["apart"] <= most else [f"arrays {found['apart']:.1e} from float64"]
        if self.loss is not None:
            found["loss"] = abs(loss - self.loss) / abs(self.loss)
            wrong += [] if found["loss"] <= least else [f"loss {found['loss']:.1e} from float64"]
        return {**found, "wrong": ", ".join(wrong)}


def _squares(mine: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    """Return the squares of a difference's norm and of the true norm; NaN where one is NaN."""
    if mine.shape != true.shape:
        return float("inf"), 1.0
    return float(np.square(mine - true).sum()), float(np.square(true).sum())


def compute(order: Order) -> Truth:
    """Return the truth of an order."""
    from contenders.vitkit_contender import make_model

    from vitkit import ops
    from vitkit.nn import Context

    images, labels = read_data(order)
    with ops.reference_only():
        model = make_model(order.sizes, dtype="float64", seed=None)
        weights = {name: np.float64(each) for name, each in load_file(order.weights).items()}
        model.load_state_dict(weights)
        if order.task == "infer":
            return Truth(None, {"logits": model(np.float64(images))})
        ctx = Context(train=True, seed=0, step=0)
        logits = model.forward(np.float64(images), ctx)
        loss, dlogits = ops.softmax_cross_entropy(logits, labels, xp=np)
        model.backward(dlogits, ctx)
    return Truth(float(loss), {name: each.grad for name, each in model.named_parameters()})
