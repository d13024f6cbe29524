"""What the two branches of an encoder block have in common."""

from __future__ import annotations

from typing import Any

from vitkit.backend import Array, ArrayModule
from vitkit.backend.precision import operand
from vitkit.ops.layer_norm import layer_norm_backward


def affine(x: Array, weight: Array, bias: Array, precision: str, *, xp: ArrayModule) -> Array:
    """Return ``x W^T + b``, the product in the given precision."""
    y = operand(x, precision, xp=xp) @ operand(weight, precision, xp=xp).T
    y += bias
    return y


def affine_backward(dy: Array, weight: Array, precision: str, *, xp: ArrayModule) -> Array:
    """Return the gradient of the input of :func:`affine`."""
    dx: Array = operand(dy, precision, xp=xp) @ operand(weight, precision, xp=xp)
    return dx


def add_gradients(
    dy: Array, x: Array, dweight: Array, dbias: Array, precision: str, *, xp: ArrayModule
) -> None:
    """Add to the gradients of the weight and the bias of :func:`affine`."""
    rows = operand(dy, precision, xp=xp).reshape(-1, dy.shape[-1])
    inputs = operand(x, precision, xp=xp).reshape(-1, x.shape[-1])
    dweight += rows.T @ inputs
    dbias += rows.sum(axis=0)


def through_norm(
    du: Array, x: Array, weight: Array, mean: Array, rstd: Array, grads: Any, *, xp: ArrayModule
) -> Array:
    """Return the gradient of a branch's input, given that of its layer norm; add the norm's."""
    dx, dweight, dbias = layer_norm_backward(du, x, weight, mean, rstd, xp=xp)
    norm_weight, norm_bias = grads.norm_weight, grads.norm_bias
    norm_weight += dweight
    norm_bias += dbias
    return dx


def gained(dy: Array, gain: Array | None) -> Array:
    """Return ``dy`` (B, N, D) times the gain of each sample (B,), if there is one."""
    return dy if gain is None else dy * gain[:, None, None]
