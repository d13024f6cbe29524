"""The hooks a plugin may implement, each called once with ``register``.

What ships with vitkit enters through the same hooks (:mod:`vitkit.plugins.builtin`). Every name
must be a Python identifier, and be new: a clash is an error that names both plugins.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import pluggy

hookspec = pluggy.HookspecMarker("vitkit")
hookimpl = pluggy.HookimplMarker("vitkit")

Register: TypeAlias = Callable[..., None]
"""``register(name, object)``: make ``object`` known as ``name``."""


@hookspec
def register_activations(register: Register) -> Any:
    """Register activations: ``register("mish", mish, mish_backward)``, a pair of ops.

    ``mish(x, *, xp)`` and ``mish_backward(dy, x, *, xp)``.
    """


@hookspec
def register_optimizers(register: Register) -> Any:
    """Register optimizers: ``register("lion", Lion)``, a class made with ``lr=`` and others."""


@hookspec
def register_schedules(register: Register) -> Any:
    """Register schedules: ``register("cosine", Cosine)``.

    Called with ``lr`` and those of ``total_steps`` and ``warmup_steps`` that its parameters
    name, it returns ``schedule(step) -> lr``.
    """


@hookspec
def register_losses(register: Register) -> Any:
    """Register losses: ``register("focal", focal)``.

    ``focal(logits, labels, *, xp) -> (loss, dlogits)``, the mean over the batch and its gradient.
    """


@hookspec
def register_datasets(register: Register) -> Any:
    """Register datasets: ``register("mnist", mnist)``, a function that returns ``Splits``.

    Its first argument is the path that the user gives, if it takes one at all; it also gets
    those of ``image_size``, ``in_channels`` and ``seed`` that its parameters name.
    """


@hookspec
def register_transforms(register: Register) -> Any:
    """Register augmentations: ``register("crop", RandomCrop)``.

    Called with the arguments of the configuration, it returns ``transform(image, rng) -> image``.
    """
