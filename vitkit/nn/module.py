"""The contract every layer keeps.

``forward(x, ctx)`` returns the output and pushes on ``ctx`` what backward will need;
``backward(dy, ctx)`` pops it and returns the gradient of the input. Gradients of activations are
assigned; gradients of parameters are added to, so that a layer used twice, or a batch given in
pieces, adds up; ``zero_grad`` starts afresh.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from vitkit import kernels
from vitkit.backend import Array, ArrayModule, array_module, to_numpy
from vitkit.errors import BackendError, first_line
from vitkit.nn.context import Context
from vitkit.nn.parameter import Parameter
from vitkit.nn.place import FlatGroup, allocate, draw
from vitkit.nn.tree import Snapshot, entry, join, parts


class Module:
    """A differentiable function with parameters.

    A subclass writes two methods, ``forward(x, ctx)`` and ``backward(dy, ctx)``. A module holds
    no state of a pass, so one module may be used several times in a model.

    Every public layer also takes a keyword-only ``xp=None``. Given, the layer is placed at once
    and usable alone; left out, it waits for the ``place`` of the model it is part of.
    """

    name: str = ""
    transparent: bool = False  # True for wrappers, which leave no trace in parameter names
    groups: tuple[FlatGroup, ...] = ()
    precision: str = "float32"  # what products are made of; set by ``place``
    _xp: ArrayModule = None
    _snapshot: Snapshot | None = None  # of the tree when its buffers were last checked

    def forward(self, x: Array, ctx: Context) -> Array:
        """Return the output for ``x`` and keep on ``ctx`` what ``backward`` needs."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(x, ctx).")

    def backward(self, dy: Array, ctx: Context) -> Array:
        """Add to the parameters' gradients and return the gradient of ``forward``'s input."""
        raise NotImplementedError(f"{type(self).__name__} must define backward(dy, ctx).")

    def __call__(self, x: Array) -> Array:
        """Return the output for ``x`` in inference: dropout off, nothing kept."""
        with self.rounded_once():
            return self.forward(x, Context())

    def rounded_once(self) -> AbstractContextManager[None]:
        """Return a context in which weights do not change, nor are they rounded time and again.

        See ``vitkit.kernels.rounded_once``.
        """
        if not self.groups:
            return nullcontext()
        values = [group.values for group in self.groups]
        return kernels.rounded_once(values, self.precision, xp=self.xp)

    @property
    def label(self) -> str:
        """How errors name this module: its class and, inside a model, its dotted name."""
        return f"{type(self).__name__} {self.name!r}" if self.name else type(self).__name__

    def expect_width(self, x: Array, width: int) -> None:
        """Raise a ValueError that names this module if the last axis of ``x`` is not ``width``."""
        if x.shape[-1] != width:
            raise ValueError(f"{self.label} takes arrays (..., {width}); got shape {x.shape}.")

    @property
    def xp(self) -> ArrayModule:
        """The array module this layer computes with.

        Raises
        ------
        RuntimeError
            If the layer has not been placed.
        """
        if self._xp is None:
            raise RuntimeError(
                f"{self.label} has no arrays yet: pass xp= when making it, or call place(xp) on "
                "the model it is part of."
            )
        return self._xp

    def children(self) -> Iterator[tuple[str, Module]]:
        """Yield ``(name, module)`` for each direct child, those in lists and dicts included."""
        for key, value in parts(vars(self)):
            if isinstance(value, Module):
                yield key, value

    def modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """Yield ``(dotted name, module)`` for this module and all below it."""
        yield prefix, self
        for key, child in self.children():
            yield from child.modules(prefix if self.transparent else join(prefix, key))

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Yield ``(dotted name, parameter)``, each parameter once, in forward order."""
        seen: set[int] = set()
        for prefix, module in self.modules():
            for key, value in parts(vars(module)):
                if isinstance(value, Parameter) and id(value) not in seen:
                    seen.add(id(value))
                    yield join(prefix, key), value

    @property
    def num_parameters(self) -> int:
        """How many numbers are learned; known before anything is allocated."""
        return sum(parameter.size for _, parameter in self.named_parameters())

    def place(
        self,
        xp: ArrayModule,
        *,
        seed: int | None = 0,
        dtype: Any = "float32",
        precision: str | None = None,
    ) -> Module:
        """Give the tree its ``xp`` and every parameter its memory; return ``self``.

        Parameters are views of one flat buffer for each decay group, in backward order. The
        random numbers of a parameter come from its name, so adding a layer leaves the others
        alone.

        Parameters
        ----------
        xp : module or str
            The array module, or ``"numpy"``, ``"cupy"``, ``"auto"``.
        seed : int or None, default 0
            Where the first values come from; None leaves zeros, for weights about to be loaded.
        dtype : str or numpy.dtype, default "float32"
            ``"float32"`` or ``"float64"``.
        precision : str, optional
            ``"float32"``, ``"tf32"``, ``"bfloat16"`` or ``"float16"``: what products are made
            of, except those of a model's head. Where that would be no faster a line says so and it
            stays float32. By default as it was.

        Returns
        -------
        Module
            This module.

        Raises
        ------
        BackendError
            If there is too little memory.
        """
        xp = array_module(xp)
        kernels.load(xp)
        precision = kernels.served_precision(precision or self.precision, xp, dtype)
        for name, module in self.modules():
            module.name, module._xp, module.groups = name, xp, ()
            module._snapshot = None
        self._set_precision(precision)
        self.groups = self._allocated(xp, dtype)
        self._snapshot = Snapshot(self) if self.groups else None
        if seed is not None:
            for _, parameter in self.named_parameters():
                parameter.value[...] = xp.asarray(draw(parameter, seed), dtype=dtype)
        return self

    def _set_precision(self, precision: str) -> None:
        """Have products of this tree be made of ``precision``.

        A module with parts that stay in float32 overrides this. It is called at each placement, so
        that what replaces such a part stays in float32 too.
        """
        self.precision = precision
        for _, child in self.children():
            child._set_precision(precision)

    def _allocated(self, xp: ArrayModule, dtype: Any) -> tuple[FlatGroup, ...]:
        try:
            return allocate(list(self.named_parameters()), xp, dtype)
        except MemoryError as error:
            count = self.num_parameters
            raise BackendError(
                f"Out of memory: {self.label} has {count:,} parameters, which with their gradients "
                f"take {2 * count * np.dtype(dtype).itemsize:,} bytes ({first_line(error)}). "
                "Take a smaller model, or another device."
            ) from None

    def flat_groups(self) -> tuple[FlatGroup, ...]:
        """Return the flat buffers, after making sure that they hold every parameter.

        Raises
        ------
        RuntimeError
            If this module was never placed, or a part of it was replaced or placed since: an
            optimizer would leave that part as it is.
        """
        if self._snapshot is not None and self._snapshot.holds():
            return self.groups
        strays = [name for name, p in self.named_parameters() if p.group not in self.groups]
        if strays and not self.groups:
            raise RuntimeError(
                f"{self.label} owns no buffers: call this on the model that was placed, or pass "
                "xp= when making the layer."
            )
        if strays:
            raise RuntimeError(
                f"{', '.join(strays)}: replaced or placed alone since {self.label} was placed. "
                "Put a layer into a placed model with model.replace(name, layer)."
            )
        self._snapshot = Snapshot(self) if self.groups else None
        return self.groups

    def replace(self, name: str, layer: Module, *, seed: int = 0) -> None:
        """Put another layer into a placed model; all other weights stay.

        An optimizer made before refuses to step: attach it again.

        Parameters
        ----------
        name : str
            The dotted name of the layer to replace, such as ``"head"`` or ``"blocks.0.mlp"``.
        layer : Module
            The new layer; its weights are kept if it is placed, and drawn from ``seed`` if not.
        seed : int, default 0
            Where new weights come from.

        Raises
        ------
        KeyError
            If there is no layer of that name.
        """
        *path, last = name.split(".")
        dtype = next((group.values.dtype for group in self.groups), "float32")
        try:
            owner = functools.reduce(entry, path, self)
            if not isinstance(entry(owner, last), Module):
                raise KeyError(last)
        except (KeyError, IndexError, ValueError):
            raise KeyError(f"{self.label} has no layer {name!r}.") from None
        if isinstance(owner, list):
            owner[int(last)] = layer
        else:
            setattr(owner, last, layer)
        kept = {n: to_numpy(p.value) for n, p in self.named_parameters() if p.group}
        self.place(self.xp, seed=seed, dtype=dtype)
        self.load_state_dict(kept, strict=False)

    def zero_grad(self) -> None:
        """Set every gradient to zero."""
        for group in self.flat_groups():
            group.grads.fill(0)

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return a copy of every parameter's values on the host, by dotted name."""
        self.flat_groups()
        return {name: to_numpy(p.value).copy() for name, p in self.named_parameters()}

    def load_state_dict(
        self, arrays: Mapping[str, Array], strict: bool = True
    ) -> tuple[list[str], list[str]]:
        """Copy values in, by dotted name; on an error nothing has changed.

        Parameters
        ----------
        arrays : mapping of str to array
            Values on the host or on this model's device; cast to this model's dtype.
        strict : bool, default True
            Whether missing and unexpected names are errors. A wrong shape always is.

        Returns
        -------
        missing, unexpected : list of str
            The names this model has and ``arrays`` has not, and the other way round.

        Raises
        ------
        ValueError
            Listing every name that is missing, unexpected or of another shape.
        """
        self.flat_groups()
        own = dict(self.named_parameters())
        missing = [name for name in own if name not in arrays]
        unexpected = [name for name in arrays if name not in own]
        problems = [
            f"  {name}: {misfit}"
            for name, p in own.items()
            if name in arrays and (misfit := p.misfit(arrays[name]))
        ]
        if strict:
            problems += [f"  {name}: missing" for name in missing]
            problems += [f"  {name}: not a parameter of this model" for name in unexpected]
        if problems:
            raise ValueError(
                f"The weights do not fit this {type(self).__name__}:\n"
                + "\n".join(problems)
                + "\nUse strict=False to load only the names that both have."
            )
        ready = [
            (p.value, self.xp.asarray(arrays[name], dtype=p.value.dtype))
            for name, p in own.items()
            if name in arrays
        ]
        for value, array in ready:
            value[...] = array
        return missing, unexpected

    def __deepcopy__(self, memo: dict[int, Any]) -> Module:
        """Return a copy with memory of its own, on the same backend."""
        other: Module = object.__new__(type(self))
        memo[id(self)] = other
        for key, value in vars(self).items():
            if key != "_snapshot":
                shared = key in ("_xp", "groups")
                setattr(other, key, value if shared else copy.deepcopy(value, memo))
        if self.groups:
            other.place(self.xp, seed=None, dtype=self.groups[0].values.dtype)
            other.load_state_dict(self.state_dict())
        return other

    def to(self, backend: str | ArrayModule) -> Module:
        """Move every parameter to another backend, in place; return ``self``.

        Gradients are not moved: they are zero afterwards. An optimizer made before the move
        refuses to step; make a new one, or load its state.
        """
        xp = array_module(backend)
        if xp is not self.xp:
            values = self.state_dict()
            dtype = next((group.values.dtype for group in self.groups), "float32")
            self.place(xp, seed=None, dtype=dtype)
            self.load_state_dict(values)
        return self
