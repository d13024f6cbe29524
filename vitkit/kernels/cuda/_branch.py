"""What the two branches of an encoder block have in common on a GPU."""

from __future__ import annotations

from collections.abc import Sequence

from vitkit.backend import Array, ArrayModule
from vitkit.kernels.cuda._arrays import served
from vitkit.kernels.cuda._products import DTYPES, gradients, multiply, rows
from vitkit.kernels.cuda.casts import cast
from vitkit.kernels.cuda.layer_norm import WIDEST


class Branch:
    """The products of one branch in one precision.

    Parameters
    ----------
    precision : str
        What the operands of products are rounded to.
    xp : module
        The array module.
    """

    def __init__(self, precision: str, xp: ArrayModule) -> None:
        self.precision, self.dtype, self.xp = precision, DTYPES[precision], xp

    def affine(self, x: Array, weight: Array, bias: Array) -> Array:
        """Return ``x W^T + b``, stored."""
        y = self.xp.empty((*x.shape[:-1], len(weight)), self.dtype)
        self._multiply(rows(x), self.low(weight), rows(y), transpose_b=True, bias=bias)
        return y

    def add_affine(
        self, residual: Array, x: Array, weight: Array, bias: Array, gain: Array | None
    ) -> Array:
        """Return ``residual + gain (x W^T + b)`` in float32."""
        y = self.xp.empty(residual.shape, "float32")
        plus = rows(residual) if gain is None else None
        self._multiply(rows(x), self.low(weight), rows(y), transpose_b=True, bias=bias, plus=plus)
        if gain is not None:
            y *= gain[:, None, None]
            y += residual
        return y

    def input_gradient(self, dy: Array, weight: Array) -> Array:
        """Return ``dy W``, stored."""
        dx = self.xp.empty((*dy.shape[:-1], weight.shape[1]), self.dtype)
        self._multiply(rows(dy), self.low(weight), rows(dx))
        return dx

    def add_weight_gradient(self, dy: Array, x: Array, dweight: Array) -> None:
        """Add ``dy^T x``."""
        self._multiply(rows(dy), rows(x), dweight, transpose_a=True, plus=dweight)

    def add_gradients(self, dy: Array, x: Array, dweight: Array, dbias: Array) -> None:
        """Add ``dy^T x``, and the sums over the rows of ``dy``."""
        given = rows(dy), rows(x), dweight, dbias
        gradients(*given, adds=True, precision=self.precision, xp=self.xp)

    def low(self, weight: Array) -> Array:
        """Return a weight as products take it."""
        return cast(weight, self.dtype, self.xp)

    def _multiply(
        self,
        a: Array,
        b: Array,
        out: Array,
        *,
        transpose_a: bool = False,
        transpose_b: bool = False,
        bias: Array | None = None,
        plus: Array | None = None,
    ) -> None:
        multiply(
            a,
            b,
            out,
            transpose_a=transpose_a,
            transpose_b=transpose_b,
            bias=bias,
            plus=plus,
            precision=self.precision,
            xp=self.xp,
        )


def usable(precision: str, x: Array, gain: Array | None, *parameters: Sequence[Array]) -> bool:
    """Return whether kernels can compute a branch: float32 inputs, gradients without gaps."""
    if x.shape[-1] > WIDEST:
        return False
    arrays = [each for group in parameters for each in group]
    gains = () if gain is None else (gain,)
    contiguous = all(array.flags.c_contiguous for array in arrays)
    return precision in DTYPES and served(x, *gains, *arrays) and contiguous
