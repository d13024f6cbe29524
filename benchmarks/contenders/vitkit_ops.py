"""The operations of vitkit one by one, by their references or their kernels."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np

from contenders import task
from contenders.op_cases import EMA_DECAY, LIMIT, MOMENTUM, RATE, Case, cases
from contenders.serve import Skip, Work
from contenders.sums import sums
from vitkit import kernels, ops

kernels.load(np)
Arrays = tuple[np.ndarray, ...]


def prepare(mode: str, order: task.Order) -> Work:
    """Return one operation; tried once, since a kernel may leave a case to the reference."""
    case = cases(order.sizes)[order.task]
    if case.precision == "bfloat16" and os.environ.get("VITKIT_KERNELS") != "off":
        served = kernels.served_precision("bfloat16", np, np.float32)
        if served != "bfloat16":
            raise Skip("bfloat16 is computed in float32 here")
    arrays = namespace(case, order.sizes)
    with noting_references(getattr(ops, case.op)) as calls:
        found = MAKERS[case.op](arrays)()
    moved = [*vars(arrays).values(), *found]
    notes = {
        "served": not calls,
        "bytes": sum(each.nbytes for each in moved if isinstance(each, np.ndarray)),
    }
    run = MAKERS[case.op](namespace(case, order.sizes))  # anew: some change what they are given
    return Work(run, lambda found: sums(*found), notes=notes)


def namespace(case: Case, c: task.Configuration) -> Any:
    return SimpleNamespace(**case.arrays(c.num_classes), c=c, case=case, xp=np)


@contextmanager
def noting_references(op: ops.Op[..., Any]) -> Iterator[list[str]]:
    """Give a list to which every call of an operation's reference adds."""
    calls: list[str] = []
    reference = op.reference

    def noting(*args: Any, **kwargs: Any) -> Any:
        calls.append(op.__name__)
        return reference(*args, **kwargs)

    op.reference = noting
    try:
        yield calls
    finally:
        op.reference = reference


def of(op: ops.Op[..., Any], *names: str) -> Callable[[Any], Callable[[], Arrays]]:
    """Return what makes a function of an operation, given the names of its arguments."""

    def make(a: Any) -> Callable[[], Arrays]:
        arguments = [getattr(a, name) for name in names]

        def run() -> Arrays:
            found = op(*arguments, xp=a.xp)
            return found if isinstance(found, tuple) else (found,)

        return run

    return make


def layer_norm(a: Any) -> Callable[[], Arrays]:
    return lambda: ops.layer_norm(a.x, a.weight, a.bias, task.LAYER_NORM_EPSILON, xp=a.xp)[:1]


def layer_norm_backward(a: Any) -> Callable[[], Arrays]:
    _, mean, rstd = ops.layer_norm(a.x, a.weight, a.bias, task.LAYER_NORM_EPSILON, xp=a.xp)
    return lambda: ops.layer_norm_backward(a.dy, a.x, a.weight, mean, rstd, xp=a.xp)


def attention(a: Any) -> Callable[[], Arrays]:
    return lambda: ops.multi_head_attention(a.qkv, a.c.num_heads, xp=a.xp)[:1]


def attention_backward(a: Any) -> Callable[[], Arrays]:
    kept = ops.multi_head_attention(a.qkv, a.c.num_heads, xp=a.xp)
    return lambda: (ops.multi_head_attention_backward(a.dy, a.qkv, *kept, xp=a.xp),)


def softmax_backward(a: Any) -> Callable[[], Arrays]:
    y = ops.softmax(a.x, xp=a.xp)
    return lambda: (ops.softmax_backward(a.dy, y, xp=a.xp),)


def branch(a: Any, keep: bool) -> tuple[Callable[[], Any], Any]:
    """Return a branch of a block as a function, and its weights."""
    from vitkit.ops.attention_branch import AttentionArrays
    from vitkit.ops.mlp import MLPArrays

    kind = MLPArrays if a.case.forward == "mlp_branch" else AttentionArrays
    weights = kind(*(getattr(a, name) for name in kind._fields))
    eps, precision = task.LAYER_NORM_EPSILON, a.case.precision
    if kind is MLPArrays:
        return lambda: ops.mlp_branch(
            a.x, weights, eps, a.c.activation, None, precision, keep, xp=a.xp
        ), weights
    return lambda: ops.attention_branch(
        a.x, weights, a.c.num_heads, eps, None, precision, keep, xp=a.xp
    ), weights


def branch_forward(a: Any) -> Callable[[], Arrays]:
    run, _ = branch(a, keep=False)
    return lambda: run()[:1]


