"""Matrix products of what is stored as float32, bfloat16 or float16; sums are float32.

On CuPy they are those of cuBLASLt (:mod:`vitkit.kernels.cuda._cublaslt`), which fuses what is added
and can be part of a captured graph, as CuPy's own cannot. Where that library is missing, and on any
other array module, they are the module's own, of operands that are widened first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from vitkit.backend import Array, ArrayModule
from vitkit.backend.precision import operand, stored
from vitkit.kernels.cuda.column_sums import add_column_sums

DTYPES = {"float32": "float32", "tf32": "float32", "bfloat16": "uint16", "float16": "float16"}
"""What a number is stored as, by precision."""
PRECISIONS = {"float32": "float32", "uint16": "bfloat16", "float16": "float16"}
"""What a stored number is, by its dtype."""


def rows(x: Array) -> Array:
    """Return the array with every axis but the last folded into one."""
    return x.reshape(-1, x.shape[-1])


def multiply(
    a: Array,
    b: Array,
    out: Array,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
    bias: Array | None = None,
    plus: Array | None = None,
    precision: str = "float32",
    xp: ArrayModule,
) -> None:
    """Write ``op(a) op(b) + bias + plus`` to ``out``, a matrix or one for each of a batch.

    Parameters
    ----------
    a, b : array, shape (m, k) and (k, n), or (B, m, k) and (B, k, n)
        The operands, of one dtype and without gaps; those to be transposed have their last two
        axes swapped.
    out : array, shape (m, n) or (B, m, n)
        Where to, float32 or the dtype of the operands.
    transpose_a, transpose_b : bool, default False
        What ``op`` does.
    bias : array, shape (n,), optional
        Added to each row; float32.
    plus : array, optional
        Added to the result; like ``out``, and may be ``out``.
    precision : str, default "float32"
        ``"tf32"`` where float32 operands may be rounded; else the dtype says it.
    xp : module
        The array module.
    """
    PRODUCTS.get(xp.__name__, by_the_module)(
        a, b, out, transpose_a, transpose_b, bias, plus, precision, xp
    )


def by_the_module(
    a: Array,
    b: Array,
    out: Array,
    transpose_a: bool,
    transpose_b: bool,
    bias: Array | None,
    plus: Array | None,
    precision: str,
    xp: ArrayModule,
) -> None:
    """Do as :func:`multiply` by the operators of the array module."""
    left, right = (_widened(each, precision, xp) for each in (a, b))
    left = left.swapaxes(-1, -2) if transpose_a else left
    right = right.swapaxes(-1, -2) if transpose_b else right
    product = left @ right
    if bias is not None:
        product += bias
    if plus is not None:
        product += _widened(plus, "float32", xp)
    out[...] = stored(product, PRECISIONS[out.dtype.name], xp=xp)


def gradients(
    dy: Array,
    x: Array,
    dweight: Array,
    dbias: Array,
    *,
    adds: bool,
    precision: str = "float32",
    xp: ArrayModule,
) -> None:
    """Write the gradients of an affine map: ``dy^T x``, and the sums over the rows of ``dy``.

    Parameters
    ----------
    dy, x : array, shape (rows, D_out) and (rows, D_in)
        The gradient of its output, and its input, of one dtype and without gaps.
    dweight, dbias : array, shape (D_out, D_in) and (D_out,)
        Where to; float32, without gaps.
    adds : bool
        Whether they are added to what lies there.
    precision : str, default "float32"
        As for :func:`multiply`.
    xp : module
        The array module.
    """
    at_once = SUMMED.get(xp.__name__)
    if at_once is None or not at_once(dy, x, dweight, dbias, adds, xp):
        gradients_apart(dy, x, dweight, dbias, adds, precision, xp)


def gradients_apart(
    dy: Array,
    x: Array,
    dweight: Array,
    dbias: Array,
    adds: bool,
    precision: str,
    xp: ArrayModule,
) -> None:
    """Do as :func:`gradients` by a product, and a kernel that reads ``dy`` once more."""
    plus = dweight if adds else None
    multiply(dy, x, dweight, transpose_a=True, plus=plus, precision=precision, xp=xp)
    add_column_sums(dy, dbias, adds=adds, xp=xp)


def _widened(x: Array, precision: str, xp: ArrayModule) -> Array:
    kind = PRECISIONS[x.dtype.name]
    return operand(x, precision if kind == "float32" else kind, xp=xp)


Product = Callable[[Array, Array, Array, bool, bool, Array | None, Array | None, str, Any], None]
PRODUCTS: dict[str, Product] = {}
"""What multiplies the arrays of an array module, by its name; others multiply by themselves."""

SUMMED: dict[str, Callable[[Array, Array, Array, Array, bool, Any], bool]] = {}
"""What does as :func:`gradients` by one product, or returns that it did not; see ``_lt_sums``."""


class ThroughGelu(Protocol):
    """Products that go through a tanh GELU on their way; see ``_lt_gelu``."""

    def pay(
        self, x: Array, fc1: Array, bias: Array, fc2: Array, keep: bool, xp: ArrayModule
    ) -> bool:
        """Return whether they are there, and faster than a kernel after each product."""

    def forward(
        self, x: Array, fc1: Array, bias: Array, keep: bool, xp: ArrayModule
    ) -> tuple[Array, Array | None]:
        """Return what comes out of the GELU, and what it is of if that is kept."""

    def backward(
        self, dy: Array, fc2: Array, before: Array, dbias: Array, xp: ArrayModule
    ) -> Array:
        """Return the gradient of what the GELU is of, and add its sums to ``dbias``."""


GELU: dict[str, ThroughGelu] = {}
"""What has them for the arrays of an array module, by its name."""
