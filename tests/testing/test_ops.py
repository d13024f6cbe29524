"""Every operation that ships passes the kit; each planted fault is named, by the right checks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from faults_ops import FAULTS, PLANTED, RIGHT, softmax_backward, softmax_of_rows

from vitkit import kernels, ops
from vitkit.ops import Op
from vitkit.testing.check import ConformanceError, outcome_of
from vitkit.testing.ops import check_op, op_checks
from vitkit.testing.parts.array_modules import draw

kernels.load(np)
KEY = (0, 1, 2)


def rows(*shapes: tuple[int, ...]) -> Callable[[int], tuple[np.ndarray, ...]]:
    return lambda seed: tuple(draw(s, seed=10 * seed + at) for at, s in enumerate(shapes))


def of_x(backward: Op[..., Any]) -> Callable[..., Any]:
    return lambda dy, arrays, outputs, *, xp: backward(dy, *arrays, xp=xp)


def of_dy(backward: Op[..., Any], *arguments: Any) -> Callable[..., Any]:
    return lambda dy, arrays, outputs, *, xp: backward(dy, *arguments, xp=xp)


def normalized(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    spread = np.sqrt(x.var(axis=-1, keepdims=True) + 1e-6)
    return (x - x.mean(axis=-1, keepdims=True)) / spread * weight + bias


def attended(torch: Any) -> Callable[..., Any]:
    def attend(qkv: Any) -> Any:
        batch, tokens, width = qkv.shape
        q, k, v = qkv.reshape(batch, tokens, 3, 2, width // 6).permute(2, 0, 3, 1, 4)
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return y.transpose(1, 2).reshape(batch, tokens, width // 3)

    return attend


# Arguments of op_checks, by the name of the op and what is special.
OPS: dict[str, dict[str, Any]] = {
    **{
        name: {
            "op": getattr(ops, name),
            "backward": of_x(getattr(ops, f"{name}_backward")),
            "inputs": rows((3, 4)),
        }
        for name in ("gelu", "gelu_tanh", "relu", "silu", "quick_gelu", "tanh")
    },
    "softmax": {
        "op": ops.softmax,
        "backward": lambda dy, arrays, outputs, *, xp: ops.softmax_backward(dy, *outputs, xp=xp),
        "inputs": rows((3, 2, 5)),
        "reference": lambda x: np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True),
        "torch": lambda torch: partial(torch.softmax, dim=-1),
    },
    "softmax, axis 1": {
        "op": partial(ops.softmax, axis=1),
        "backward": lambda dy, arrays, outputs, *, xp: ops.softmax_backward(
            dy, *outputs, axis=1, xp=xp
        ),
        "inputs": (draw((3, 2, 5)),),
        "torch": lambda torch: partial(torch.softmax, dim=1),
    },
    "layer_norm": {
        "op": partial(ops.layer_norm, eps=1e-6),
        "backward": lambda dy, arrays, outputs, *, xp: ops.layer_norm_backward(
            dy, arrays[0], arrays[1], *outputs[1:], xp=xp
        ),
        "inputs": rows((3, 2, 5), (5,), (5,)),
        "reference": normalized,
        "torch": lambda torch: (
            lambda x, weight, bias: torch.nn.functional.layer_norm(x, (5,), weight, bias, 1e-6)
        ),
    },
    "linear": {
        "op": ops.linear,
        "backward": lambda dy, arrays, outputs, *, xp: ops.linear_backward(
            dy, arrays[0], arrays[1], xp=xp
        ),
        "inputs": rows((3, 2, 5), (4, 5), (4,)),
        "reference": lambda x, weight, bias: np.einsum("bni,oi->bno", x, weight) + bias,
        "torch": lambda torch: torch.nn.functional.linear,
    },
    "multi_head_attention": {
        "op": partial(ops.multi_head_attention, num_heads=2),
        "backward": lambda dy, arrays, outputs, *, xp: ops.multi_head_attention_backward(
            dy, *arrays, *outputs, xp=xp
        ),
        "inputs": rows((2, 3, 12)),
        "torch": attended,
    },
    "pool_first": {
        "op": ops.pool_first,
        "backward": of_dy(ops.pool_first_backward, 4),
        "inputs": rows((3, 4, 5)),
        "reference": lambda x: x[:, 0],
    },
    "pool_mean": {
        "op": ops.pool_mean,
        "backward": of_dy(ops.pool_mean_backward, 4),
        "inputs": rows((3, 4, 5)),
        "torch": lambda torch: partial(torch.mean, dim=1),
    },
    "embed_positions": {
        "op": ops.embed_positions,
        "backward": of_dy(ops.embed_positions_backward, True),
        "inputs": rows((3, 4, 5), (1, 1, 5), (1, 5, 5)),
    },
    "embed_positions, no class token": {
        "op": lambda patches, pos_embed, *, xp: ops.embed_positions(
            patches, None, pos_embed, xp=xp
        ),
        "backward": lambda dy, arrays, outputs, *, xp: ops.embed_positions_backward(
            dy, False, xp=xp
        )[::2],
        "inputs": rows((3, 4, 5), (1, 4, 5)),
        "reference": lambda patches, pos_embed: patches + pos_embed,
    },
    "patchify": {
        "op": partial(ops.patchify, patch_size=(2, 3)),
        "backward": of_dy(ops.unpatchify, (4, 6), (2, 3)),
        "inputs": rows((2, 3, 4, 6)),
        "torch": lambda torch: (
            lambda x: torch.nn.functional.unfold(x, (2, 3), stride=(2, 3)).transpose(1, 2)
        ),
    },
    "unpatchify": {
        "op": partial(ops.unpatchify, image_size=(4, 6), patch_size=(2, 3)),
        "backward": of_dy(ops.patchify, (2, 3)),
        "inputs": rows((2, 4, 18)),
    },
    "dropout": {
        "op": partial(ops.dropout, rate=0.5, key=KEY),
        "backward": of_dy(ops.dropout_backward, 0.5, KEY),
        "inputs": rows((3, 4)),
    },
    "drop_path": {
        "op": partial(ops.drop_path, rate=0.5, key=KEY),
        "backward": of_dy(ops.drop_path_backward, 0.5, KEY),
        "inputs": rows((5, 4)),
    },
    "normalize_images": {
        "op": lambda x, *, xp: ops.normalize_images(x, 255, (1, 2), (3, 4), x.dtype, xp=xp),
        "backward": lambda dy, arrays, outputs, *, xp: (
            dy / xp.asarray([[[255 * 3.0]], [[255 * 4.0]]], dy.dtype)
        ),
        "inputs": rows((2, 2, 3, 3)),
    },
    "softmax_cross_entropy": {
        "op": ops.softmax_cross_entropy,
        "backward": lambda dy, arrays, outputs, *, xp: (dy * outputs[1], None),
        "inputs": (draw((4, 3)), np.array([0, 2, 1, 1])),
        "batched": False,
        "torch": lambda torch: torch.nn.functional.cross_entropy,
    },
    "sum": {
        "op": lambda x, y, *, xp: x + y,
        "backward": lambda dy, arrays, outputs, *, xp: (dy, dy),
        "inputs": rows((3, 4), (3, 4)),
        "batched": 2,
    },
}
# They return their gradient, or nothing can be learned behind them.
WITHOUT = {
    *("mean_squared_error", "sigmoid_bce", "attention_weights", "global_norm"),
    *("attention_branch", "mlp_branch"),  # take arrays by name, and add to gradients in place
}


@pytest.mark.parametrize("name", OPS)
def test_what_ships_passes(name: str) -> None:
    outcomes = [outcome_of(check) for check in op_checks(**OPS[name])]
    assert [o for o in outcomes if o.passed is False] == []
    skipped = [o.message for o in outcomes if o.passed is None]
    assert all("GPU" in message or "not installed" in message for message in skipped)


def test_every_op_with_a_gradient_is_here() -> None:
    pure = {name for name, value in vars(ops).items() if isinstance(value, Op)}
    pure = {name for name in pure if not name.endswith(("_backward", "_inplace"))}
    assert pure - {name.partition(",")[0] for name in OPS} == WITHOUT


@pytest.mark.parametrize("name", RIGHT)
def test_the_right_version_of_the_faults_passes(name: str) -> None:
    check_op(**RIGHT[name].arguments)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(fault: str) -> None:
    check, message = FAULTS[fault]
    with pytest.raises(ConformanceError, match=message) as caught:
        check()
    assert set(caught.value.failures) == PLANTED[fault].fails, caught.value


def test_torch_too_knows_the_right_axis() -> None:
    pytest.importorskip("torch")
    backward, twin = partial(softmax_backward, axis=1), OPS["softmax"]["torch"]
    words = "over the wrong axis: softmax_of_rows computes along axis 1 of x, its PyTorch twin"
    with pytest.raises(ConformanceError, match=f"(?i){words}") as caught:
        check_op(softmax_of_rows, backward, rows((3, 4, 5)), torch=twin)
    assert set(caught.value.failures) == {"PyTorch twin"}


def test_items_that_must_see_each_other_may() -> None:
    def centred(x: Any, *, xp: Any) -> Any:
        return x - x.mean(axis=0)

    def backward(dy: Any, arrays: Any, outputs: Any, *, xp: Any) -> Any:
        return dy - dy.mean(axis=0)

    check_op(centred, backward, rows((3, 4)), batched=False)
    with pytest.raises(ConformanceError, match="pass batched=False"):
        check_op(centred, backward, rows((3, 4)))


def test_one_item_shows_nothing_of_others() -> None:
    checks = op_checks(ops.gelu, of_x(ops.gelu_backward), rows((1, 4)))
    (apart,) = (outcome_of(check) for check in checks if check.name == "items apart")
    assert apart.passed is None
    assert "at least two items" in apart.message


def test_inputs_must_be_float64() -> None:
    with pytest.raises(ConformanceError, match="x is float32; pass float64"):
        check_op(ops.gelu, of_x(ops.gelu_backward), (np.ones((2, 3), "float32"),))
