"""Multi-head attention against a plain loop over batch, head, query and key."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from vitkit import ops
from vitkit.backend import ArrayModule, to_numpy
from vitkit.ops.attention import split_heads
from vitkit.testing import assert_close


def attention_loop(qkv: np.ndarray, num_heads: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (y, p, lse), float64; q, k, v, then head, then channel along the last axis."""
    batch, tokens, width = qkv.shape
    dim = width // 3
    size = dim // num_heads
    y, p = np.zeros((batch, tokens, dim)), np.zeros((batch, num_heads, tokens, tokens))
    lse = np.zeros((batch, num_heads, tokens))
    for b, head, i in np.ndindex(batch, num_heads, tokens):
        at = head * size
        q = qkv[b, i, at : at + size].astype(float)
        scores = []
        for j in range(tokens):
            k = qkv[b, j, dim + at : dim + at + size].astype(float)
            scores.append(float(q @ k) / math.sqrt(size))
        powers = [math.exp(score - max(scores)) for score in scores]
        lse[b, head, i] = max(scores) + math.log(sum(powers))
        for j in range(tokens):
            v = qkv[b, j, 2 * dim + at : 2 * dim + at + size].astype(float)
            p[b, head, i, j] = powers[j] / sum(powers)
            y[b, i, at : at + size] += p[b, head, i, j] * v
    return y, p, lse


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("tokens", [1, 3, 31, 32, 33])
@pytest.mark.parametrize(("num_heads", "size"), [(1, 3), (3, 2), (2, 1)])
def test_value(
    tokens: int,
    num_heads: int,
    size: int,
    dtype: str,
    xp: ArrayModule,
    rng: np.random.Generator,
    bring: Any,
) -> None:
    host = rng.standard_normal((2, tokens, 3 * num_heads * size)).astype(dtype)
    qkv = bring(host, dtype)
    y, *stats = ops.multi_head_attention(qkv, num_heads, xp=xp)
    p = ops.attention_weights(qkv, num_heads, xp=xp)
    lse = stats[0] + stats[1]
    assert y.dtype == lse.dtype == p.dtype == dtype
    expected = attention_loop(host, num_heads)
    for actual, right in zip((y, p, lse), expected, strict=True):
        assert_close(actual, right, reduction=tokens + size)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_gradient_keeps_shape_and_dtype(dtype: str, xp: ArrayModule, bring: Any) -> None:
    qkv = bring(np.linspace(-1, 1, 2 * 5 * 12).reshape(2, 5, 12), dtype)
    y, *stats = ops.multi_head_attention(qkv, 2, xp=xp)
    dqkv = ops.multi_head_attention_backward(y, qkv, y, *stats, xp=xp)
    assert dqkv.shape == qkv.shape
    assert dqkv.dtype == dtype


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("tokens", [1, 3, 33])
@pytest.mark.parametrize(("num_heads", "size"), [(1, 4), (3, 2)])
def test_gradient(
    batch: int,
    tokens: int,
    num_heads: int,
    size: int,
    xp: ArrayModule,
    rng: np.random.Generator,
    gradient_error: Any,
) -> None:
    def backward(dy: Any, qkv: Any) -> Any:
        y, *stats = ops.multi_head_attention(qkv, num_heads, xp=xp)
        return (ops.multi_head_attention_backward(dy, qkv, y, *stats, xp=xp),)

    error = gradient_error(
        lambda qkv: ops.multi_head_attention(qkv, num_heads, xp=xp)[0],
        backward,
        rng.standard_normal((batch, tokens, 3 * num_heads * size)),
    )
    assert error < 1e-6


@pytest.mark.parametrize("part", [0, 1, 2])
def test_gradient_of_queries_keys_and_values_alone(
    part: int, xp: ArrayModule, rng: np.random.Generator, gradient_error: Any
) -> None:
    parts = [rng.standard_normal((2, 5, 6)) for _ in range(3)]
    others = [xp.asarray(p) for p in parts]

    def packed(x: Any) -> Any:
        return xp.concatenate([*others[:part], x, *others[part + 1 :]], axis=-1)

    def backward(dy: Any, x: Any) -> Any:
        y, *stats = ops.multi_head_attention(packed(x), 2, xp=xp)
        dqkv = ops.multi_head_attention_backward(dy, packed(x), y, *stats, xp=xp)
        return (dqkv[..., 6 * part : 6 * part + 6],)

    error = gradient_error(
        lambda x: ops.multi_head_attention(packed(x), 2, xp=xp)[0], backward, parts[part]
    )
    assert error < 1e-6


def test_heads_are_views_in_timm_s_order(xp: ArrayModule, bring: Any) -> None:
    host = np.arange(2 * 3 * 3 * 4 * 5.0).reshape(2, 3, 60)
    parts = split_heads(bring(host), 4)
    for index, part in enumerate(parts):
        assert part.shape == (2, 4, 3, 5)
        for head in range(4):
            start = (index * 4 + head) * 5
            np.testing.assert_array_equal(to_numpy(part)[:, head], host[..., start : start + 5])


def test_equal_tokens_share_evenly_however_large(xp: ArrayModule, bring: Any) -> None:
    qkv = bring(np.full((1, 4, 6), 1e15), "float32")  # scores of 1e30
    y, *stats = ops.multi_head_attention(qkv, 1, xp=xp)
    np.testing.assert_array_equal(
        to_numpy(ops.attention_weights(qkv, 1, xp=xp)), np.full((1, 1, 4, 4), 0.25)
    )
    assert_close(y, np.full((1, 4, 2), 1e15))
    dy = bring(np.ones((1, 4, 2)), "float32")
    dqkv = to_numpy(ops.multi_head_attention_backward(dy, qkv, y, *stats, xp=xp))
    assert_close(dqkv[..., 4:], np.ones((1, 4, 2)))


@pytest.mark.parametrize("scale", [1e15, 1e-30])
def test_huge_and_tiny(scale: float, xp: ArrayModule, rng: np.random.Generator, bring: Any) -> None:
    host = (rng.standard_normal((2, 5, 12)) * scale).astype("float32")
    qkv = bring(host, "float32")
    y, *stats = ops.multi_head_attention(qkv, 2, xp=xp)
    expected, p, _ = attention_loop(host, 2)
    assert_close(y, expected, reduction=5)
    assert_close(ops.attention_weights(qkv, 2, xp=xp), p)
    dy = bring(np.ones((2, 5, 4)), "float32")
    dqkv = to_numpy(ops.multi_head_attention_backward(dy, qkv, y, *stats, xp=xp))
    assert np.isfinite(dqkv).all()
    dv = p.sum(axis=2).transpose(0, 2, 1).repeat(2, axis=2)  # p^T times ones, head by head
    assert_close(dqkv[..., 8:], dv, reduction=5)


def test_empty_batch(xp: ArrayModule, bring: Any) -> None:
    qkv = bring(np.zeros((0, 5, 12)), "float32")
    y, *stats = ops.multi_head_attention(qkv, 2, xp=xp)
    assert y.shape == (0, 5, 4)
    assert ops.multi_head_attention_backward(y, qkv, y, *stats, xp=xp).shape == (0, 5, 12)
    assert ops.attention_weights(qkv, 2, xp=xp).shape == (0, 2, 5, 5)
