"""The affine layer."""

from __future__ import annotations

from vitkit.backend import Array, ArrayModule
from vitkit.nn.context import Context
from vitkit.nn.init import Initializer, xavier_uniform, zeros
from vitkit.nn.module import Module
from vitkit.nn.parameter import Parameter
from vitkit.ops import linear, linear_backward


class Linear(Module):
    """Map the last axis of ``x`` (..., D_in) to (..., D_out), ``y = x W^T + b``.

    Inside a model it multiplies in the model's ``precision``; alone in the one that it is placed
    with, which is float32 unless you say otherwise.

    Parameters
    ----------
    dim_in, dim_out : int
        The widths.
    weight_init, bias_init : callable
        Initializers, see :mod:`vitkit.nn.init`.
    xp : module, optional
        Given, the layer is placed at once.
    """

    def __init__(
        self,
        dim_in: int,
        dim_out: int,
        *,
        weight_init: Initializer = xavier_uniform(),  # noqa: B008 (stateless)
        bias_init: Initializer = zeros,
        xp: ArrayModule = None,
    ) -> None:
        self.weight = Parameter((dim_out, dim_in), weight_init)
        self.bias = Parameter((dim_out,), bias_init, decay=False)
        if xp is not None:
            self.place(xp)

    def forward(self, x: Array, ctx: Context) -> Array:
        """Return ``y`` and keep ``x``."""
        self.expect_width(x, self.weight.shape[1])
        ctx.push(self, x)
        weight, bias = self.weight.value, self.bias.value
        return linear(x, weight, bias, precision=self.precision, xp=self.xp)

    def backward(self, dy: Array, ctx: Context) -> Array:
        """Return ``dx``."""
        (x,) = ctx.pop(self)
        dx, dweight, dbias = linear_backward(
            dy, x, self.weight.value, precision=self.precision, xp=self.xp
        )
        self.weight.add_grad(dweight)
        self.bias.add_grad(dbias)
        return dx
