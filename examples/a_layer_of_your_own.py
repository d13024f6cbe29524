"""A new layer in two methods, and how to know that it is right.

LayerScale (Touvron et al., 2021, arXiv:2103.17239): each channel of a residual branch is
multiplied by a learned number that starts small.
"""

import numpy as np

from vitkit.nn import Context, Module, Parameter
from vitkit.testing import check_layer, directional_derivative_error


class LayerScale(Module):
    """Multiply each channel of x (B, N, D) by a learned number, y = x * gamma."""

    def __init__(self, dim, start=1e-4, *, xp=None):
        self.gamma = Parameter((dim,), lambda rng, shape: np.full(shape, start), decay=False)
        if xp is not None:
            self.place(xp)

    def forward(self, x, ctx):
        """Return y, and keep x for backward."""
        self.expect_width(x, self.gamma.shape[0])
        ctx.push(self, x)
        return x * self.gamma.value

    def backward(self, dy, ctx):
        """Add to the gradient of gamma, and return that of x."""
        (x,) = ctx.pop(self)
        self.gamma.add_grad((dy * x).sum(axis=(0, 1)))
        return dy * self.gamma.value


def main() -> float:
    """Compare the gradients with finite differences in float64; return the relative error."""
    rng = np.random.default_rng(0)
    layer = LayerScale(8, start=0.5).place(np, dtype="float64")
    x, dy = rng.normal(size=(2, 5, 8)), rng.normal(size=(2, 5, 8))
    ctx = Context(train=True)
    layer.forward(x, ctx)
    dx = layer.backward(dy, ctx)
    error = directional_derivative_error(
        lambda *_: (layer(x) * dy).sum(), [x, layer.gamma.value], [dx, layer.gamma.grad]
    )
    print(f"relative error of the gradient: {error:.1e}")
    check_layer(lambda xp=None: LayerScale(8, start=0.5, xp=xp), (5, 8))  # and all else there is
    return error


if __name__ == "__main__":
    main()
