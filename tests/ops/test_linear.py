"""The affine map against a plain loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vitkit import ops
from vitkit.backend import ArrayModule, to_numpy
from vitkit.testing import assert_close


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("size", [1, 3, 31, 32, 33])
@pytest.mark.parametrize("with_bias", [True, False])
def test_value(
    size: int, with_bias: bool, dtype: str, xp: ArrayModule, rng: np.random.Generator, bring: Any
) -> None:
    x, w, b = (rng.standard_normal(s).astype(dtype) for s in [(2, 3, size), (5, size), (5,)])
    bias = bring(b, dtype) if with_bias else None
    y = ops.linear(bring(x, dtype), bring(w, dtype), bias, xp=xp)
    assert y.dtype == dtype
    expected = np.zeros((2, 3, 5))
    for i, j, k in np.ndindex(2, 3, 5):
        total = sum(float(x[i, j, c]) * float(w[k, c]) for c in range(size))
        expected[i, j, k] = total + (float(b[k]) if with_bias else 0)
    assert_close(y, expected, reduction=size)


@pytest.mark.parametrize("lead", [(), (1,), (4,), (2, 3), (2, 3, 2)])
@pytest.mark.parametrize(("dim_in", "dim_out"), [(1, 1), (3, 33), (32, 31)])
def test_gradient(
    lead: tuple[int, ...],
    dim_in: int,
    dim_out: int,
    xp: ArrayModule,
    rng: np.random.Generator,
    gradient_error: Any,
) -> None:
    error = gradient_error(
        lambda x, w, b: ops.linear(x, w, b, xp=xp),
        lambda dy, x, w, b: ops.linear_backward(dy, x, w, xp=xp),
        *(rng.standard_normal(shape) for shape in [(*lead, dim_in), (dim_out, dim_in), (dim_out,)]),
    )
    assert error < 1e-6


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_gradients_keep_shape_and_dtype(dtype: str, xp: ArrayModule, bring: Any) -> None:
    x, w = bring(np.ones((2, 3, 4)), dtype), bring(np.ones((5, 4)), dtype)
    dx, dw, db = ops.linear_backward(bring(np.ones((2, 3, 5)), dtype), x, w, xp=xp)
    assert (dx.shape, dw.shape, db.shape) == ((2, 3, 4), (5, 4), (5,))
    assert dx.dtype == dw.dtype == db.dtype == dtype


def test_rows_of_a_view(xp: ArrayModule, rng: np.random.Generator, bring: Any) -> None:
    x, w = rng.standard_normal((4, 3, 6)), rng.standard_normal((2, 6))
    view = bring(x.transpose(1, 2, 0)).transpose(2, 0, 1)[:, ::2]
    assert_close(ops.linear(view, bring(w), None, xp=xp), x[:, ::2] @ w.T)


@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_huge_and_tiny(scale: float, xp: ArrayModule, bring: Any) -> None:
    x, w = bring(np.full((2, 3), scale), "float32"), bring(np.eye(3), "float32")
    y = ops.linear(x, w, bring(np.zeros(3), "float32"), xp=xp)
    np.testing.assert_array_equal(to_numpy(y), to_numpy(x))
    dx, dw, db = ops.linear_backward(x, bring(np.eye(3)[:2], "float32"), w, xp=xp)
    assert_close(dx, np.full((2, 3), scale))
    assert_close(dw, np.full((3, 3), scale) * [1, 1, 0])
    assert_close(db, np.full(3, 2 * scale))


def test_empty_batch(xp: ArrayModule, bring: Any) -> None:
    x, w, b = bring(np.zeros((0, 4, 3))), bring(np.ones((5, 3))), bring(np.ones(5))
    y = ops.linear(x, w, b, xp=xp)
    assert y.shape == (0, 4, 5)
    dx, dw, db = ops.linear_backward(y, x, w, xp=xp)
    assert dx.shape == x.shape
    np.testing.assert_array_equal(to_numpy(dw), np.zeros((5, 3)))
    np.testing.assert_array_equal(to_numpy(db), np.zeros(5))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_without_the_gradient_of_the_input(
    dtype: str, xp: ArrayModule, rng: np.random.Generator, bring: Any
) -> None:
    dy, x, w = (bring(rng.standard_normal(s), dtype) for s in [(7, 5), (7, 3), (5, 3)])
    dx, *others = ops.linear_backward(dy, x, w, input_gradient=False, xp=xp)
    assert dx is None
    for found, expected in zip(others, ops.linear_backward(dy, x, w, xp=xp)[1:], strict=True):
        np.testing.assert_array_equal(to_numpy(found), to_numpy(expected))


ROUNDING = {"tf32": 2.0**-11, "bfloat16": 2.0**-8, "float16": 2.0**-11}


@pytest.mark.parametrize("precision", ROUNDING)
def test_operands_are_rounded(
    precision: str, xp: ArrayModule, rng: np.random.Generator, bring: Any
) -> None:
    dy, x, w, b = (rng.standard_normal(s).astype("float32") for s in [(9, 5), (9, 33), (5, 33), 5])
    given = [bring(each, "float32") for each in (dy, x, w, b)]
    with ops.reference_only():
        y = ops.linear(*given[1:], precision=precision, xp=xp)
        found = [y, *ops.linear_backward(*given[:3], precision=precision, xp=xp)]
        exact = [ops.linear(*given[1:], xp=xp), *ops.linear_backward(*given[:3], xp=xp)]
    sizes = [
        abs(x) @ abs(w).T + abs(b),
        abs(dy) @ abs(w),
        abs(dy).T @ abs(x),
        abs(dy).sum(axis=0),
    ]  # what each sum is made of: both factors of a term may be rounded
    for got, wanted, size in zip(found, exact, sizes, strict=True):
        difference = abs(to_numpy(got) - to_numpy(wanted))
        assert (difference <= 2.1 * ROUNDING[precision] * size).all()
        assert difference.max() > 0
