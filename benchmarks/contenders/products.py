"""The matrix products of one block and nothing else: what a step could reach at best.

Every output is there already and stays; between the products nothing happens. Forward that is
``y = x W^T`` for four weights; training adds ``dx = dy W`` and ``dW = dy^T x`` for each.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from contenders import task
from contenders.serve import Work, timed

Product = tuple[str, Any, Any, Any]
"""A name, two factors and where their product goes."""


def prepare(mode: str, order: task.Order) -> Work:
    """Return the products of a block, in float32 by NumPy or PyTorch or in bfloat16 by PyTorch."""
    convert, multiply = numpy_means() if mode == "numpy" else torch_means(mode == "torch_bf16")
    made = products(order.sizes, order.task == "train", convert)

    def run() -> None:
        for _, left, right, out in made:
            multiply(left, right, out)

    def profile() -> dict[str, float]:
        return {name: 1e3 * timed(partial(multiply, *three))[0] for name, *three in made}

    return Work(run, lambda result: [], profile, {"flop": sum(map(flop, made))})


def shapes(c: task.Configuration) -> dict[str, tuple[int, int]]:
    """Return the weights of a block, (out, in)."""
    return {
        "qkv": (3 * c.dim, c.dim),
        "proj": (c.dim, c.dim),
        "fc1": (c.mlp_dim, c.dim),
        "fc2": (c.dim, c.mlp_dim),
    }


def products(c: task.Configuration, train: bool, convert: Callable[..., Any]) -> list[Product]:
    """Return the products of a forward pass, and those of the backward pass."""
    rng, rows = np.random.default_rng(0), c.batch_size * c.tokens
    made = []
    for name, (outputs, inputs) in shapes(c).items():
        x, weight, dy = (
            convert(rng.standard_normal(shape, np.float32))
            for shape in ((rows, inputs), (outputs, inputs), (rows, outputs))
        )
        out = {shape: convert(np.zeros(shape, np.float32)) for shape in (dy.shape, x.shape)}
        made.append((f"{name} y", x, weight.T, out[dy.shape]))
        if train:
            dweight = convert(np.zeros((outputs, inputs), np.float32))
            made.append((f"{name} dx", dy, weight, out[x.shape]))
            made.append((f"{name} dW", dy.T, x, dweight))
    return made


def flop(product: Product) -> int:
    """Return the operations of a product, two for each multiply-add."""
    _, left, right, _ = product
    return 2 * left.shape[0] * left.shape[1] * right.shape[1]


def numpy_means() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return how NumPy takes an array, and how it multiplies two."""
    return np.ascontiguousarray, lambda left, right, out: np.matmul(left, right, out=out)


def torch_means(half: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return how PyTorch takes an array, and how it multiplies two."""
    import torch

    dtype = torch.bfloat16 if half else torch.float32
    return (
        lambda array: torch.from_numpy(array).to(dtype),
        lambda left, right, out: torch.mm(left, right, out=out),
    )
