"""From an image to a sequence of embedded patches."""

from __future__ import annotations

from vitkit import ops
from vitkit.backend import Array, ArrayModule
from vitkit.nn.context import Context
from vitkit.nn.init import Initializer, lecun_normal, zeros
from vitkit.nn.module import Module
from vitkit.nn.parameter import Parameter
from vitkit.ops.patches import Size, as_size


class PatchProjection(Module):
    """Map flattened patches (B, N, C P P) to (B, N, D) by a convolution's weight.

    A convolution whose stride is its kernel size is a matrix product on patches; the weight keeps
    the convolution's shape (D, C, P, P), so that released weights load as they are.

    Parameters
    ----------
    dim, in_channels : int
        The width D and the number of image channels C.
    patch_size : tuple of 2 int
        Height and width of a patch.
    weight_init : callable
        The weight's initializer.
    xp : module, optional
        Given, the layer is placed at once.
    """

    def __init__(
        self,
        dim: int,
        in_channels: int,
        patch_size: Size,
        *,
        weight_init: Initializer = lecun_normal,
        xp: ArrayModule = None,
    ) -> None:
        self.weight = Parameter((dim, in_channels, *patch_size), weight_init)
        self.bias = Parameter((dim,), zeros, decay=False)
        if xp is not None:
            self.place(xp)

    @property
    def _matrix(self) -> Array:
        return self.xp.reshape(self.weight.value, (self.weight.shape[0], -1))

    def forward(self, x: Array, ctx: Context) -> Array:
        """Return the embedded patches and keep the patches."""
        ctx.push(self, x)
        bias, precision = self.bias.value, self.precision
        return ops.linear(x, self._matrix, bias, precision=precision, xp=self.xp)

    def backward(self, dy: Array, ctx: Context) -> Array | None:
        """Return ``dx``, or None where the pass does without it."""
        (x,) = ctx.pop(self)
        dx, dweight, dbias = ops.linear_backward(
            dy,
            x,
            self._matrix,
            precision=self.precision,
            input_gradient=ctx.input_gradient,
            xp=self.xp,
        )
        self.weight.add_grad(dweight.reshape(self.weight.shape))
        self.bias.add_grad(dbias)
        return dx


class PatchEmbed(Module):
    """Cut images (B, C, H, W) into patches and embed each, (B, N, D): the x_p E of Eq. 1.

    Parameters
    ----------
    image_size, patch_size : int or tuple of 2 int
        Height and width, in pixels; the patch must divide the image.
    in_channels, dim : int
        The number of image channels C and the width D.
    weight_init : callable
        The projection's initializer.
    xp : module, optional
        Given, the layer is placed at once.
    """

    def __init__(
        self,
        image_size: int | Size,
        patch_size: int | Size,
        in_channels: int,
        dim: int,
        *,
        weight_init: Initializer = lecun_normal,
        xp: ArrayModule = None,
    ) -> None:
        image_size, patch_size = as_size(image_size), as_size(patch_size)
        if image_size[0] % patch_size[0] or image_size[1] % patch_size[1]:
            raise ValueError(
                f"patch_size must divide image_size; got patch_size={patch_size}, "
                f"image_size={image_size}."
            )
        self.image_size = image_size
        self.patch_size = patch_size
        self.proj = PatchProjection(dim, in_channels, patch_size, weight_init=weight_init)
        if xp is not None:
            self.place(xp)

    @property
    def grid(self) -> Size:
        """How many patches there are down and across."""
        (height, width), (down, across) = self.image_size, self.patch_size
        return height // down, width // across

    def forward(self, x: Array, ctx: Context) -> Array:
        """Return the embedded patches, in reading order."""
        return self.proj.forward(ops.patchify(x, self.patch_size, xp=self.xp), ctx)

    def backward(self, dy: Array, ctx: Context) -> Array | None:
        """Return the gradient of the images, or None where the pass does without it."""
        dpatches = self.proj.backward(dy, ctx)
        if dpatches is None:
            return None
        return ops.unpatchify(dpatches, self.image_size, self.patch_size, xp=self.xp)
