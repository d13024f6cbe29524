"""The operations of vitkit by the functions of PyTorch that mean the same."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn import functional

from contenders import task
from contenders.op_cases import EMA_DECAY, LIMIT, MOMENTUM, RATE, Case, cases
from contenders.serve import Skip, Work
from contenders.sums import sums

Tensors = tuple[torch.Tensor, ...]


def prepare(mode: str, order: task.Order) -> Work:
    """Return one operation, or its gradient."""
    case = cases(order.sizes)[order.task]
    arrays = case.arrays(order.sizes.num_classes)
    t = SimpleNamespace(**{name: torch.from_numpy(array) for name, array in arrays.items()})
    t.c, t.case, t.autocast = order.sizes, case, case.precision == "bfloat16"
    run = maker(case)(t)
    if case.forward in RANDOM:
        return Work(run, lambda found: [])
    return Work(run, lambda found: sums(*(each.detach().float() for each in found)))


def maker(case: Case) -> Callable[[Any], Callable[[], Tensors]]:
    """Return what makes a case's function out of its tensors."""
    if case.op in WHOLE:
        return WHOLE[case.op]
    if case.forward not in FUNCTIONS:
        raise Skip("has no such function")
    return forward if case.op == case.forward else backward


def forward(t: Any) -> Callable[[], Tensors]:
    function, _ = FUNCTIONS[t.case.forward]

    def run() -> Tensors:
        with torch.inference_mode(), autocast(t):
            return (function(t),)

    return run


def backward(t: Any) -> Callable[[], Tensors]:
    function, names = FUNCTIONS[t.case.forward]
    inputs = [getattr(t, name).requires_grad_() for name in names]
    with autocast(t):
        y = function(t)
    return lambda: torch.autograd.grad(y, inputs, t.dy, retain_graph=True)


def autocast(t: Any) -> Any:
    return torch.autocast("cpu", torch.bfloat16, enabled=t.autocast)


def heads(t: Any, qkv: torch.Tensor) -> torch.Tensor:
    batch, tokens, width = qkv.shape
    q, k, v = qkv.reshape(batch, tokens, 3, t.c.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    y = functional.scaled_dot_product_attention(q, k, v)
    return y.transpose(1, 2).reshape(batch, tokens, width // 3)


def norm(t: Any, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return functional.layer_norm(t.x, (t.c.dim,), weight, bias, task.LAYER_NORM_EPSILON)


def mlp_branch(t: Any) -> torch.Tensor:
    h = functional.linear(norm(t, t.norm_weight, t.norm_bias), t.fc1_weight, t.fc1_bias)
    form = "tanh" if t.c.activation == "gelu_tanh" else "none"
    hidden = functional.gelu(h, approximate=form)
    return t.x + functional.linear(hidden, t.fc2_weight, t.fc2_bias)


def attention_branch(t: Any) -> torch.Tensor:
    qkv = functional.linear(norm(t, t.norm_weight, t.norm_bias), t.qkv_weight, t.qkv_bias)
    return t.x + functional.linear(heads(t, qkv), t.proj_weight, t.proj_bias)


def embed_positions(t: Any) -> torch.Tensor:
    first = t.cls_token.expand(len(t.patches), -1, -1)
    return torch.cat([first, t.patches], 1) + t.pos_embed


def patchify(t: Any) -> torch.Tensor:
    side, (batch, channels, height, width) = t.c.patch_size, t.images.shape
    x = t.images.reshape(batch, channels, height // side, side, width // side, side)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * side * side)


def unpatchify(t: Any) -> torch.Tensor:
    side, count = t.c.patch_size, t.c.image_size // t.c.patch_size
    x = t.x.reshape(len(t.x), count, count, 3, side, side)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(len(t.x), 3, t.c.image_size, t.c.image_size)


RANDOM = ("dropout",)
"""Operations that draw, and PyTorch draws other numbers: these are not compared."""
NORM = ("x", "norm_weight", "norm_bias")
FUNCTIONS: dict[str, tuple[Callable[[Any], torch.Tensor], tuple[str, ...]]] = {
    "linear": (lambda t: functional.linear(t.x, t.weight, t.bias), ("x", "weight", "bias")),
    "layer_norm": (lambda t: norm(t, t.weight, t.bias), ("x", "weight", "bias")),
    "gelu": (lambda t: functional.gelu(t.x), ("x",)),
    "gelu_tanh": (lambda t: functional.gelu(t.x, approximate="tanh"), ("x",)),
    "softmax": (lambda t: functional.softmax(t.x, -1), ("x",)),
    "multi_head_attention": (lambda t: heads(t, t.qkv), ("qkv",)),
    "mlp_branch": (mlp_branch, (*NORM, "fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias")),
    "attention_branch": (
        attention_branch,
        (*NORM, "qkv_weight", "qkv_bias", "proj_weight", "proj_bias"),
    ),
    "embed_positions": (embed_positions, ("patches", "cls_token", "pos_embed")),
    "normalize_images": (lambda t: (t.pixels.float() / 255 - 0.5) / 0.5, ("pixels",)),
    "patchify": (patchify, ("images",)),
    "unpatchify": (unpatchify, ("x",)),
    "pool_first": (lambda t: t.x[:, 0], ("x",)),
    "pool_mean": (lambda t: t.x.mean(1), ("x",)),
    "dropout": (lambda t: functional.dropout(t.x, RATE), ("x",)),
    "global_norm": (lambda t: torch.nn.utils.get_total_norm([t.g]), ("g",)),
}
"""What stands for each operation, and what its gradient is taken by, as vitkit returns them."""


def cross_entropy(t: Any) -> Callable[[], Tensors]:
    """Return the loss and its gradient, which vitkit computes at once."""
    logits = t.x.requires_grad_()

    def run() -> Tensors:
        loss = functional.cross_entropy(logits, t.labels)
        return loss, *torch.autograd.grad(loss, [logits])

    return run


OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}


def update(t: Any) -> Callable[[], Tensors]:
    """Return the fused update of an optimizer."""
    w, rule = torch.nn.Parameter(t.w), t.case.op.partition("_")[0]
    w.grad = t.g
    options: dict[str, Any] = {"lr": task.LEARNING_RATE, "weight_decay": task.WEIGHT_DECAY}
    if rule == "sgd":
        options |= {"momentum": MOMENTUM}
    else:
        options |= {"betas": task.BETAS, "eps": task.EPSILON}
        options |= {"capturable": w.is_cuda}  # so that a graph may hold it
    optimizer = OPTIMIZERS[rule]([w], fused=True, **options)

    def run() -> Tensors:
        optimizer.step()
        return (w,)

    return run


def clip_by_norm(t: Any) -> Callable[[], Tensors]:
    """Return what ``torch.nn.utils.clip_grad_norm_`` does once the norm is known."""
    norm, parameter = torch.full((), LIMIT, device=t.g.device), torch.nn.Parameter(t.g)
    parameter.grad = t.g

    def run() -> Tensors:
        torch.nn.utils.clip_grads_with_norm_([parameter], LIMIT, norm, foreach=True)
        return (t.g,)

    return run


WHOLE = {
    "clip_by_norm_inplace": clip_by_norm,
    "softmax_cross_entropy": cross_entropy,
    "ema_update_inplace": lambda t: lambda: (t.average.lerp_(t.w, 1 - EMA_DECAY),),
    **{f"{rule}_update_inplace": update for rule in OPTIMIZERS},
}
"""Operations that are no function with a gradient."""
