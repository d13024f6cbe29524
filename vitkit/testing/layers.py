"""What every layer must do; each check's message names the fault it found."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from vitkit.backend import ArrayModule
from vitkit.nn.module import Module
from vitkit.testing.check import Check, run_checks
from vitkit.testing.parts import (
    layer_arrays,
    layer_context,
    layer_gradients,
    layer_making,
    layer_random,
)
from vitkit.testing.parts.array_modules import DEVICES
from vitkit.testing.parts.layer_devices import no_host_sync, same_on
from vitkit.testing.parts.passes import Subject
from vitkit.testing.parts.staged import staged


def check_layer(
    make: Callable[..., Module],
    shape: tuple[int, ...],
    *,
    torch: Callable[[Any], Any] | None = None,
    batched: bool = True,
) -> None:
    """Check that a layer keeps the contract of :class:`vitkit.nn.Module`.

    Parameters
    ----------
    make : callable
        ``make(**kw)`` returns the layer; ``kw`` may hold ``xp``. The class itself where it can
        be made without arguments, else ``lambda **kw: SwiGLU(8, 12, **kw)``.
    shape : tuple of int
        The shape of one sample of its input, such as ``(tokens, width)``.
    torch : callable, optional
        ``torch(torch)`` returns the PyTorch module that computes the same, with parameters of
        the same names and shapes. Not compared where PyTorch is not installed.
    batched : bool, default True
        Whether each sample of a batch is computed alone. False for a layer that mixes them on
        purpose, as batch normalization does.

    Raises
    ------
    ConformanceError
        Listing every check that failed, and what is wrong.
    """
    run_checks(_title(make), layer_checks(make, shape, torch=torch, batched=batched))


def layer_checks(
    make: Callable[..., Module],
    shape: tuple[int, ...],
    *,
    torch: Callable[[Any], Any] | None = None,
    batched: bool = True,
    xp: ArrayModule = np,
) -> list[Check]:
    """Return the checks of :func:`check_layer`, not run yet.

    Parameters
    ----------
    make, shape, torch, batched
        As there.
    xp : module, default numpy
        What the layer is checked on. Devices are compared with NumPy whatever it is.

    Returns
    -------
    list of Check
        If the first two fail, the others have nothing to stand on and are skipped.
    """
    checks = CHECKS | (BATCHED if batched else {})
    checks |= {f"same on {name}": partial(same_on, name=name) for name in DEVICES}
    if torch is not None:
        checks["PyTorch twin"] = layer_gradients.agrees_with_torch
    subject = Subject(make, tuple(shape), xp, torch, batched)
    listed = [Check(name, partial(check, subject)) for name, check in checks.items()]
    return staged(listed[:2], listed[2:])


def _title(make: Callable[..., Module]) -> str:
    try:
        return f"layer {type(make()).__name__}"
    except Exception:  # a check will say which
        return "layer"


CHECKS: dict[str, Callable[[Subject], None]] = {
    "is a layer": layer_making.is_a_layer,
    "shapes": layer_arrays.shapes,
    "dtype": layer_arrays.dtype_is_kept,
    "gradient": layer_gradients.gradient,
    "gradient in inference": layer_gradients.gradient_in_inference,
    "used twice": layer_gradients.used_twice,
    "gradients add up": layer_gradients.gradients_add_up,
    "every parameter learns": layer_gradients.every_parameter_learns,
    "context is empty after backward": layer_context.context_is_empty,
    "backward order": layer_context.backward_order,
    "nothing kept on self": layer_context.nothing_kept_on_self,
    "nothing kept in inference": layer_context.nothing_kept_in_inference,
    "kept arrays are freed": layer_context.kept_arrays_are_freed,
    "checkpointed": layer_context.checkpointed,
    "inference is deterministic": layer_random.inference_is_deterministic,
    "draws by seed and step": layer_random.draws_by_seed_and_step,
    "usable alone": layer_making.usable_alone,
    "xp is the last keyword": layer_making.xp_is_the_last_keyword,
    "not placed": layer_making.not_placed,
    "state round trip": layer_making.state_round_trip,
    "input is not modified": layer_arrays.input_is_not_modified,
    "batches of one to three": lambda s: layer_arrays.batch_of(s, 1, 2, 3),
    "extreme inputs": layer_arrays.extreme_inputs,
    "another width": layer_arrays.another_width,
    "no host sync": no_host_sync,
}
BATCHED: dict[str, Callable[[Subject], None]] = {
    "batch of none": lambda s: layer_arrays.batch_of(s, 0),
    "samples are independent": layer_arrays.samples_are_independent,
}
"""Where samples are computed alone: what mixes them cannot mix none."""
