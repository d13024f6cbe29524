"""Class token and positions: Eq. 1, and sums over the batch as gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vitkit import ops
from vitkit.backend import ArrayModule, to_numpy
from vitkit.testing import assert_close


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("count", [1, 3, 31, 32, 33])
@pytest.mark.parametrize("has_cls", [True, False])
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_value(
    batch: int,
    has_cls: bool,
    count: int,
    dtype: str,
    xp: ArrayModule,
    rng: np.random.Generator,
    bring: Any,
) -> None:
    patches = rng.standard_normal((batch, count, 4)).astype(dtype)
    cls_token = rng.standard_normal((1, 1, 4)).astype(dtype)
    positions = rng.standard_normal((1, count + has_cls, 4)).astype(dtype)
    tokens = ops.embed_positions(
        bring(patches, dtype),
        bring(cls_token, dtype) if has_cls else None,
        bring(positions, dtype),
        xp=xp,
    )
    expected = np.zeros((batch, count + has_cls, 4))
    for b, n, d in np.ndindex(expected.shape):
        first = has_cls and n == 0
        token = cls_token[0, 0, d] if first else patches[b, n - has_cls, d]
        expected[b, n, d] = float(token) + float(positions[0, n, d])
    assert tokens.dtype == dtype
    assert_close(tokens, expected)
    gradients = ops.embed_positions_backward(tokens, has_cls, xp=xp)
    shapes = [patches.shape, (1, 1, 4) if has_cls else None, positions.shape]
    assert [None if g is None else g.shape for g in gradients] == shapes
    assert {g.dtype for g in gradients if g is not None} == {np.dtype(dtype)}
    if batch == 0:
        assert not to_numpy(gradients[2]).any()


@pytest.mark.parametrize("count", [1, 5, 33])
def test_gradient_with_a_class_token(
    count: int, xp: ArrayModule, rng: np.random.Generator, gradient_error: Any
) -> None:
    error = gradient_error(
        lambda *arrays: ops.embed_positions(*arrays, xp=xp),
        lambda dy, *_: ops.embed_positions_backward(dy, True, xp=xp),
        *(rng.standard_normal(shape) for shape in [(3, count, 4), (1, 1, 4), (1, count + 1, 4)]),
    )
    assert error < 1e-6


@pytest.mark.parametrize("count", [1, 5, 33])
def test_gradient_without_a_class_token(
    count: int, xp: ArrayModule, rng: np.random.Generator, gradient_error: Any
) -> None:
    error = gradient_error(
        lambda x, p: ops.embed_positions(x, None, p, xp=xp),
        lambda dy, *_: ops.embed_positions_backward(dy, False, xp=xp)[::2],
        *(rng.standard_normal(shape) for shape in [(3, count, 4), (1, count, 4)]),
    )
    assert error < 1e-6


def test_positions_change_every_token_and_get_a_gradient_from_each(
    xp: ArrayModule, bring: Any
) -> None:
    # The seed's positions never moved.
    dy = np.arange(24.0).reshape(2, 3, 4)
    _, dcls, dpos = ops.embed_positions_backward(bring(dy), True, xp=xp)
    np.testing.assert_array_equal(to_numpy(dpos), dy[:1] + dy[1:])
    np.testing.assert_array_equal(to_numpy(dcls), dy[:1, :1] + dy[1:, :1])


@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_huge_and_tiny(scale: float, xp: ArrayModule, bring: Any) -> None:
    parts = [bring(np.full(s, scale), "float32") for s in [(2, 3, 4), (1, 1, 4), (1, 4, 4)]]
    tokens = ops.embed_positions(*parts, xp=xp)
    assert_close(tokens, np.full((2, 4, 4), 2 * scale))
    assert_close(
        ops.embed_positions_backward(tokens, True, xp=xp)[2], np.full((1, 4, 4), 4 * scale)
    )
