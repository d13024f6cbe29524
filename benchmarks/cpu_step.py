"""A training step on the CPU: vitkit by its references, vitkit with its kernels, PyTorch eager.

The same model, batch, AdamW and clipping; the contenders take turns, and the ratio of each round
is what counts. Usage: python benchmarks/cpu_step.py [--rounds N] [--json FILE]
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

import vitkit
from vitkit.data import Batch
from vitkit.models import ViTConfig
from vitkit.train import Preprocess, train_step

MODELS = {
    "S": ({"variant": "Ti/4", "image_size": 32, "dim": 192, "depth": 6}, 64),
}


class TorchViT(nn.Module):
    """The same model of PyTorch's own layers."""

    def __init__(self, c: ViTConfig) -> None:
        super().__init__()
        self.patches = nn.Conv2d(c.in_channels, c.dim, c.patch_size, c.patch_size)
        self.cls = nn.Parameter(torch.zeros(1, 1, c.dim))
        self.pos = nn.Parameter(torch.randn(1, c.num_tokens, c.dim) * 0.02)
        layer = nn.TransformerEncoderLayer(
            c.dim, c.num_heads, c.mlp_dim, 0.0, _gelu_tanh, c.layer_norm_eps, True, True
        )
        self.blocks = nn.TransformerEncoder(layer, c.depth, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(c.dim, c.layer_norm_eps)
        self.head = nn.Linear(c.dim, c.num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.pos
        return self.head(self.norm(self.blocks(x))[:, 0])


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return nn.functional.gelu(x, approximate="tanh")


def contenders(options: dict, batch_size: int) -> dict[str, Callable[[], None]]:
    """Return a function for each contender that makes one step."""
    model = vitkit.ViT(**options, num_classes=10, activation="gelu_tanh")
    c = model.config
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch_size, c.in_channels, *c.image_size), np.uint8)
    labels = rng.integers(0, 10, batch_size)
    batch = Batch(images, labels, np.arange(batch_size), 0)
    preprocess = Preprocess(255.0, (0.5,) * c.in_channels, (0.5,) * c.in_channels)
    optimizer = vitkit.optim.AdamW(1e-3).attach(model)

    def kernels() -> None:
        train_step(
            model, optimizer, [batch], vitkit.ops.softmax_cross_entropy, preprocess,
            lr=1e-3, seed=0, step=0, max_grad_norm=1.0,
        )  # fmt: skip

    def references() -> None:
        with vitkit.ops.reference_only():
            kernels()

    twin = TorchViT(c)
    pixels, targets = torch.from_numpy(images), torch.from_numpy(labels)
    adamw = torch.optim.AdamW(twin.parameters(), 1e-3, fused=True)

    def eager() -> None:
        logits = twin((pixels.float() / 255 - 0.5) / 0.5)
        loss = nn.functional.cross_entropy(logits, targets)
        adamw.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        adamw.step()

    return {"torch": eager, "kernels": kernels, "references": references}


def race(entries: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Let the contenders take turns; return seconds of each round, the first left out."""
    times: dict[str, list[float]] = {name: [] for name in entries}
    for turn in range(rounds + 1):
        for name, step in entries.items():
            started = time.perf_counter()
            step()
            if turn:
                times[name].append(time.perf_counter() - started)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = {}
    for name, (options, batch_size) in MODELS.items():
        times = race(contenders(options, batch_size), arguments.rounds)
        found[name] = {
            who: {
                "median_ms": statistics.median(own) * 1e3,
                "torch_over_this": statistics.median(
                    t / o for t, o in zip(times["torch"], own, strict=True)
                ),
            }
            for who, own in times.items()
        }
        print(f"{name}, batch {batch_size}, median of {arguments.rounds} rounds")
        for who, row in found[name].items():
            ratio = f"torch / this {row['torch_over_this']:5.2f}"
            print(f"  {who:<11}{row['median_ms']:9.1f} ms   {ratio}")
    versions = {
        "vitkit": vitkit.__version__,
        "numpy": np.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }
    if arguments.json:
        arguments.json.write_text(json.dumps({"versions": versions, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
