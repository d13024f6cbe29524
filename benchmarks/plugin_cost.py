"""What it costs a training step that a part comes from a plugin.

The same model four ways: all built in, twice (the second shows what noise alone does), with an
activation and with an optimizer that a plugin brings. The plugin's are built as a plugin author
builds them, from public pieces, and do the arithmetic of the built-in ones. They are made by
name, as `vitkit train` makes them. The contenders take turns in an order that is drawn anew for
each round, and the ratio of each round is what counts.
Usage: python benchmarks/plugin_cost.py [--rounds N] [--json FILE]
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import vitkit
from vitkit.config.build import build
from vitkit.config.load import load
from vitkit.data import Splits, digits
from vitkit.nn import ACTIVATIONS
from vitkit.optim import AdamW
from vitkit.plugins import registries
from vitkit.train import Preprocess, train_step

MODELS = {
    "tiny": ["model.variant=Ti/2", "model.dim=32", "model.depth=2", "train.batch_size=32"],
    "digits": ["train.batch_size=64"],
}
"""The smaller the model, the more a fixed cost weighs; the second is the shipped recipe's."""


def bend(x, *, xp):
    """Return the tanh GELU of ``x``, as a plugin would call what it builds on."""
    return vitkit.ops.gelu_tanh(x, xp=xp)


def bend_backward(dy, x, *, xp):
    return vitkit.ops.gelu_tanh_backward(dy, x, xp=xp)


class Pluggable(AdamW):
    """AdamW under another name, its update called through the plugin's own method."""

    def update(self, w, g, m, v, **given):
        super().update(w, g, m, v, **given)


class Plugin:
    """What a package would register."""

    @vitkit.hookimpl
    def register_activations(self, register):
        register("bend", bend, bend_backward)

    @vitkit.hookimpl
    def register_optimizers(self, register):
        register("pluggable", Pluggable)


def stepper(settings: list[str], data: Splits) -> Callable[[], None]:
    """Return a function that makes one step of the run that the settings describe."""
    config = load([], ["backend=numpy", "data.augment=[]", *settings], environ={})
    parts = build(config, registries(), data)
    batch = next(iter(parts.train.batches(0)))
    preprocess = Preprocess.of(data.train)

    def step() -> None:
        train_step(
            parts.model, parts.optimizer, [batch], parts.loss, preprocess,
            lr=1e-3, seed=0, step=0, max_grad_norm=1.0,
        )  # fmt: skip

    return step


def race(
    entries: dict[str, Callable[[], None]], rounds: int, repeat: int
) -> dict[str, list[float]]:
    """Let the contenders take turns; return seconds a step of each round, the first left out."""
    order, rng = list(entries), np.random.default_rng(0)
    times: dict[str, list[float]] = {name: [] for name in entries}
    for turn in range(rounds + 1):
        for name in rng.permutation(order):
            started = time.perf_counter()
            for _ in range(repeat):
                entries[name]()
            if turn:
                times[name].append((time.perf_counter() - started) / repeat)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    vitkit.plugins.load(Plugin())
    assert "bend" in ACTIVATIONS
    data, found = digits(), {}
    for name, settings in MODELS.items():
        same = [*settings, "optimizer=adamw", "model.activation=gelu_tanh"]
        entries = {
            "built in": stepper(same, data),
            "built in, again": stepper(same, data),
            "activation of a plugin": stepper([*same[:-1], "model.activation=bend"], data),
            "optimizer of a plugin": stepper([*settings, "optimizer=pluggable", same[-1]], data),
        }
        times = race(entries, arguments.rounds, repeat=20 if name == "tiny" else 3)
        first = times["built in"]
        found[name] = {
            who: {
                "median_ms": statistics.median(own) * 1e3,
                "this_over_built_in": statistics.median(
                    t / b for t, b in zip(own, first, strict=True)
                ),
            }
            for who, own in times.items()
        }
        print(f"{name}, median of {arguments.rounds} rounds")
        for who, row in found[name].items():
            print(f"  {who:<24}{row['median_ms']:9.3f} ms   {row['this_over_built_in']:6.4f}")
    versions = {
        "vitkit": vitkit.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "OPENBLAS_NUM_THREADS": os.environ.get("OPENBLAS_NUM_THREADS", "not set"),
    }
    if arguments.json:
        arguments.json.write_text(json.dumps({"versions": versions, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
