"""Memory for parameters: one flat buffer for each decay group, in backward order.

An optimizer step, a gradient norm, zeroing and a reduction over processes are then a few
operations on big arrays instead of hundreds on small ones; and since the order is that of
backward, the gradients of a block are one contiguous slice, complete when its backward returns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vitkit.backend import Array, ArrayModule, philox

if TYPE_CHECKING:
    from vitkit.nn.parameter import Parameter


ALIGNMENT = 16  # numbers between which parameters begin: kernels read many at once, aligned


@dataclass(frozen=True, eq=False)
class FlatGroup:
    """The parameters with and without weight decay, each as one flat array.

    A parameter begins at a multiple of 16 numbers; between two there may be a few that stay zero.

    Attributes
    ----------
    decay : bool
        Whether weight decay applies to the group.
    values, grads : array, shape (size,)
        All values and all gradients; parameters are views of them.
    slices : dict of str to slice
        Where each parameter lies, by dotted name, in backward order.
    """

    decay: bool
    values: Array
    grads: Array
    slices: dict[str, slice]


def allocate(
    parameters: list[tuple[str, Parameter]], xp: ArrayModule, dtype: Any
) -> tuple[FlatGroup, ...]:
    """Make the buffers and point each parameter at its part; values and gradients are zero."""
    if dtype not in ("float32", "float64", np.float32, np.float64):
        raise ValueError(f"dtype must be 'float32' or 'float64'; got {dtype!r}.")
    dtype = np.dtype(dtype)
    groups = []
    for decay in (True, False):
        members = [(name, p) for name, p in parameters if p.decay is decay][::-1]
        size = sum(_whole(p.size) for _, p in members)
        values, grads = xp.zeros(size, dtype), xp.zeros(size, dtype)
        slices, start = {}, 0
        for name, parameter in members:
            part = slices[name] = slice(start, start + parameter.size)
            parameter.name = name
            parameter.value = values[part].reshape(parameter.shape)
            parameter.grad = grads[part].reshape(parameter.shape)
            start += _whole(parameter.size)
        if members:
            groups.append(FlatGroup(decay, values, grads, slices))
        for _, parameter in members:
            parameter.group = groups[-1]
    return tuple(groups)


def _whole(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def draw(parameter: Parameter, seed: int) -> np.ndarray:
    """Return a parameter's first values, float64 on the host, from the seed and its name."""
    return parameter.init(philox(seed, f"init {parameter.name}"), parameter.shape)
