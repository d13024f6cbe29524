"""A branch of a block: the layer norm before a layer, drop path and the residual after it.

What flows from branch to branch is float32, or rounded (:mod:`vitkit.ops.residual`): layers that
compute one after the other see float32 in between.
"""

from __future__ import annotations

from typing import Any

from vitkit.backend import Array
from vitkit.nn.context import Context
from vitkit.nn.dropout import DropPath
from vitkit.nn.layer_norm import LayerNorm
from vitkit.nn.module import Module
from vitkit.nn.wrappers import unwrap
from vitkit.ops.residual import is_narrow, narrowed, widened


def residual(norm: Module, inner: Any, drop_path: Module, x: Array, ctx: Context) -> Array:
    """Return ``x + drop_path(inner(norm(x)))``, by one operation where the parts allow it."""
    if (parts := _fusible(norm, inner, drop_path, ctx)) is not None:
        own_norm, own_drop_path = parts
        y: Array = inner.branch(x, own_norm, own_drop_path.gain(x, ctx), ctx)
        return y
    if is_narrow(x):
        xp = unwrap(norm).xp  # a wrapper need not have been placed
        return narrowed(residual(norm, inner, drop_path, widened(x, xp=xp), ctx), xp=xp)
    return x + drop_path.forward(inner.forward(norm.forward(x, ctx), ctx), ctx)


def residual_backward(
    norm: Module, inner: Any, drop_path: Module, dy: Array, ctx: Context
) -> Array:
    """Return ``dx`` of :func:`residual`."""
    if (parts := _fusible(norm, inner, drop_path, ctx)) is not None:
        dx: Array = inner.branch_backward(dy, parts[0], ctx)
        return dx
    if is_narrow(dy):
        xp = unwrap(norm).xp
        dx = residual_backward(norm, inner, drop_path, widened(dy, xp=xp), ctx)
        return narrowed(dx, xp=xp)
    return dy + norm.backward(inner.backward(drop_path.backward(dy, ctx), ctx), ctx)


def _fusible(
    norm: Module, inner: Any, drop_path: Module, ctx: Context
) -> tuple[LayerNorm, DropPath] | None:
    """Return norm and drop path if one operation can do all the work in this pass.

    All must be vitkit's own: a subclass, a wrapper or a plugin's layer has methods of its own.
    ``inner`` then has ``fuses(ctx)``, ``branch(x, norm, gain, ctx)`` and
    ``branch_backward(dy, norm, ctx)``, as :class:`~vitkit.nn.MLP` does.
    """
    if type(norm) is not LayerNorm or type(drop_path) is not DropPath:
        return None
    fuses = getattr(inner, "fuses", None)
    return (norm, drop_path) if fuses is not None and fuses(ctx) else None
