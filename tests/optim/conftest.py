"""A small model with the parameter names of a ViT, and gradients to feed it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vitkit.backend import ArrayModule, philox
from vitkit.nn.module import Module
from vitkit.nn.parameter import Parameter


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape)


class Layer(Module):
    """A weight matrix and a bias: as much of a layer as an optimizer sees."""

    def __init__(self, rows: int, columns: int) -> None:
        self.weight = Parameter((rows, columns), normal)
        self.bias = Parameter((rows,), normal, decay=False)


class TinyViT(Module):
    """The names of a ViT of depth 2."""

    def __init__(self) -> None:
        self.cls_token = Parameter((1, 1, 4), normal, decay=False)
        self.pos_embed = Parameter((1, 3, 4), normal, decay=False)
        self.patch_embed = Layer(4, 5)
        self.blocks = [Layer(4, 4), Layer(4, 4)]
        self.norm = Layer(4, 1)
        self.head = Layer(3, 4)


@pytest.fixture
def make_model(xp: ArrayModule) -> Callable[..., Module]:
    """Return a function that places a new model, always with the same weights."""

    def make(dtype: str = "float64", xp: ArrayModule = xp) -> Module:
        return TinyViT().place(xp, seed=3, dtype=dtype)

    return make


@pytest.fixture
def set_gradients() -> Callable[[Module, int], dict[str, np.ndarray]]:
    """Return a function that fills a model's gradients with the random ones of a step."""

    def fill(model: Module, step: int) -> dict[str, np.ndarray]:
        chosen = {}
        for name, parameter in model.named_parameters():
            draw = philox(0, f"gradient of {name}", step).standard_normal(parameter.shape)
            chosen[name] = draw.astype(parameter.value.dtype)
            parameter.grad[...] = model.xp.asarray(chosen[name])
        return chosen

    return fill


@pytest.fixture
def torch() -> Any:
    """Return PyTorch; skip where it is not installed."""
    return pytest.importorskip("torch", reason="PyTorch, which values are compared to, is missing")


@pytest.fixture
def to_torch(torch: Any) -> Callable[[Module], dict[str, Any]]:
    """Return a function that copies a model's weights to torch parameters, by name."""

    def copy(model: Module) -> dict[str, Any]:
        return {
            name: torch.nn.Parameter(torch.from_numpy(value))
            for name, value in model.state_dict().items()
        }

    return copy