def branch_backward(a: Any) -> Callable[[], Arrays]:
    forward, weights = branch(a, keep=True)
    _, kept = forward()
    grads = type(weights)(*map(a.xp.zeros_like, weights))
    op = getattr(ops, a.case.op)

    def run() -> Arrays:
        dx = op(a.dy, a.x, kept, weights, grads, None, a.case.precision, xp=a.xp)
        return dx, *grads

    return run


def patchify(a: Any) -> Callable[[], Arrays]:
    return lambda: (ops.patchify(a.images, (a.c.patch_size,) * 2, xp=a.xp),)


def embed_positions_backward(a: Any) -> Callable[[], Arrays]:
    return lambda: ops.embed_positions_backward(a.dy, True, xp=a.xp)


def global_norm(a: Any) -> Callable[[], Arrays]:
    return lambda: (ops.global_norm([a.g], xp=a.xp),)


def clip_by_norm(a: Any) -> Callable[[], Arrays]:
    norm = a.xp.asarray(np.float32(LIMIT))

    def run() -> Arrays:
        ops.clip_by_norm_inplace(a.g, norm, LIMIT, xp=a.xp)
        return (a.g,)

    return run


def unpatchify(a: Any) -> Callable[[], Arrays]:
    sizes = (a.c.image_size,) * 2, (a.c.patch_size,) * 2
    return lambda: (ops.unpatchify(a.x, *sizes, xp=a.xp),)


def normalize_images(a: Any) -> Callable[[], Arrays]:
    how = 255.0, (0.5,) * 3, (0.5,) * 3, np.dtype("float32")
    return lambda: (ops.normalize_images(a.pixels, *how, xp=a.xp),)


def pool_backward(a: Any) -> Callable[[], Arrays]:
    op = getattr(ops, a.case.op)
    return lambda: (op(a.dy, a.c.tokens, xp=a.xp),)


def noise(a: Any) -> Callable[[], Arrays]:
    op, key = getattr(ops, a.case.op), (0, 0, 0)
    x = a.x if a.case.op == a.case.forward else a.dy
    return lambda: (op(x, RATE, key, xp=a.xp),)


SETTINGS = {
    "lr": task.LEARNING_RATE,
    "beta1": task.BETAS[0],
    "beta2": task.BETAS[1],
    "eps": task.EPSILON,
    "weight_decay": task.WEIGHT_DECAY,
    "step": 1,
    "momentum": MOMENTUM,
    "nesterov": False,
    "decay": EMA_DECAY,
}
"""What the updates take, each some of it."""


def update(a: Any) -> Callable[[], Arrays]:
    op = getattr(ops, a.case.op)
    a.m, a.v = a.xp.zeros_like(a.w), a.xp.zeros_like(a.w)
    taken = op.__signature__.parameters
    arrays = [value for name, value in vars(a).items() if name in taken and name != "xp"]
    settings = {name: value for name, value in SETTINGS.items() if name in taken}

    def run() -> Arrays:
        op(*arrays, **settings, xp=a.xp)
        return (arrays[0],)

    return run


MAKERS: dict[str, Callable[[Any], Callable[[], Arrays]]] = {
    "linear": of(ops.linear, "x", "weight", "bias"),
    "linear_backward": of(ops.linear_backward, "dy", "x", "weight"),
    "layer_norm": layer_norm,
    "layer_norm_backward": layer_norm_backward,
    "gelu": of(ops.gelu, "x"),
    "gelu_backward": of(ops.gelu_backward, "dy", "x"),
    "gelu_tanh": of(ops.gelu_tanh, "x"),
    "gelu_tanh_backward": of(ops.gelu_tanh_backward, "dy", "x"),
    "softmax": of(ops.softmax, "x"),
    "softmax_backward": softmax_backward,
    "multi_head_attention": attention,
    "multi_head_attention_backward": attention_backward,
    "mlp_branch": branch_forward,
    "mlp_branch_backward_inplace": branch_backward,
    "attention_branch": branch_forward,
    "attention_branch_backward_inplace": branch_backward,
    "embed_positions": of(ops.embed_positions, "patches", "cls_token", "pos_embed"),
    "embed_positions_backward": embed_positions_backward,
    "softmax_cross_entropy": of(ops.softmax_cross_entropy, "x", "labels"),
    "normalize_images": normalize_images,
    "patchify": patchify,
    "unpatchify": unpatchify,
    "pool_first_backward": pool_backward,
    "pool_mean": of(ops.pool_mean, "x"),
    "pool_mean_backward": pool_backward,
    "dropout": noise,
    "dropout_backward": noise,
    "drop_path": noise,
    "drop_path_backward": noise,
    "global_norm": global_norm,
    "clip_by_norm_inplace": clip_by_norm,
    "adamw_update_inplace": update,
    "adam_update_inplace": update,
    "sgd_update_inplace": update,
    "lamb_update_inplace": update,
    "lion_update_inplace": update,
    "ema_update_inplace": update,
}
