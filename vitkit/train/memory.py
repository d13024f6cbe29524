"""What training keeps in memory, and what to do where that is too much."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from vitkit.backend import memory_left, release_memory
from vitkit.data import Batch
from vitkit.errors import BackendError, first_line
from vitkit.models import ViT, ViTConfig
from vitkit.nn.block import ROWS
from vitkit.nn.context import Context
from vitkit.nn.module import Module
from vitkit.optim import Optimizer

UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def ledger(model: Module, optimizer: Optimizer) -> dict[str, int]:
    """Return the bytes that training holds whatever the batch, by what they are for.

    Parameters
    ----------
    model : Module
        The model, placed.
    optimizer : Optimizer
        The optimizer, attached to it.
    """
    sizes = _of_model(model)
    return {**sizes, "optimizer": len(optimizer.slots) * sizes["weights"]}


def _of_model(model: Module) -> dict[str, int]:
    """Return the bytes that a placed model holds, by what they are for."""
    return {
        "weights": sum(group.values.nbytes for group in model.groups),
        "gradients": sum(group.grads.nbytes for group in model.groups),
    }


def forecast(
    config: ViTConfig, optimizer: Optimizer, batch_size: int, *, dtype: str = "float32"
) -> dict[str, int]:
    """Return the bytes that training is about to hold, by what they are for.

    What a block keeps for backward is measured on some images and models of one and two blocks, and
    multiplied; a device's kernels may keep less.

    Parameters
    ----------
    config : ViTConfig
        The model's sizes.
    optimizer : Optimizer
        The optimizer; it need not be attached.
    batch_size : int
        Images at once.
    dtype : str, default "float32"
        What weights are.
    """
    size = np.dtype(dtype).itemsize
    weights = size * ViT(config, backend=None).num_parameters
    one, two = (_kept(config, blocks, batch_size, dtype) for blocks in (1, 2))
    block = two - one
    kept = one - block + config.depth * block
    if config.gradient_checkpointing:  # inputs of blocks, and the one that is computed again
        first, second = (
            _kept(config, blocks, batch_size, dtype, checkpointing=True) for blocks in (1, 2)
        )
        kept = 2 * first - second + config.depth * (second - first) + block
    return {
        "weights": weights,
        "gradients": weights,
        "optimizer": len(optimizer.slots) * weights,
        "activations": kept,
    }


def _kept(
    config: ViTConfig, depth: int, batch_size: int, dtype: str, *, checkpointing: bool = False
) -> int:
    """Return the bytes that a model of few blocks keeps of a batch for backward.

    The last block may make no more than :data:`~vitkit.nn.block.ROWS` tokens of the whole batch.
    """
    changed = {"depth": depth, "gradient_checkpointing": checkpointing}
    small = ViTConfig.from_dict({**config.to_dict(), **changed})
    model = ViT(small, seed=None, dtype=dtype)

    def kept(images: int) -> int:
        ctx = Context(train=True)
        model.forward(np.zeros((images, config.in_channels, *config.image_size), dtype), ctx)
        return ctx.nbytes

    if config.num_tokens < ROWS:
        images = min(batch_size, ROWS)
        return kept(images) * batch_size // images
    one, two = kept(1), kept(2)
    each, rows = two - one, 2 * one - two  # the latter of ROWS tokens
    return each * batch_size + rows * -(-ROWS // batch_size) * batch_size // ROWS


def host_memory_left() -> int | None:
    """Return how many bytes of the host's memory are free for this process, where it is known."""
    found = []
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            found.append(1024 * int(line.split()[1]))
    limit, used = (_read(f"/sys/fs/cgroup/memory.{name}").strip() for name in ("max", "current"))
    if limit.isdecimal() and used.isdecimal():  # "max" is no limit
        found.append(max(0, int(limit) - int(used)))
    return min(found, default=None)


def _read(path: str) -> str:
    """Return what a small file of the system says; nothing where there is none."""
    try:
        return Path(path).read_text("ascii")
    except OSError:
        return ""


def too_little(
    error: MemoryError, model: Module, optimizer: Optimizer, batches: Sequence[Batch]
) -> BackendError:
    """Return the error to raise where a step found too little memory, and let go of what it held.

    Parameters
    ----------
    error : MemoryError
        What the array module raised; the arrays of its frames are let go of.
    model, optimizer : Module, Optimizer
        Those of the step.
    batches : sequence of Batch
        Its images.
    """
    _let_go(error, model)
    sizes = [len(batch) for batch in batches]
    images = f"{sum(sizes)} images"
    if len(sizes) > 1:
        images += f", {max(sizes)} at a time"
    return BackendError(
        f"Out of memory in a training step of {images}: {first_line(error)}. Before the step there "
        f"are at least {_listed(ledger(model, optimizer))}; the rest grows with the batch."
        f"{_room(model)} {_advice(model, max(sizes))}"
    )


@contextmanager
def memory_for(doing: str, images: int, model: Module) -> Iterator[None]:
    """Say how much there is and what to do where a forward finds too little memory.

    Parameters
    ----------
    doing : str
        What the forward is for, such as "evaluating".
    images : int
        How many images the model sees at once.
    model : Module
        The model.

    Raises
    ------
    BackendError
        In place of a MemoryError; the arrays of its frames are let go of.
    """
    try:
        yield
    except MemoryError as error:
        _let_go(error, model)
        raise BackendError(
            f"Out of memory {doing} {images} image{'s' * (images != 1)} at once: "
            f"{first_line(error)}. Before that there are at least {_listed(_of_model(model))}; the "
            f"rest grows with the images.{_room(model)} {_advice_without_training(model, images)}"
        ) from None


def _let_go(error: MemoryError, model: Module) -> None:
    """Free what the frames of an error hold."""
    traceback.clear_frames(error.__traceback__)
    release_memory(model.xp)


def _listed(sizes: dict[str, int]) -> str:
    """Return bytes by what they are for, in words."""
    return ", ".join(f"{what} {shown(size)}" for what, size in sizes.items())


def _room(model: Module) -> str:
    """Return how much is free, where that is known, as a sentence after a space."""
    free = memory_left(model.xp)
    return "" if free is None else f" {shown(free[0])} of {shown(free[1])} are free without it."


def _advice(model: Module, size: int) -> str:
    """Return what may help a step of batches of this size."""
    ways = ["have activations computed again (gradient_checkpointing)"]
    if size > 1:
        ways.insert(
            0, f"take batch_size={size // 2} and twice the grad_accum, which teach the same"
        )
    if model.precision in ("float32", "tf32"):
        ways.append("keep them in half the memory (precision='bfloat16')")
    return f"To need less: {'; or '.join(ways)}."


def _advice_without_training(model: Module, size: int) -> str:
    """Return what may help a model that sees this many images and does not learn."""
    ways = [f"take batch_size={size // 2}, with which the results are the same"] * (size > 1)
    if model.precision in ("float32", "tf32"):
        ways.append("compute in half the memory (precision='bfloat16')")
    ways.append("end what else uses this device's memory")
    return f"To need less: {'; or '.join(ways)}."


def shown(size: int) -> str:
    """Return a number of bytes for people."""
    for unit, name in UNITS:
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} bytes"
