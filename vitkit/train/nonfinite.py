"""Steps whose loss or gradient is not finite: judged before they have changed anything.

On the host each step is judged, which costs a millisecond or two for five million numbers. A
device is not waited for: there a step may be left out by the device itself, and the run is judged
when its sums are read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from vitkit.backend import Array, ArrayModule
from vitkit.errors import ConfigError, suggestion
from vitkit.nn.place import FlatGroup
from vitkit.ops import global_norm

POLICIES = ("raise", "skip", "stop")
"""What may be done about a step that is not finite: raise, leave it out, or end the run."""


class NotFinite(ArithmeticError):
    """A step is not finite, and has touched nothing: the run is as it was before it.

    No FloatingPointError, which tells callbacks that what the run has reached must not be kept.
    """


def check_policy(policy: str) -> str:
    """Return a policy that there is.

    Raises
    ------
    ConfigError
        If there is none of that name.
    """
    if policy not in POLICIES:
        raise ConfigError(
            f"nonfinite: got {policy!r}, expected {', '.join(POLICIES[:-1])} or {POLICIES[-1]}"
            f"{suggestion(policy, POLICIES) or '.'}"
        )
    return policy


def finite_gradients(groups: Sequence[FlatGroup], *, xp: ArrayModule) -> Array:
    """Return whether every gradient is finite, as an array of shape () on the device."""
    found = xp.ones((), "bool")
    for group in groups:
        found &= xp.isfinite(group.grads).all()
    return found


def judge(
    loss: Array, groups: Sequence[FlatGroup], *, clips: bool, xp: ArrayModule
) -> tuple[str, Array | None]:
    """Return what of a step is not finite, and the norm of its gradients where they are clipped.

    Parameters
    ----------
    loss : array, shape ()
        The step's loss, on the host.
    groups : sequence of FlatGroup
        The model's ``groups``.
    clips : bool
        Whether the norm is needed, which is then looked at in place of the gradients.
    xp : module
        The array module, one on the host.

    Returns
    -------
    problem : str
        Empty where all is finite.
    norm : array, shape (), or None
        The global norm. Where finite gradients have squares that are not, it is summed in
        float64, so that clipping leaves their direction.
    """
    if not math.isfinite(loss):
        return f"The training loss is not finite ({float(loss)})", None
    grads = [group.grads for group in groups]
    norm = global_norm(grads, xp=xp) if clips else None
    if norm is not None and math.isfinite(norm):
        return "", norm
    name, value = next(_not_finite(groups), ("", 0.0))
    if name:
        return f"A gradient is not finite (that of {name} has {value})", None
    return "", None if norm is None else _norm_in_float64(grads)


def _not_finite(groups: Sequence[FlatGroup]) -> Any:
    """Yield the name of each parameter whose gradient is not finite, and the first such number."""
    for group in groups:
        if np.isfinite(group.grads).all():
            continue
        for name, part in reversed(group.slices.items()):  # as the model's forward has them
            if not (finite := np.isfinite(group.grads[part])).all():
                yield name, group.grads[part][np.argmin(finite)]


def _norm_in_float64(grads: Sequence[Array]) -> Array:
    """Return the norm of gradients of which some have squares beyond their own dtype."""
    largest = max(float(np.abs(grad).max(initial=0)) for grad in grads)
    parts = [np.square(grad.astype("float64") / largest).sum() for grad in grads]
    return np.asarray(largest * math.sqrt(sum(parts)))
