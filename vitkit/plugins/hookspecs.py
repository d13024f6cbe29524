"""The hooks a plugin may implement, each called once with ``register``.

What ships with vitkit enters through the same hooks (:mod:`vitkit.plugins.builtin`). Every name
must be a Python identifier, and be new: a clash is an error that names both plugins. Keywords
after the object say what vitkit cannot know by itself: ``example``, the arguments with which the
conformance kit makes one where the defaults do not do; ``torch``, a twin in PyTorch to compare
with; see :mod:`vitkit.testing`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import pluggy

API = 1
"""The version of these hooks; a plugin says in ``VITKIT_API`` which it was written for."""

hookspec = pluggy.HookspecMarker("vitkit")
hookimpl = pluggy.HookimplMarker("vitkit")

Register: TypeAlias = Callable[..., None]
"""``register(name, object, **details)``: make ``object`` known as ``name``."""


@hookspec
def register_activations(register: Register) -> Any:
    """Register activations: ``register("mish", mish, mish_backward, torch=None)``.

    A pair of element-wise functions, ``mish(x, *, xp) -> y`` and
    ``mish_backward(dy, x, *, xp) -> dx``. Used as ``ViT(activation="mish")``.
    """


@hookspec
def register_optimizers(register: Register) -> Any:
    """Register optimizers: ``register("muon", Muon, example=None, reference=None, torch=None)``.

    A subclass of :class:`vitkit.optim.Optimizer`, or a function that returns one; it takes
    ``lr``. Used as ``--set "optimizer=muon(lr=0.02)"``.
    """


@hookspec
def register_schedules(register: Register) -> Any:
    """Register schedules: ``register("cosine", Cosine, example=None)``.

    Called with ``lr`` and those of ``total_steps`` and ``warmup_steps`` that its parameters
    name, it returns ``schedule(step) -> lr``. Used as ``--set schedule=cosine``.
    """


@hookspec
def register_losses(register: Register) -> Any:
    """Register losses: ``register("focal", focal, torch=None, labels="classes")``.

    ``focal(logits, labels, *, xp) -> (loss, dlogits)``, the mean over the batch and its gradient.
    ``labels`` says what the kit tries it with: class indices, ``"targets"``, a number for each
    class, or ``"both"``. Used as ``--set train.loss=focal``.
    """


@hookspec
def register_datasets(register: Register) -> Any:
    """Register datasets: ``register("photos", photos, prepare=None, title="", example=None)``.

    A function that returns :class:`vitkit.data.Splits`. Its first argument is the path that the
    user gives, if it takes one at all; it also gets those of ``image_size``, ``in_channels``,
    ``seed`` and ``bad_files`` that its parameters name. ``prepare(folder, progress)`` brings or
    makes its files, for ``vitkit data prepare photos``, and returns the folder. Used as
    ``--dataset photos``.
    """


@hookspec
def register_layers(register: Register) -> Any:
    """Register layers: ``register("swiglu", SwiGLU, part=None, example=None, shape=None)``.

    A :class:`vitkit.nn.Module`. With ``part`` "mlp", "norm" or "attention" it can take that place
    in every block, made with the arguments of :class:`vitkit.nn.MLP`,
    :class:`vitkit.nn.LayerNorm` or :class:`vitkit.nn.Attention`, and is used as
    ``ViT(mlp="swiglu")``. Of other layers ``example`` says how the kit makes one, and ``shape``
    what one sample of its input looks like; ``batched=False`` that it mixes the samples of a
    batch on purpose. ``torch`` is a twin, as for activations.
    """


@hookspec
def register_transforms(register: Register) -> Any:
    """Register augmentations: ``register("cutout", Cutout, example=None)``.

    Called with the arguments of the configuration, it returns ``transform(image, rng) -> image``,
    uint8 (C, H, W) in and out. Used as ``--set "data.augment=['cutout(size=8)']"``.
    """


@hookspec
def register_callbacks(register: Register) -> Any:
    """Register callbacks: ``register("printer", Printer, example=None)``.

    A subclass of :class:`vitkit.train.callbacks.Callback`, made with the arguments of the
    configuration and those of ``model``, ``optimizer`` and ``folder`` that its parameters name.
    Used as ``--set "train.callbacks=['printer(every=2)']"``.
    """


@hookspec
def register_models(register: Register) -> Any:
    """Register sizes of a ViT: ``register("Mu", dim=128, depth=8, num_heads=4, mlp_dim=512)``.

    Other options of :class:`vitkit.ViT` may follow, as defaults that a user can override. Used
    with a patch side, as ``ViT("Mu/8")``.
    """


@hookspec
def register_kernels(register: Register) -> Any:
    """Register faster kernels: ``register("gelu", fast, backend="numpy", inputs=None)``.

    The name of an operation of :mod:`vitkit.ops`, and a function of exactly its signature, for
    the array module ``backend``. It may return ``NotImplemented``; then the kernel that ships
    answers, or the reference. ``inputs(rng, n, dtype) -> (args, kwargs)`` makes arguments for the
    kit, where it does not know the operation's. Used wherever the operation is.
    """


@hookspec
def register_commands(register: Register) -> Any:
    """Register commands: ``register("hello", hello)``.

    A function as typer takes it, or a ``typer.Typer`` with subcommands. Used as
    ``vitkit hello``.
    """
