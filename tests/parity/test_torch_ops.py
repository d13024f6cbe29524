"""Every operation against PyTorch: its value and every gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vitkit import ops
from vitkit.backend import Array, philox, to_numpy
from vitkit.ops.attention_branch import AttentionArrays
from vitkit.ops.mlp import MLPArrays
from vitkit.ops.patches import Size


@pytest.mark.parametrize("rows", [(), (1,), (5,), (3, 7)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_linear(rows: tuple[int, ...], has_bias: bool, parity: Any) -> None:
    functional = parity.torch.nn.functional
    longest = 21  # terms: 19 inputs forward; 11 outputs or up to 21 rows backward
    (x, tx), (w, tw) = parity.normal(*rows, 19), parity.normal(11, 19)
    b, tb = parity.normal(11) if has_bias else (None, None)
    y, ty = ops.linear(x, w, b, xp=parity.xp), functional.linear(tx, tw, tb)
    parity.close(y, ty, reduction=longest, what="y")
    dy, tdy = parity.normal(*rows, 11)
    ty.backward(tdy)
    dx, dw, db = ops.linear_backward(dy, x, w, xp=parity.xp)
    parity.close(dx, tx.grad, reduction=longest, what="dx")
    parity.close(dw, tw.grad, reduction=longest, what="dw")
    if has_bias:
        parity.close(db, tb.grad, reduction=longest, what="db")


@pytest.mark.parametrize("shape", [(1, 13), (6, 13), (3, 5, 13), (2, 3, 4, 13)])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_layer_norm(shape: tuple[int, ...], offset: float, parity: Any) -> None:
    longest = 24  # terms: 13 in a row, up to 24 rows
    eps = 1e-6
    x, tx = parity.leaf(parity.rng.standard_normal(shape) + offset)
    (w, tw), (b, tb) = parity.normal(13), parity.normal(13)
    y, mean, rstd = ops.layer_norm(x, w, b, eps, xp=parity.xp)
    ty = parity.torch.nn.functional.layer_norm(tx, (13,), tw, tb, eps)
    parity.close(y, ty, reduction=longest, what="y")
    parity.close(mean, tx.mean(dim=-1, keepdim=True), reduction=longest, what="mean")
    spread = tx.var(dim=-1, keepdim=True, unbiased=False) + eps
    parity.close(rstd, 1 / spread.sqrt(), reduction=longest, what="rstd")
    dy, tdy = parity.normal(*shape)
    ty.backward(tdy)
    dx, dw, db = ops.layer_norm_backward(dy, x, w, mean, rstd, xp=parity.xp)
    parity.close(dx, tx.grad, reduction=longest, what="dx")
    parity.close(dw, tw.grad, reduction=longest, what="dw")
    parity.close(db, tb.grad, reduction=longest, what="db")


ACTIVATIONS: dict[str, tuple[Callable[..., Array], Callable[..., Array], Callable[..., Any]]] = {
    "gelu": (ops.gelu, ops.gelu_backward, lambda t, x: t.nn.functional.gelu(x)),
    "gelu_tanh": (
        ops.gelu_tanh,
        ops.gelu_tanh_backward,
        lambda t, x: t.nn.functional.gelu(x, approximate="tanh"),
    ),
    "relu": (ops.relu, ops.relu_backward, lambda t, x: t.nn.functional.relu(x)),
    "silu": (ops.silu, ops.silu_backward, lambda t, x: t.nn.functional.silu(x)),
    "quick_gelu": (
        ops.quick_gelu,
        ops.quick_gelu_backward,
        lambda t, x: x * t.sigmoid(1.702 * x),
    ),
    "tanh": (ops.tanh, ops.tanh_backward, lambda t, x: t.tanh(x)),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 1e4])
def test_activation(name: str, scale: float, parity: Any) -> None:
    forward, backward, torch_forward = ACTIVATIONS[name]
    x, tx = parity.leaf(np.append(scale * parity.rng.standard_normal(400), 0.0).reshape(1, -1))
    dy, tdy = parity.normal(1, 401)
    ty = torch_forward(parity.torch, tx)
    ty.backward(tdy)
    parity.close(forward(x, xp=parity.xp), ty, reduction=1, what="y")
    parity.close(backward(dy, x, xp=parity.xp), tx.grad, reduction=1, what="dx")


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((9,), 0), ((4, 9), 1), ((4, 9), 0), ((3, 4, 5), 2), ((3, 4, 5), 1), ((2, 3, 4, 5), -1)],
)
@pytest.mark.parametrize("scale", [1.0, 30.0, 1e3])
def test_softmax(shape: tuple[int, ...], axis: int, scale: float, parity: Any) -> None:
    x, tx = parity.normal(*shape, scale=scale)
    dy, tdy = parity.normal(*shape)
    y, ty = ops.softmax(x, axis, xp=parity.xp), parity.torch.softmax(tx, axis)
    ty.backward(tdy)
    longest = shape[axis]  # terms: one row
    parity.close(y, ty, reduction=longest, what="y")
    dx = ops.softmax_backward(dy, y, axis, xp=parity.xp)
    if scale == 1:
        parity.close(dx, tx.grad, reduction=longest, what="dx")
    else:  # where every row is certain dx is nearly nothing: the difference of numbers like dy
        parity.close(dx + dy, tx.grad + tdy, reduction=longest, what="dx + dy")


@pytest.mark.parametrize(
    ("batch", "tokens", "heads", "width"), [(2, 7, 3, 5), (1, 1, 2, 3), (3, 4, 1, 6), (1, 17, 4, 2)]
)
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_multi_head_attention(
    batch: int, tokens: int, heads: int, width: int, scale: float, parity: Any
) -> None:
    torch, dim = parity.torch, heads * width
    longest = max(tokens, width)  # terms: channels in a score, tokens in a sum of values
    qkv, tqkv = parity.normal(batch, tokens, 3 * dim, scale=scale)
    y, *stats = ops.multi_head_attention(qkv, heads, xp=parity.xp)
    q, k, v = (part.unflatten(-1, (heads, width)).transpose(1, 2) for part in tqkv.chunk(3, -1))
    ty = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    ty = ty.transpose(1, 2).flatten(2)
    parity.close(y, ty, reduction=longest, what="y")
    scores = q @ k.transpose(-1, -2) / width**0.5
    parity.close(stats[0] + stats[1], scores.logsumexp(dim=-1), reduction=longest, what="lse")
    weights = ops.attention_weights(qkv, heads, xp=parity.xp)
    parity.close(weights, scores.softmax(dim=-1), reduction=longest, what="weights")
    dy, tdy = parity.normal(batch, tokens, dim)
    ty.backward(tdy)
    dqkv = ops.multi_head_attention_backward(dy, qkv, y, *stats, xp=parity.xp)
    parity.close(dqkv, tqkv.grad, reduction=longest, what="dqkv")


def branch_parameters(parity: Any, width: int, hidden: int, last: int) -> tuple[Any, Any]:
    """Return the parameters of a branch, as arrays and as tensors; products stay near 1."""
    shapes = [(width,), (width,), (hidden, width), (hidden,), (width, last), (width,)]
    drawn = [parity.normal(*shape, scale=shape[-1] ** -0.5) for shape in shapes]
    return [array for array, _ in drawn], [tensor for _, tensor in drawn]


def compare_backward(
    parity: Any,
    backward: Callable[..., Array],
    kind: Any,
    x: Any,
    y: Any,
    kept: Any,
    weights: Any,
    gain: Array,
    longest: int,
) -> None:
    """Compare every gradient of a branch; each of the pairs holds an array and a tensor."""
    dy, tdy = parity.normal(*x[0].shape)
    y.backward(tdy)
    grads = kind(*(parity.xp.zeros_like(array) for array in weights[0]))
    dx = backward(dy, x[0], kept, kind(*weights[0]), grads, gain, "float32", xp=parity.xp)
    parity.close(dx, x[1].grad, reduction=longest, what="dx")
    for name, grad, tensor in zip(kind._fields, grads, weights[1], strict=True):
        parity.close(grad, tensor.grad, reduction=longest, what=name)


@pytest.mark.parametrize(("batch", "tokens", "width", "hidden"), [(1, 1, 4, 7), (3, 13, 24, 40)])
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_mlp_branch(
    batch: int, tokens: int, width: int, hidden: int, activation: str, parity: Any
) -> None:
    functional, longest = parity.torch.nn.functional, max(batch * tokens, hidden)
    (x, tx), (gain, tgain) = parity.normal(batch, tokens, width), parity.normal(batch)
    weights, tensors = branch_parameters(parity, width, hidden, hidden)
    norm_weight, norm_bias, weight1, bias1, weight2, bias2 = tensors
    u = functional.layer_norm(tx, (width,), norm_weight, norm_bias, 1e-6)
    form = "tanh" if activation == "gelu_tanh" else "none"
    h = functional.gelu(functional.linear(u, weight1, bias1), approximate=form)
    ty = tx + tgain[:, None, None] * functional.linear(h, weight2, bias2)
    y, kept = ops.mlp_branch(
        x, MLPArrays(*weights), 1e-6, activation, gain, "float32", True, xp=parity.xp
    )
    parity.close(y, ty, reduction=longest, what="y")
    backward = ops.mlp_branch_backward_inplace
    both = (weights, tensors)
    compare_backward(parity, backward, MLPArrays, (x, tx), ty, kept, both, gain, longest)


@pytest.mark.parametrize(
    ("batch", "tokens", "heads", "width"), [(1, 1, 2, 3), (2, 7, 3, 5), (2, 33, 2, 16)]
)
def test_attention_branch(batch: int, tokens: int, heads: int, width: int, parity: Any) -> None:
    functional, dim = parity.torch.nn.functional, heads * width
    longest = max(batch * tokens, 3 * dim)
    (x, tx), (gain, tgain) = parity.normal(batch, tokens, dim), parity.normal(batch)
    weights, tensors = branch_parameters(parity, dim, 3 * dim, dim)
    norm_weight, norm_bias, weight1, bias1, weight2, bias2 = tensors
    u = functional.layer_norm(tx, (dim,), norm_weight, norm_bias, 1e-6)
    qkv = functional.linear(u, weight1, bias1)
    q, k, v = (part.unflatten(-1, (heads, width)).transpose(1, 2) for part in qkv.chunk(3, -1))
    mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    ty = tx + tgain[:, None, None] * functional.linear(mixed, weight2, bias2)
    y, kept = ops.attention_branch(
        x, AttentionArrays(*weights), heads, 1e-6, gain, "float32", True, xp=parity.xp
    )
    parity.close(y, ty, reduction=longest, what="y")
    backward = ops.attention_branch_backward_inplace
    both = (weights, tensors)
    compare_backward(parity, backward, AttentionArrays, (x, tx), ty, kept, both, gain, longest)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["dropout", "drop_path"])
def test_dropout(kind: str, rate: float, parity: Any) -> None:
    forward, backward = {
        "dropout": (ops.dropout, ops.dropout_backward),
        "drop_path": (ops.drop_path, ops.drop_path_backward),
    }[kind]
    shape, key = (6, 7, 5), (3, 4, 5)
    (x, tx), (dy, tdy) = parity.normal(*shape), parity.normal(*shape)
    drawn = shape if kind == "dropout" else (6, 1, 1)
    kept = philox(3, "dropout", 4, 5).random(drawn, np.float32) >= rate
    ty = tx * parity.torch.tensor(kept.astype(parity.dtype)) / (1 - rate)
    ty.backward(tdy)
    parity.close(forward(x, rate, key, xp=parity.xp), ty, reduction=1, what="y")
    parity.close(backward(dy, rate, key, xp=parity.xp), tx.grad, reduction=1, what="dx")


PATCHES = [((8, 8), (4, 4), 3), ((6, 12), (3, 4), 2), ((5, 7), (5, 1), 1), ((4, 4), (1, 1), 4)]


@pytest.mark.parametrize(("image_size", "patch_size", "channels"), PATCHES)
def test_patchify(image_size: Size, patch_size: Size, channels: int, parity: Any) -> None:
    functional = parity.torch.nn.functional
    x, tx = parity.normal(2, channels, *image_size)
    patches = ops.patchify(x, patch_size, xp=parity.xp)
    unfolded = functional.unfold(tx, patch_size, stride=patch_size).transpose(1, 2)
    np.testing.assert_array_equal(to_numpy(patches), unfolded.detach().numpy())
    dy, tdy = parity.normal(*patches.shape)
    unfolded.backward(tdy)
    images = ops.unpatchify(dy, image_size, patch_size, xp=parity.xp)
    np.testing.assert_array_equal(to_numpy(images), tx.grad.numpy())


@pytest.mark.parametrize(("image_size", "patch_size", "channels"), PATCHES)
def test_patchify_and_linear_are_a_convolution(
    image_size: Size, patch_size: Size, channels: int, parity: Any
) -> None:
    xp, numbers = parity.xp, channels * patch_size[0] * patch_size[1]
    tokens = image_size[0] * image_size[1] // (patch_size[0] * patch_size[1])
    longest = max(numbers, 7, 2 * tokens)  # terms: numbers in a patch, channels, rows
    (x, tx), (b, tb) = parity.normal(2, channels, *image_size), parity.normal(7)
    w, tw = parity.normal(7, channels, *patch_size)
    patches, matrix = ops.patchify(x, patch_size, xp=xp), w.reshape(7, numbers)
    y = ops.linear(patches, matrix, b, xp=xp)
    ty = parity.torch.nn.functional.conv2d(tx, tw, tb, stride=patch_size)
    ty = ty.flatten(2).transpose(1, 2)
    parity.close(y, ty, reduction=longest, what="y")
    dy, tdy = parity.normal(*y.shape)
    ty.backward(tdy)
    dpatches, dw, db = ops.linear_backward(dy, patches, matrix, xp=xp)
    dx = ops.unpatchify(dpatches, image_size, patch_size, xp=xp)
    parity.close(dx, tx.grad, reduction=longest, what="dx")
    parity.close(dw.reshape(w.shape), tw.grad, reduction=longest, what="dw")
    parity.close(db, tb.grad, reduction=longest, what="db")


@pytest.mark.parametrize("has_cls", [True, False])
@pytest.mark.parametrize("batch", [1, 4])
def test_embed_positions(has_cls: bool, batch: int, parity: Any) -> None:
    torch = parity.torch
    patches, tpatches = parity.normal(batch, 6, 5)
    token, ttoken = parity.normal(1, 1, 5) if has_cls else (None, None)
    positions, tpositions = parity.normal(1, 6 + has_cls, 5)
    y = ops.embed_positions(patches, token, positions, xp=parity.xp)
    parts = [ttoken.expand(batch, -1, -1), tpatches] if has_cls else [tpatches]
    ty = torch.cat(parts, dim=1) + tpositions
    parity.close(y, ty, reduction=1, what="y")
    dy, tdy = parity.normal(*y.shape)
    ty.backward(tdy)
    dpatches, dtoken, dpositions = ops.embed_positions_backward(dy, has_cls, xp=parity.xp)
    parity.close(dpatches, tpatches.grad, reduction=1, what="dpatches")
    parity.close(dpositions, tpositions.grad, reduction=batch, what="dpositions")
    if has_cls:
        parity.close(dtoken, ttoken.grad, reduction=batch, what="dcls_token")
    else:
        assert dtoken is None


@pytest.mark.parametrize("kind", ["first", "mean"])
@pytest.mark.parametrize("tokens", [1, 9])
def test_pool(kind: str, tokens: int, parity: Any) -> None:
    forward, backward, torch_forward = {
        "first": (ops.pool_first, ops.pool_first_backward, lambda x: x[:, 0]),
        "mean": (ops.pool_mean, ops.pool_mean_backward, lambda x: x.mean(dim=1)),
    }[kind]
    (x, tx), (dy, tdy) = parity.normal(3, tokens, 5), parity.normal(3, 5)
    ty = torch_forward(tx)
    ty.backward(tdy)
    parity.close(forward(x, xp=parity.xp), ty, reduction=tokens, what="y")
    parity.close(backward(dy, tokens, xp=parity.xp), tx.grad, reduction=1, what="dx")


def test_normalize_images(parity: Any) -> None:
    pixels = parity.rng.integers(0, 256, (2, 3, 5, 4), dtype=np.uint8)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    y = ops.normalize_images(
        parity.xp.asarray(pixels), 255.0, mean, std, parity.dtype, xp=parity.xp
    )
    as_channels = [
        parity.torch.tensor(np.asarray(v, parity.dtype)).view(3, 1, 1) for v in (mean, std)
    ]
    x = parity.torch.tensor(pixels.astype(parity.dtype)) / 255
    parity.close(y, (x - as_channels[0]) / as_channels[1], reduction=1)
