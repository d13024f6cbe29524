"""Arrays laid out like a model's parameters: what an optimizer or an average keeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from vitkit.backend import Array, to_numpy
from vitkit.nn.module import Module

LISTED = 10  # how many problems an error shows; a large model can have hundreds


class FlatState:
    """Zeros in the layout of a model's flat groups, read and written by parameter name.

    Parameters
    ----------
    model : Module
        A placed model. Its groups are held, so a later ``place`` or ``to`` is noticed.
    slots : tuple of str
        How many arrays are kept for each parameter, and how they are called: slot ``"m"`` of the
        parameter ``"head.weight"`` is ``"head.weight.m"``, slot ``""`` is ``"head.weight"``.

    Attributes
    ----------
    buffers : dict of str to tuple of array
        For each slot, one flat array for each group of the model.

    Raises
    ------
    RuntimeError
        If the model has not been placed, or a part of it was replaced since.
    """

    def __init__(self, model: Module, slots: tuple[str, ...]) -> None:
        self.model, self.groups, self.xp = model, model.flat_groups(), model.xp
        self.shapes = {name: p.shape for name, p in model.named_parameters()}
        self.buffers: dict[str, tuple[Array, ...]] = {
            slot: tuple(self.xp.zeros_like(group.values) for group in self.groups) for slot in slots
        }

    @property
    def stale(self) -> bool:
        """Whether the model has been placed anew and its parameters lie elsewhere."""
        return self.model.groups is not self.groups

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return a copy of every array on the host, by name, in its parameter's shape."""
        arrays = {}
        for slot, buffers in self.buffers.items():
            for group, buffer in zip(self.groups, buffers, strict=True):
                host = to_numpy(buffer)  # one transfer for all parameters of the group
                for name, part in group.slices.items():
                    arrays[_key(name, slot)] = host[part].reshape(self.shapes[name]).copy()
        return arrays

    def load_state_dict(self, arrays: Mapping[str, Array], *, counter: str) -> int:
        """Copy every array in, and return the whole number stored as ``counter``.

        Raises
        ------
        ValueError
            Listing every name that is missing, unexpected or of another shape; nothing has
            changed then.
        """
        own = {key: (view, shape) for key, view, shape in self._views()}
        problems = [f"{key}: missing" for key in (*own, counter) if key not in arrays]
        problems += [f"{key}: not expected" for key in arrays if key not in own and key != counter]
        problems += [
            f"{key}: shape {np.shape(arrays[key])}, expected {shape}"
            for key, (_, shape) in own.items()
            if key in arrays and np.shape(arrays[key]) != shape
        ]
        count = to_numpy(arrays.get(counter, 0))
        if count.shape != () or count.dtype.kind not in "iu" or count < 0:
            problems.append(f"{counter}: {count!r}, expected one whole number >= 0")
        if problems:
            more = [f"and {len(problems) - LISTED} more"] if len(problems) > LISTED else []
            raise ValueError(
                f"The state does not fit this {type(self.model).__name__}:\n  "
                + "\n  ".join(problems[:LISTED] + more)
                + "\nLoad a state saved with the same model and the same settings."
            )
        for key, (view, _) in own.items():
            view[...] = self.xp.asarray(arrays[key], dtype=view.dtype)
        return int(count)

    def _views(self) -> Iterator[tuple[str, Array, tuple[int, ...]]]:
        """Yield the name, the place and the shape of every array kept."""
        for slot, buffers in self.buffers.items():
            for group, buffer in zip(self.groups, buffers, strict=True):
                for name, part in group.slices.items():
                    shape = self.shapes[name]
                    yield _key(name, slot), buffer[part].reshape(shape), shape


def _key(name: str, slot: str) -> str:
    return f"{name}.{slot}" if slot else name
