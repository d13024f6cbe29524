"""What ships with vitkit, registered through the same hooks that plugins use.

This is the only module that names all built-ins; the commands are named in ``vitkit.cli``.
Kernels that ship are not here: they load with the first model placed on their array module, since
compiling or even importing them takes time, and a plugin's are asked before them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vitkit import ops, optim
from vitkit.data.cifar import cifar10, cifar100
from vitkit.data.digits import digits
from vitkit.data.folder import folder
from vitkit.data.mnist import fashion_mnist, mnist
from vitkit.data.npz import npz
from vitkit.data.transforms import HorizontalFlip, RandomAffine, RandomCrop
from vitkit.models import MODELS
from vitkit.nn import ACTIVATIONS, LAYERS
from vitkit.plugins.hookspecs import Register, hookimpl
from vitkit.registry import BUILTIN
from vitkit.train.callbacks import EarlyStopping

TWINS: dict[str, Callable[[Any], Any]] = {
    "gelu": lambda torch: torch.nn.functional.gelu,
    "gelu_tanh": lambda torch: lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "relu": lambda torch: torch.relu,
    "silu": lambda torch: torch.nn.functional.silu,
    "quick_gelu": lambda torch: lambda x: x * torch.sigmoid(1.702 * x),
    "tanh": lambda torch: torch.tanh,
}
"""PyTorch's spellings of the activations."""


@hookimpl
def register_activations(register: Register) -> None:
    """Register the activations of the MLP, each with its backward."""
    for entry in ACTIVATIONS.entries():
        if entry.plugin == BUILTIN:
            register(entry.name, *entry.value, torch=TWINS.get(entry.name))


@hookimpl
def register_optimizers(register: Register) -> None:
    """Register the optimizers."""
    register("sgd", optim.SGD, torch=lambda torch, params, lr: torch.optim.SGD(params, lr=lr))
    register("adam", optim.Adam, torch=lambda torch, params, lr: torch.optim.Adam(params, lr=lr))
    register("adamw", optim.AdamW, torch=lambda torch, params, lr: torch.optim.AdamW(params, lr=lr))
    register("lamb", optim.LAMB)
    register("lion", optim.Lion)


@hookimpl
def register_schedules(register: Register) -> None:
    """Register the learning-rate schedules."""
    register("constant", optim.Constant)
    register("cosine", optim.Cosine)
    register("linear", optim.Linear)
    register("rsqrt", optim.Rsqrt)
    register("step", optim.Step, example={"milestones": (30, 60)})


@hookimpl
def register_losses(register: Register) -> None:
    """Register the losses."""
    register(
        "softmax_cross_entropy",
        ops.softmax_cross_entropy,
        torch=lambda torch: torch.nn.functional.cross_entropy,
    )
    register("sigmoid_bce", ops.sigmoid_bce)
    register("mean_squared_error", ops.mean_squared_error)


@hookimpl
def register_datasets(register: Register) -> None:
    """Register the datasets."""
    register("digits", digits)
    register("mnist", mnist)
    register("fashion_mnist", fashion_mnist)
    register("cifar10", cifar10)
    register("cifar100", cifar100)
    register("folder", folder)
    register("npz", npz)


@hookimpl
def register_transforms(register: Register) -> None:
    """Register the augmentations."""
    register("crop", RandomCrop, example={"padding": 2})
    register("flip", HorizontalFlip)
    register("affine", RandomAffine, example={"degrees": 10.0, "translate": 0.1})


@hookimpl
def register_callbacks(register: Register) -> None:
    """Register the callback that a configuration may name; the others have settings."""
    register("early_stopping", EarlyStopping)


@hookimpl
def register_layers(register: Register) -> None:
    """Register what can stand in a block."""
    for entry in LAYERS.entries():
        if entry.plugin == BUILTIN:
            register(entry.name, entry.value, **entry.details)


@hookimpl
def register_models(register: Register) -> None:
    """Register the sizes of the papers."""
    for entry in MODELS.entries():
        if entry.plugin == BUILTIN:
            register(entry.name, entry.value)
