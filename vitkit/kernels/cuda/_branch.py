"""What the two branches of an encoder block have in common on a GPU."""

from __future__ import annotations

from collections.abc import Sequence

from vitkit.backend import Array, ArrayModule
from vitkit.kernels.cuda._arrays import served
from vitkit.kernels.cuda._products import DTYPES, gradients, multiply, rows
from vitkit.kernels.cuda.casts import add_gained, cast, gained_cast
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
        """Return ``residual + gain (x W^T + b)``, in the dtype of the residual."""
        dtype, plus = (residual.dtype, rows(residual)) if gain is None else ("float32", None)
        y = self.xp.empty(residual.shape, dtype)
        self._multiply(rows(x), self.low(weight), rows(y), transpose_b=True, bias=bias, plus=plus)
        return y if gain is None else add_gained(residual, y, gain, self.xp)

    def output_gradient(
        self, dy: Array, gain: Array | None, x: Array, dweight: Array, dbias: Array
    ) -> Array:
        """Return ``gain dy``, stored; add the gradients of what :meth:`add_affine` multiplied."""
        if gain is None and dy.dtype == self.dtype:
            self.add_gradients(dy, x, dweight, dbias)
            return dy
        stored = gained_cast(dy, gain, self.dtype, dbias, self.xp)
        self.add_weight_gradient(stored, x, dweight)
        return stored

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


def usable(
    precision: str, flowing: Sequence[Array], gain: Array | None, *parameters: Sequence[Array]
) -> bool:
    """Return whether kernels can compute a branch.

    Parameters
    ----------
    precision : str
        What the operands of products are rounded to.
    flowing : sequence of array, shape (B, N, D)
        What flows through the residual: float32 or, in bfloat16, its bits.
    gain : array, shape (B,), or None
        Float32.
    *parameters : sequence of array
        Weights and gradients; float32, without gaps.
    """
    if precision not in DTYPES or any(x.shape[-1] > WIDEST for x in flowing):
        return False
    low = DTYPES[precision] == "uint16" and all(x.dtype == "uint16" and x.size for x in flowing)
    arrays = [each for group in parameters for each in group]
    gains = () if gain is None else (gain,)
    contiguous = all(array.flags.c_contiguous for array in arrays)
    return (low or served(*flowing)) and served(*gains, *arrays) and contiguous
