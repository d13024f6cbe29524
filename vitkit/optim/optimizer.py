"""What every optimizer shares; an algorithm adds its slots and one method.

::

    class SignMomentum(Optimizer):
        slots = ("m",)

        def __init__(self, lr=1e-3, *, momentum=0.9, weight_decay=0.0):
            super().__init__(lr, weight_decay)
            self.momentum = number("momentum", momentum, at_least=0, below=1)

        def update(self, w, g, m, *, lr, step, weight_decay, xp):
            m *= self.momentum
            m += g
            w -= lr * (xp.sign(m) + weight_decay * w)
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeVar

import numpy as np

from vitkit.backend import Array, backend_of
from vitkit.nn.module import Module
from vitkit.nn.place import FlatGroup
from vitkit.optim.layer_decay import lr_scales
from vitkit.optim.skip import Skipped, undone_unless
from vitkit.optim.state import FlatState
from vitkit.validate import number

Self = TypeVar("Self", bound="Optimizer")


@dataclass(frozen=True, eq=False)
class Segment:
    """What one call of ``update`` works on: views of the weights, gradients and slots."""

    arrays: tuple[Array, ...]
    lr_scale: float
    decay: bool


class Optimizer:
    """An algorithm that changes a model's parameters by their gradients.

    A subclass names its ``slots``, the arrays it keeps for each parameter, and writes
    ``update(w, g, *slots, lr, step, weight_decay, xp)``, which changes ``w`` and the slots in
    place. It is called once for each flat buffer when ``elementwise`` is true, and once for each
    parameter, in its own shape, otherwise. ``step`` counts updates from 1. It and ``lr`` are
    numbers, or arrays of shape () on the device where a step is recorded as a graph or only the
    device knows which updates were skipped. ``weight_decay`` is 0 for biases, normalization and the
    other parameters declared with ``decay=False``.

    Parameters
    ----------
    lr : float
        The learning rate, unless ``step`` is given one.
    weight_decay : float, default 0.0
        How strongly weights are pulled to zero, in the units of the algorithm.

    Attributes
    ----------
    slots : tuple of str
        The names of the arrays kept for each parameter; they start at zero.
    elementwise : bool
        Whether each entry is updated without a look at the others.
    steps : int
        How many updates have been made; on a device those that were skipped count too, and
        ``state_dict()["step"]`` is without them.

    Raises
    ------
    ValueError
        If a hyper-parameter is out of range.
    """

    slots: tuple[str, ...] = ()
    elementwise: bool = True

    def __init__(self, lr: float, weight_decay: float = 0.0) -> None:
        self.lr = number("lr", lr, at_least=0)
        self.weight_decay = number("weight_decay", weight_decay, at_least=0)
        self.steps = 0
        self._skipped = Skipped()
        self._counted: Array | None = None  # where the device counts, and not ``steps``
        self._state: FlatState | None = None
        self._segments: tuple[Segment, ...] = ()

    def update(self, w: Array, g: Array, *args: Any, **kwargs: Any) -> None:
        """Change ``w`` and the slots in place: ``update(w, g, *slots, lr, step, ...)``."""
        raise NotImplementedError(
            f"{type(self).__name__} must define update(w, g, *slots, lr, step, weight_decay, xp)."
        )

    def attach(self: Self, model: Module, *, layer_decay: float = 1.0) -> Self:
        """Make the slots for a placed model, all zero, and count updates from the start.

        Parameters
        ----------
        model : Module
            The model whose parameters ``step`` will change.
        layer_decay : float, default 1.0
            The learning rate's factor from one layer to the one below, in (0, 1].

        Returns
        -------
        Optimizer
            This optimizer.

        Raises
        ------
        RuntimeError
            If the model has not been placed.
        ValueError
            If ``layer_decay`` is out of range, or the model's names show no layers.
        """
        layer_decay = number("layer_decay", layer_decay, above=0, at_most=1)
        state = FlatState(model, self.slots)
        scales = lr_scales(state.shapes, layer_decay)
        self._segments = tuple(self._divide(state, scales))
        self._state, self.steps, self._skipped = state, 0, Skipped()
        return self

    def step(self, lr: float | Array | None = None, *, where: Array | None = None) -> None:
        """Update every parameter once from its gradient.

        Parameters
        ----------
        lr : float, or array of shape (), optional
            The learning rate of this update; by default the optimizer's own. An array is on the
            model's device, and not looked at.
        where : array, shape (), optional
            Whether to update at all, a boolean on the model's device, which is not waited for:
            what is not to change is put back, bit for bit.

        Raises
        ------
        RuntimeError
            If no model is attached, or it has been placed anew since.
        """
        self.check()
        state = self._attached()
        on_host = backend_of(state.xp).on_host
        if on_host or not isinstance(lr, state.xp.ndarray):
            lr = number("lr", self.lr if lr is None else lr, at_least=0)
        if where is not None and on_host:
            if not where:
                return
            where = None
        if self._counted is None:
            self.steps += 1
        self._skipped.expect(where, state.xp)
        step = self._skipped.made(self.steps if self._counted is None else self._counted)
        for segment in self._segments:
            w, _, *slots = segment.arrays
            with undone_unless(where, (w, *slots), state.xp):
                self.update(
                    *segment.arrays,
                    lr=lr * segment.lr_scale,
                    step=step,
                    weight_decay=self.weight_decay if segment.decay else 0.0,
                    xp=state.xp,
                )
        self._skipped.add_unless(where, state.xp)

    def check(self) -> None:
        """Raise unless the attached model still lies where it did.

        Raises
        ------
        RuntimeError
            If no model is attached, or it has been placed anew since.
        """
        state = self._attached()
        if state.stale:
            raise RuntimeError(
                f"{state.model.label} has been placed or moved since {type(self).__name__} was "
                "attached, so its parameters lie elsewhere. Call attach(model) again; to keep "
                "the state, take state_dict() before that and load it after."
            )

    @contextmanager
    def counting(self, count: Array) -> Iterator[None]:
        """Take an array for the count of updates inside the block, and leave ``steps`` alone.

        Parameters
        ----------
        count : array, shape ()
            Which update the next one is, from 1, on the model's device: what is recorded as a graph
            reads it at each replay.
        """
        self._counted = count
        try:
            yield
        finally:
            self._counted = None

    @property
    def attached(self) -> Module | None:
        """The model whose parameters ``step`` changes, or None before ``attach``."""
        return self._state.model if self._state else None

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return the slots on the host, as ``"<parameter>.<slot>"``, and ``"step"``.

        Hyper-parameters are not part of it.
        """
        arrays = self._attached().state_dict()
        return {**arrays, "step": self._skipped.made_on_host(self.steps)}

    def load_state_dict(self, arrays: Mapping[str, Array]) -> None:
        """Take up the state that ``state_dict`` returned; on an error nothing has changed.

        Raises
        ------
        ValueError
            Listing every name that is missing, unexpected or of another shape.
        """
        self.steps = self._attached().load_state_dict(arrays, counter="step")
        self._skipped.reset()

    def _attached(self) -> FlatState:
        if self._state is None:
            raise RuntimeError(
                f"{type(self).__name__} has no parameters yet: call attach(model) first."
            )
        return self._state

    def _divide(self, state: FlatState, scales: dict[str, float]) -> Iterator[Segment]:
        """Cut the flat groups into as few pieces as one ``update`` each can serve."""
        for index, group in enumerate(state.groups):
            flat = [group.values, group.grads]
            flat += [state.buffers[slot][index] for slot in self.slots]
            runs = _runs(group, scales) if self.elementwise else _each(group, state.shapes, scales)
            for part, shape, scale in runs:
                arrays = tuple(array[part].reshape(shape) for array in flat)
                yield Segment(arrays, scale, group.decay)

    def __repr__(self) -> str:
        settings = [
            name for name in inspect.signature(type(self)).parameters if hasattr(self, name)
        ]
        listed = ", ".join(f"{name}={getattr(self, name)!r}" for name in settings)
        return f"{type(self).__name__}({listed})"


Part = tuple[slice, tuple[int, ...], float]


def _runs(group: FlatGroup, scales: dict[str, float]) -> Iterator[Part]:
    """Yield the longest pieces of a flat group that share a learning rate."""
    for scale, run in groupby(group.slices, key=scales.__getitem__):
        names = list(run)
        yield slice(group.slices[names[0]].start, group.slices[names[-1]].stop), (-1,), scale


def _each(
    group: FlatGroup, shapes: dict[str, tuple[int, ...]], scales: dict[str, float]
) -> Iterator[Part]:
    """Yield every parameter of a flat group by itself."""
    for name, part in group.slices.items():
        yield part, shapes[name], scales[name]
