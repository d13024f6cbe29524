"""What the two branches of a block have in common, beside the kernels themselves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from vitkit.backend import Array
from vitkit.kernels.cpu._arrays import column, plain, rows, served
from vitkit.kernels.cpu._gradients import (
    GRADIENT_SCRATCH,
    PAIRS_SCRATCH,
    add_weight_gradient,
    add_weight_gradient_pairs,
)
from vitkit.kernels.cpu._memory import empty, scratch
from vitkit.kernels.cpu._pairs import SIDE
from vitkit.kernels.cpu._panels import packed
from vitkit.kernels.cpu._processor import why_no_bfloat16
from vitkit.kernels.cpu._products import converted, norm_backward_product, room
from vitkit.kernels.cpu._threads import parts, threads


def gains_of(gain: np.ndarray | None, x: np.ndarray) -> np.ndarray:
    """Return the gain of each sample as an array in any case."""
    return np.ones(len(x), np.float32) if gain is None else plain(gain)


def dtype_of(precision: str) -> Any:
    """Return the dtype of what lies between two products."""
    return np.uint16 if precision == "bfloat16" else np.float32


def serves(
    x: Array, widths: tuple[int, ...], precision: str, arrays: Iterable[Array | None]
) -> bool:
    """Whether the kernels serve a branch with these float32 arrays, and tiles these widths."""
    if not served(x, *(array for array in arrays if array is not None)):
        return False
    if precision == "float32":
        return True
    if precision != "bfloat16":
        return False
    whole = all(width % SIDE == 0 for width in widths)
    return not why_no_bfloat16() and whole and x.shape[0] * x.shape[1] >= SIDE


def holds(arrays: Iterable[Array], precision: str) -> bool:
    """Whether arrays kept between products are what the kernels of this precision keep."""
    return all(
        isinstance(array, np.ndarray) and array.dtype == dtype_of(precision) for array in arrays
    )


def can_add_to(grads: Iterable[Array]) -> bool:
    """Whether kernels can add to gradients where they lie."""
    return all(grad.flags.c_contiguous and grad.flags.writeable for grad in grads)


def gained(dy: np.ndarray, gain: np.ndarray | None, precision: str) -> np.ndarray:
    """Return ``dy`` (B N, D) times the gain of each sample, as the products want it."""
    if gain is None and precision == "float32":
        return rows(dy)
    y = empty((dy.shape[0] * dy.shape[1], dy.shape[2]), dtype_of(precision))
    converted(rows(dy), gains_of(gain, dy), dy.shape[1], y, threads())
    return y


def add_gradients(dy: np.ndarray, x: np.ndarray, dweight: np.ndarray, dbias: np.ndarray) -> None:
    """Add to the gradients of an affine map's weight and bias."""
    if dy.dtype == np.uint16:
        add_weight_gradient_pairs(dy, x, dweight, dbias, scratch(PAIRS_SCRATCH), threads())
    else:
        add_weight_gradient(dy, x, dweight, dbias, scratch(GRADIENT_SCRATCH), threads())


def through_norm(
    dy: np.ndarray,
    weight: np.ndarray,
    x: np.ndarray,
    weights: Any,
    mean: np.ndarray,
    rstd: np.ndarray,
    skip: np.ndarray,
    grads: Any,
    precision: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Take a gradient through a branch's first affine map and norm, and add the residual's.

    Returns
    -------
    dx : array, shape (B, N, D)
        The gradient of the branch's input.
    u : array, shape (B N, D)
        The layer norm of the input, of which the affine map's weight needs the values.
    """
    dx, u = empty(x.shape), empty((x.shape[0] * x.shape[1], x.shape[2]), dy.dtype)
    sums = empty((parts(len(dy)), 2, x.shape[2]))
    norm_backward_product(
        dy,
        packed(weight, precision),
        rows(x),
        plain(weights.norm_weight),
        plain(weights.norm_bias),
        column(mean),
        column(rstd),
        rows(skip),
        rows(dx),
        u,
        sums,
        scratch(room(x.shape[2])),
        parts(len(dy)),
    )
    dnorm_weight, dnorm_bias = grads.norm_weight, grads.norm_bias
    dnorm_weight += sums[:, 0].sum(axis=0)
    dnorm_bias += sums[:, 1].sum(axis=0)
    return dx, u
