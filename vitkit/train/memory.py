"""What training keeps in memory, and what to do where that is too much."""

from __future__ import annotations

import traceback
from collections.abc import Sequence

from vitkit.backend import memory_left, release_memory
from vitkit.data import Batch
from vitkit.errors import BackendError, first_line
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
    groups = model.groups
    state = len(optimizer.slots) * sum(group.values.nbytes for group in groups)
    return {
        "weights": sum(group.values.nbytes for group in groups),
        "gradients": sum(group.grads.nbytes for group in groups),
        "optimizer": state,
    }


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
    traceback.clear_frames(error.__traceback__)
    release_memory(model.xp)
    sizes = [len(batch) for batch in batches]
    images = f"{sum(sizes)} images"
    if len(sizes) > 1:
        images += f", {max(sizes)} at a time"
    held = ", ".join(f"{what} {shown(size)}" for what, size in ledger(model, optimizer).items())
    free = memory_left(model.xp)
    room = "" if free is None else f" {shown(free[0])} of {shown(free[1])} are free without it."
    return BackendError(
        f"Out of memory in a training step of {images}: {first_line(error)}. Before the step there "
        f"are at least {held}; the rest grows with the batch.{room} {_advice(model, max(sizes))}"
    )


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


def shown(size: int) -> str:
    """Return a number of bytes for people."""
    for unit, name in UNITS:
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} bytes"
