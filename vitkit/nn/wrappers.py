"""Modules around a module, invisible in parameter names."""

from __future__ import annotations

import time
from collections.abc import Callable

from vitkit.backend import Array, ArrayModule, synchronize
from vitkit.nn.context import Context
from vitkit.nn.module import Module


class Checkpoint(Module):
    """Keep only the input of ``inner`` and recompute the rest when backward needs it.

    Gradient checkpointing (Chen et al., 2016, arXiv:1604.06174): memory of one block instead of
    all, for one more forward pass. Gradients are the same to the bit, dropout included; on a GPU in
    16 bits up to rounding, unless ``VITKIT_DETERMINISTIC=1``: products that keep nothing may be
    others.

    Parameters
    ----------
    inner : Module
        The module to wrap, such as a block.
    xp : module, optional
        Given, the module is placed at once.
    """

    transparent = True

    def __init__(self, inner: Module, *, xp: ArrayModule = None) -> None:
        self.inner = inner
        if xp is not None:
            self.place(xp)

    def forward(self, x: Array, ctx: Context) -> Array:
        """Return ``inner``'s output; keep its input and how many keys were drawn before it."""
        ctx.push(self, x, ctx.seeds.drawn)
        return self.inner.forward(x, ctx.forgetting())

    def backward(self, dy: Array, ctx: Context) -> Array:
        """Run ``inner`` forward again, keeping, and then backward."""
        x, drawn = ctx.pop(self)
        again = ctx.replay(drawn)
        self.inner.forward(x, again)
        return self.inner.backward(dy, again)


class Timed(Module):
    """Count how often ``inner`` runs, and how long forward and backward take.

    For the time by layer: ``model.blocks[0] = Timed(model.blocks[0])``, before or after the model
    is placed. :func:`vitkit.ops.profiled` gives the time by operation. A device is waited for at
    each end. A wrapped part of a block is computed by itself, not in one operation with the norm
    before it and the residual after it; so wrap whole blocks. The last one then computes every
    token, of which the head may read one.

    Parameters
    ----------
    inner : Module
        The module to wrap, such as a block.
    clock : callable, default time.perf_counter
        Returns seconds.
    xp : module, optional
        Given, the module is placed at once.

    Attributes
    ----------
    forward_calls, backward_calls : int
        How often each was run to its end.
    forward_seconds, backward_seconds : float
        How long that took in all.
    """

    transparent = True

    def __init__(
        self,
        inner: Module,
        *,
        clock: Callable[[], float] = time.perf_counter,
        xp: ArrayModule = None,
    ) -> None:
        self.inner = inner
        self.clock = clock
        self.reset()
        if xp is not None:
            self.place(xp)

    def reset(self) -> None:
        """Count from zero again."""
        self.forward_calls = self.backward_calls = 0
        self.forward_seconds = self.backward_seconds = 0.0

    def forward(self, x: Array, ctx: Context) -> Array:
        """Return ``inner``'s output."""
        y, seconds = self._timed(self.inner.forward, x, ctx)
        self.forward_calls += 1
        self.forward_seconds += seconds
        return y

    def backward(self, dy: Array, ctx: Context) -> Array:
        """Return ``inner``'s gradient of the input."""
        dx, seconds = self._timed(self.inner.backward, dy, ctx)
        self.backward_calls += 1
        self.backward_seconds += seconds
        return dx

    def _timed(
        self, run: Callable[[Array, Context], Array], x: Array, ctx: Context
    ) -> tuple[Array, float]:
        xp = self.inner.xp
        synchronize(xp)
        started = self.clock()
        y = run(x, ctx)
        synchronize(xp)
        return y, self.clock() - started


def unwrap(module: Module) -> Module:
    """Return the module inside all wrappers."""
    while module.transparent:
        ((_, module),) = module.children()
    return module
