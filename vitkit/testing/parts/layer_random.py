"""Checks of where a layer's random numbers come from."""

from __future__ import annotations

import numpy as np

from vitkit.backend import to_numpy
from vitkit.nn import Dropout
from vitkit.nn.context import Context
from vitkit.testing.parts.isolation import global_generators
from vitkit.testing.parts.memory import same_bits
from vitkit.testing.parts.passes import Subject

SEEDS = 100
"""How many are tried, so that even a dropout of few percent shows."""
ADVICE = (
    "Draw with philox(seed, purpose, step, count) from the three of ctx.seeds.next(), or use "
    "nn.Dropout: what is drawn elsewhere, neither a resumed run nor a Checkpoint draws again."
)


def inference_is_deterministic(s: Subject) -> None:
    """Check that inference draws nothing, and training computes the same but for its dropout."""
    layer = s.placed()
    y = to_numpy(layer(s.inputs()))
    if not same_bits(to_numpy(layer(s.inputs())), y):
        raise AssertionError("two passes of inference give different outputs; nothing may draw.")
    ctx = Context(seed=9, step=9)
    if not same_bits(to_numpy(layer.forward(s.inputs(), ctx)), y) or ctx.seeds.drawn:
        raise AssertionError(
            "it draws random numbers in inference. Drop and perturb only where ctx.train is true."
        )
    for _, module in layer.modules():
        if isinstance(module, Dropout):
            module.rate = 0.0
    ctx = Context(train=True)
    trained = to_numpy(layer.forward(s.inputs(), ctx))
    if s.batched and not ctx.seeds.drawn and not same_bits(trained, y):
        raise AssertionError(
            "without any dropout it computes something else in training than in inference."
        )


def draws_by_seed_and_step(s: Subject) -> None:
    """Check that training draws by the seed, the step and a count, and by nothing else."""
    layer = s.placed()

    def output(seed: int, step: int) -> tuple[np.ndarray, int]:
        ctx = Context(train=True, seed=seed, step=step)
        return to_numpy(layer.forward(s.inputs(), ctx)), ctx.seeds.drawn

    with global_generators(0) as moved:
        base, drawn = output(0, 0)
        if moved():
            raise AssertionError(f"it draws from the global generator of {moved()}. {ADVICE}")
    if not same_bits(output(0, 0)[0], base):
        raise AssertionError(
            "two training passes of one seed and step give different outputs: it draws from a "
            f"generator of its own, or keeps something of a pass. {ADVICE}"
        )
    others = {
        "seed": [(n, 0) for n in range(1, SEEDS)],
        "step": [(0, n) for n in range(1, SEEDS)],
    }
    for what, passes in others.items():
        varies = any(not same_bits(output(*each)[0], base) for each in passes)
        if drawn and not varies:
            raise AssertionError(f"what it draws does not depend on the {what}. {ADVICE}")
        if varies and not drawn:
            raise AssertionError(f"its output depends on the {what}, but it drew nothing. {ADVICE}")
    if s.batched and not drawn and not same_bits(to_numpy(layer(s.inputs())), base):
        raise AssertionError(
            "in training it computes something else than in inference, though it drew nothing "
            f"from ctx.seeds. {ADVICE}"
        )
