"""Modules around a module, invisible in parameter names."""

from __future__ import annotations

from vitkit.backend import Array, ArrayModule
from vitkit.nn.context import Context
from vitkit.nn.module import Module


class Checkpoint(Module):
    """Keep only the input of ``inner`` and recompute the rest when backward needs it.

    Gradient checkpointing (Chen et al., 2016, arXiv:1604.06174): memory of one block instead of
    all, for one more forward pass. Gradients are the same to the bit, dropout included.

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


def unwrap(module: Module) -> Module:
    """Return the module inside all wrappers."""
    while module.transparent:
        ((_, module),) = module.children()
    return module
