"""Layer normalization against a plain loop."""

from __future__ import annotations

import math
import statistics
from typing import Any

import numpy as np
import pytest

from vitkit import ops
from vitkit.backend import ArrayModule, to_numpy
from vitkit.testing import assert_close

EPS = 1e-6


def layer_norm_loop(row: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> list[float]:
    values = [float(x) for x in row]
    mean = statistics.fmean(values)
    spread = math.sqrt(statistics.fmean((x - mean) ** 2 for x in values) + EPS)
    return [
        (x - mean) / spread * float(w) + float(b)
        for x, w, b in zip(values, weight, bias, strict=True)
    ]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("size", [1, 3, 31, 32, 33])
def test_value(
    size: int, dtype: str, xp: ArrayModule, rng: np.random.Generator, bring: Any
) -> None:
    x, w, b = (rng.standard_normal(shape).astype(dtype) for shape in [(2, 3, size), size, size])
    x += 1
    arrays = [bring(a, dtype) for a in (x, w, b)]
    y, mean, rstd = ops.layer_norm(*arrays, EPS, xp=xp)
    assert y.dtype == mean.dtype == rstd.dtype == dtype
    rows = [layer_norm_loop(row, w, b) for row in x.reshape(-1, size)]
    assert_close(y, np.asarray(rows).reshape(x.shape), reduction=size)
    assert mean.shape == rstd.shape == (2, 3, 1)
    assert_close(mean[..., 0], x.astype(float).mean(axis=-1), reduction=size)
    variance = x.astype(float).var(axis=-1)
    assert_close(rstd[..., 0], 1 / np.sqrt(variance + EPS), reduction=size)


@pytest.mark.parametrize("lead", [(1,), (4,), (2, 3), (2, 3, 2)])
@pytest.mark.parametrize("size", [2, 3, 31, 33])
def test_gradient(
    lead: tuple[int, ...], size: int, xp: ArrayModule, rng: np.random.Generator, gradient_error: Any
) -> None:
    # A weight far from constant: pulling it out of the row sums is the ancestors' mistake.
    x, w, b = rng.standard_normal((*lead, size)), 3 * rng.standard_normal(size), np.ones(size)

    def backward(dy: Any, x: Any, w: Any, b: Any) -> Any:
        _, mean, rstd = ops.layer_norm(x, w, b, EPS, xp=xp)
        return ops.layer_norm_backward(dy, x, w, mean, rstd, xp=xp)

    error = gradient_error(
        lambda x, w, b: ops.layer_norm(x, w, b, EPS, xp=xp)[0], backward, x, w, b
    )
    assert error < 1e-6


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_gradients_keep_shape_and_dtype(dtype: str, xp: ArrayModule, bring: Any) -> None:
    x, w, b = bring(np.arange(24).reshape(2, 3, 4), dtype), bring([1, 2, 3, 4], dtype), None
    b = bring(np.zeros(4), dtype)
    y, mean, rstd = ops.layer_norm(x, w, b, EPS, xp=xp)
    dx, dw, db = ops.layer_norm_backward(y, x, w, mean, rstd, xp=xp)
    assert (dx.shape, dw.shape, db.shape) == ((2, 3, 4), (4,), (4,))
    assert dx.dtype == dw.dtype == db.dtype == dtype


def test_a_row_s_gradient_is_orthogonal_to_ones_and_to_the_row(
    xp: ArrayModule, rng: np.random.Generator, bring: Any
) -> None:
    # Shifting or scaling a row changes nothing, so the gradient has no part along either.
    x, w = rng.standard_normal((5, 16)), bring(rng.standard_normal(16))
    _, mean, rstd = ops.layer_norm(bring(x), w, bring(np.zeros(16)), 0.0, xp=xp)
    dy = bring(rng.standard_normal((5, 16)))
    dx = to_numpy(ops.layer_norm_backward(dy, bring(x), w, mean, rstd, xp=xp)[0])
    assert_close(dx.sum(axis=1) + 1, np.ones(5))
    assert_close((dx * x).sum(axis=1) + 1, np.ones(5))


@pytest.mark.parametrize("scale", [1e15, 1e-30])
def test_huge_and_tiny(scale: float, xp: ArrayModule, rng: np.random.Generator, bring: Any) -> None:
    # The variance of float32 numbers above about 1e19 is infinite; so it is in PyTorch.
    host = rng.standard_normal((3, 32)) * scale
    w, b = bring(np.ones(32), "float32"), bring(np.zeros(32), "float32")
    x = bring(host, "float32")
    y, mean, rstd = ops.layer_norm(x, w, b, EPS, xp=xp)
    expected = [layer_norm_loop(row, np.ones(32), np.zeros(32)) for row in to_numpy(x)]
    assert_close(y, np.asarray(expected), reduction=32)
    gradients = ops.layer_norm_backward(w + 0 * x, x, w, mean, rstd, xp=xp)
    assert all(np.isfinite(to_numpy(g)).all() for g in gradients)


def test_constant_rows_have_no_slope(xp: ArrayModule, bring: Any) -> None:
    x, w, b = bring(np.full((2, 4), 7.0)), bring(np.ones(4)), bring(np.full(4, 0.5))
    y, mean, rstd = ops.layer_norm(x, w, b, EPS, xp=xp)
    np.testing.assert_array_equal(to_numpy(y), np.full((2, 4), 0.5))
    dx = ops.layer_norm_backward(bring(np.ones((2, 4))), x, w, mean, rstd, xp=xp)[0]
    np.testing.assert_array_equal(to_numpy(dx), np.zeros((2, 4)))


def test_empty_batch(xp: ArrayModule, bring: Any) -> None:
    x, w, b = bring(np.zeros((0, 3, 4))), bring(np.ones(4)), bring(np.ones(4))
    y, mean, rstd = ops.layer_norm(x, w, b, EPS, xp=xp)
    assert y.shape == (0, 3, 4)
    dx, dw, db = ops.layer_norm_backward(y, x, w, mean, rstd, xp=xp)
    assert dx.shape == (0, 3, 4)
    assert to_numpy(dw).tolist() == to_numpy(db).tolist() == [0, 0, 0, 0]
