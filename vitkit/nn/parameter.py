"""A learned array: declared by its shape, given memory when its model is placed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from vitkit.backend import Array
from vitkit.nn.init import Initializer

if TYPE_CHECKING:
    from vitkit.nn.place import FlatGroup


class Parameter:
    """A named array that is learned: declared by its shape, given memory by ``Module.place``.

    Parameters
    ----------
    shape : tuple of int
        The array's shape.
    init : callable
        ``init(rng, shape)`` returns the first values, as NumPy array.
    decay : bool, default True
        Whether weight decay applies to it.

    Attributes
    ----------
    value, grad : array
        The array and its gradient, views of flat buffers.
    name : str
        The dotted name in the model it is part of.

    Raises
    ------
    RuntimeError
        If value or gradient is asked for before a model or layer has been placed.
    """

    value: Array
    grad: Array

    def __init__(self, shape: tuple[int, ...], init: Initializer, *, decay: bool = True) -> None:
        self.shape = tuple(shape)
        self.init = init
        self.decay = decay
        self.name = ""
        self.group: FlatGroup | None = None  # whose buffers they are views of

    def __getattr__(self, name: str) -> Array:
        """Be asked for what is not there: the arrays, before placing."""
        if name not in ("value", "grad"):
            raise AttributeError(f"a Parameter has no attribute {name!r}")
        raise RuntimeError(
            f"Parameter {self.name or self.shape} has no arrays yet: pass xp= when making the "
            "layer, or call place(xp) on the model it is part of."
        )

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    def add_grad(self, grad: Array) -> None:
        """Accumulate ``grad``; a layer used twice contributes twice."""
        self.grad += grad

    def misfit(self, array: Array) -> str:
        """Return why ``array`` cannot be this parameter's value, or nothing."""
        shape, dtype = getattr(array, "shape", None), getattr(array, "dtype", None)
        if shape is None or dtype is None:
            return f"{type(array).__name__}, expected an array of shape {self.shape}"
        if tuple(shape) != self.shape:
            return f"shape {tuple(shape)}, expected {self.shape}"
        return "" if dtype.kind in "fiu" else f"dtype {dtype}, expected real numbers"

    def __deepcopy__(self, memo: dict[int, Any]) -> Parameter:
        """Return the declaration alone: memory comes from the copied model's own ``place``."""
        return Parameter(self.shape, self.init, decay=self.decay)

    def __repr__(self) -> str:
        dtype = self.value.dtype if self.group else "not placed"
        return f"Parameter({self.name or 'unnamed'}, {self.shape}, {dtype})"
