"""What each operation is called with when a kernel is compared to it.

A maker ``make(rng, n, dtype)`` returns ``(args, kwargs)`` of host arrays and plain numbers, in
which ``n`` is the length that varies, or None where that length is of no use. An operation has
one for each of its axes that a kernel might divide into blocks. Shapes are written as text,
``"2 3n n+1"``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vitkit import ops
from vitkit.ops.attention_branch import AttentionArrays
from vitkit.ops.mlp import MLPArrays

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
Maker = Callable[[np.random.Generator, int, str], Arguments | None]

KEY = (0, 1, 2)
FEW = 300
"""The longest length of what takes the square of it, or many times it."""
ADAM: dict[str, Any] = {
    "lr": 0.1,
    "beta1": 0.9,
    "beta2": 0.99,
    "eps": 1e-6,
    "weight_decay": 0.3,
    "step": 2,
}
LION: dict[str, Any] = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.3}
SGD: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.3}


def sizes(shape: str, n: int) -> tuple[int, ...]:
    """Return the shape that a text such as ``"2 3n n+1"`` means for a length."""
    parts = [word.partition("n") for word in shape.split()]
    return tuple(
        int(times or 1) * n + int(plus or 0) if is_n else int(times) for times, is_n, plus in parts
    )


def normal(rng: np.random.Generator, n: int, *shapes: str) -> tuple[np.ndarray, ...]:
    """Return float64 arrays of standard normal numbers."""
    return tuple(rng.standard_normal(sizes(shape, n)) for shape in shapes)


def cast(arrays: tuple[np.ndarray, ...], dtype: str) -> tuple[np.ndarray, ...]:
    """Return arrays in another dtype."""
    return tuple(array.astype(dtype) for array in arrays)


def of(*shapes: str, then: tuple[Any, ...] = (), least: int = 0, most: float = np.inf) -> Maker:
    """Return a maker of normal arrays, and of plain arguments that come ``then``.

    Lengths below ``least`` and above ``most`` are of no use.
    """

    def make(rng: np.random.Generator, n: int, dtype: str) -> Arguments | None:
        if not least <= n <= most:
            return None
        return (*cast(normal(rng, n, *shapes), dtype), *then), {}

    return make


def elementwise(count: int) -> dict[str, Maker]:
    """Return the makers of what treats each element of ``count`` arrays of one shape alone."""
    return {
        "a vector of n": of(*count * ["n"]),
        "3 rows of n": of(*count * ["3 n"]),
        "2 x n x 4": of(*count * ["2 n 4"], most=FEW),
    }


def layer_norm_backward(shape: str, least: int = 0) -> Maker:
    """Return a maker whose mean and reciprocal spread are those of its ``x``."""

    def make(rng: np.random.Generator, n: int, dtype: str) -> Arguments | None:
        if n < least:
            return None
        dy, x, weight = normal(rng, n, shape, shape, shape.split()[-1])
        rstd = 1 / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-6)
        return cast((dy, x, weight, x.mean(axis=-1, keepdims=True), rstd), dtype), {}

    return make


def softmax_backward(shape: str, axis: int, least: int = 0) -> Maker:
    """Return a maker whose ``y`` sums to one along ``axis``."""

    def make(rng: np.random.Generator, n: int, dtype: str) -> Arguments | None:
        if n < least:
            return None
        dy, x = normal(rng, n, shape, shape)
        y = np.exp(x) / np.exp(x).sum(axis=axis, keepdims=True)
        return cast((dy, y), dtype), {"axis": axis}

    return make


def attention_backward(shape: str) -> Maker:
    """Return a maker whose outputs are those of its ``qkv``, for two heads of two channels."""

    def make(rng: np.random.Generator, n: int, dtype: str) -> Arguments | None:
        if not 0 < n <= FEW:
            return None
        dy, qkv = normal(rng, n, f"{shape} 4", f"{shape} 12")
        outputs = ops.multi_head_attention.reference(qkv, 2, xp=np)
        return cast((dy, qkv, *outputs), dtype), {}

    return make


HEADS = 2
"""Heads of the attention branch that kernels are run on."""


def branch(op: Any, kind: Any, shape: str, hidden: str, backward: bool = False) -> Maker:
    """Return a maker for a branch of a block; what it keeps is what its reference keeps.

    Its parameters are those of ``kind``: (D,), (D,), (M, D), (M,), (D, K), (D,), where K is D after
    attention and M after an MLP.
    """
    width = shape.split()[-1]
    last = width if kind is AttentionArrays else hidden
    shapes = (width, width, f"{hidden} {width}", hidden, f"{width} {last}", width)
    settings = (HEADS, 1e-6) if kind is AttentionArrays else (1e-6, "gelu")

    def make(rng: np.random.Generator, n: int, dtype: str) -> Arguments | None:
        if not 0 < n <= FEW:
            return None
        x, dy, *parameters = normal(rng, n, shape, shape, *shapes)
        weights, gain = kind(*parameters), rng.random(len(x)) + 0.5
        if not backward:
            x, gain, *cut = cast((x, gain, *parameters), dtype)
            return (x, kind(*cut), *settings, gain, "float32", True), {}
        _, kept = op.reference(x, weights, *settings, gain, "float32", True, xp=np)
        grads = kind(*cast(normal(rng, n, *shapes), dtype))
        x, dy, gain, *cut = cast((x, dy, gain, *parameters), dtype)
        return (dy, x, cast(kept, dtype), kind(*cut), grads, gain, "float32"), {}

    return make


def branches(
    op: Any, kind: Any, hidden: str, wide: str, backward: bool = False
) -> dict[str, Maker]:
    """Return the makers of a branch of 4 channels, and of n in every head."""
    return {
        "n images": branch(op, kind, "n 3 4", hidden, backward),
        "n tokens": branch(op, kind, "2 n 4", hidden, backward),
        "n channels a head": branch(op, kind, "2 3 2n", wide, backward),
    }


def labelled(shape: str, soft: bool = False) -> Maker:
    """Return a maker of logits and labels; there is no mean over no sample."""

    def make(rng: np.random.Generator, n: int, dtype: str) -> Arguments | None:
        if n < 1:
            return None
        (logits,) = cast(normal(rng, n, shape), dtype)
        batch, classes = logits.shape
        labels: Any = rng.integers(0, classes, batch)
        if soft:
            labels = rng.dirichlet(np.ones(classes), batch).astype(dtype)
        return (logits, labels), {"label_smoothing": 0.1}

    return make


def state(count: int, squares: tuple[int, ...] = (), **kwargs: Any) -> dict[str, Maker]:
    """Return the makers of an update of ``count`` arrays, some of which are means of squares."""

    def maker(shape: str) -> Maker:
        def make(rng: np.random.Generator, n: int, dtype: str) -> Arguments:
            arrays = cast(normal(rng, n, *count * [shape]), dtype)
            return tuple(a * a if at in squares else a for at, a in enumerate(arrays)), kwargs

        return make

    return {"a vector of n": maker("n"), "3 rows of n": maker("3 n")}


def pixels(shape: str) -> Maker:
    """Return a maker of images of bytes with two channels."""

    def make(rng: np.random.Generator, n: int, dtype: str) -> Arguments:
        images = rng.integers(0, 256, sizes(shape, n), dtype=np.uint8)
        return (images, 255, (0.1, 0.2), (1.0, 2.0), dtype), {}

    return make


def norms(rng: np.random.Generator, n: int, dtype: str) -> Arguments:
    """Make two arrays whose norm is taken together."""
    return (list(cast(normal(rng, n, "n", "3 2"), dtype)),), {}


def clipped(shape: str, max_norm: float) -> Maker:
    """Return a maker of an array and of the norm, 2, that it and others have."""

    def make(rng: np.random.Generator, n: int, dtype: str) -> Arguments:
        return (*cast((*normal(rng, n, shape), np.asarray(2.0)), dtype), max_norm), {}

    return make


DROPPED = {"n rows": of("n 6", then=(0.5, KEY))}
POOLED = {"n images": of("n 3 4"), "n tokens": of("3 n 4", least=1)}
UNPOOLED = {"n images": of("n 4", then=(3,)), "n channels": of("3 n", then=(3,))}
LABELLED = {
    "n samples": labelled("n 5"),
    "n classes": labelled("3 n"),
    "n samples, soft labels": labelled("n 5", soft=True),
}
MAKERS: Mapping[str, Mapping[str, Maker]] = {
    "linear": {
        "n rows": of("n 6", "4 6", "4"),
        "n inputs": of("3 n", "4 n", "4", least=1),
        "n outputs": of("3 6", "n 6", "n"),
        "no bias": of("2 n 6", "4 6", then=(None,), most=FEW),
    },
    "linear_backward": {
        "n rows": of("n 4", "n 6", "4 6"),
        "n inputs": of("3 4", "3 n", "4 n", least=1),
        "n outputs": of("3 n", "3 6", "n 6", least=1),
    },
    "layer_norm": {
        "n rows": of("n 6", "6", "6", then=(1e-6,)),
        "rows of n": of("3 n", "n", "n", then=(1e-6,), least=1),
    },
    "layer_norm_backward": {
        "n rows": layer_norm_backward("n 6"),
        "rows of n": layer_norm_backward("3 n", least=3),  # two leave rounding as their gradient
    },
    "softmax": {
        "n rows": of("n 6"),
        "rows of n": of("3 n", least=1),
        "along the first of two axes": of("n 3", then=(0,), least=1),
        "along the middle axis": of("2 n 3", then=(1,), least=1, most=FEW),
    },
    "softmax_backward": {
        "n rows": softmax_backward("n 6", -1),
        "rows of n": softmax_backward("3 n", -1, least=1),
        "along the first of two axes": softmax_backward("n 3", 0, least=1),
    },
    "multi_head_attention": {
        "n images": of("n 3 12", then=(2,), most=FEW),
        "n tokens": of("1 n 12", then=(2,), least=1, most=FEW),
        "n channels a head": of("2 3 6n", then=(2,), least=1, most=FEW),
    },
    "multi_head_attention_backward": {
        "n images": attention_backward("n 3"),
        "n tokens": attention_backward("1 n"),
    },
    "attention_branch": branches(ops.attention_branch, AttentionArrays, "12", "6n"),
    "attention_branch_backward_inplace": branches(
        ops.attention_branch, AttentionArrays, "12", "6n", backward=True
    ),
    "mlp_branch": branches(ops.mlp_branch, MLPArrays, "7", "3n"),
    "mlp_branch_backward_inplace": branches(ops.mlp_branch, MLPArrays, "7", "3n", backward=True),
    "attention_weights": {
        "n images": of("n 3 12", then=(2,), most=FEW),
        "n tokens": of("1 n 12", then=(2,), least=1, most=FEW),
    },
    "dropout": DROPPED,
    "dropout_backward": DROPPED,
    "drop_path": DROPPED,
    "drop_path_backward": DROPPED,
    "normalize_images": {"n images": pixels("n 2 1 3"), "n across": pixels("2 2 3 n")},
    "patchify": {
        "n images": of("n 1 2 6", then=((2, 3),)),
        "n patches": of("2 2 4 3n", then=((2, 3),), most=FEW),
    },
    "unpatchify": {"n images": of("n 2 6", then=((2, 6), (2, 3)))},
    "pool_first": POOLED,
    "pool_mean": POOLED,
    "pool_first_backward": UNPOOLED,
    "pool_mean_backward": UNPOOLED,
    "embed_positions": {
        "n images": of("n 3 4", "1 1 4", "1 4 4"),
        "n patches": of("2 n 4", "1 1 4", "1 n+1 4"),
    },
    "embed_positions_backward": {
        "n images": of("n 4 4", then=(True,)),
        "n patches": of("2 n 4", then=(False,)),
    },
    "softmax_cross_entropy": LABELLED,
    "sigmoid_bce": LABELLED,
    "mean_squared_error": LABELLED,
    "global_norm": {"n numbers": norms},
    "clip_by_norm_inplace": {
        "a vector of n": clipped("n", 0.3),
        "3 rows of n": clipped("3 n", 0.3),
        "n numbers within the limit": clipped("n", 3.0),
    },
    "sgd_update_inplace": state(3, **SGD),
    "adam_update_inplace": state(4, squares=(3,), **ADAM),
    "adamw_update_inplace": state(4, squares=(3,), **ADAM),
    "lamb_update_inplace": state(4, squares=(3,), **ADAM),
    "lion_update_inplace": state(3, **LION),
    "ema_update_inplace": state(2, decay=0.9),
}
"""The makers of vitkit's operations but the activations, by what ``n`` is in them."""

NOTHING_SUMMED = frozenset(
    """normalize_images patchify unpatchify pool_first pool_first_backward pool_mean_backward
    embed_positions dropout dropout_backward drop_path drop_path_backward sgd_update_inplace
    adam_update_inplace adamw_update_inplace lion_update_inplace ema_update_inplace
    clip_by_norm_inplace""".split()
)
"""Those in which rounding does not grow with the arrays, besides activations."""


CHAINED = frozenset(
    """attention_branch attention_branch_backward_inplace mlp_branch
    mlp_branch_backward_inplace""".split()
)
"""Those of several products in a row, which multiply the rounding of one large number."""


def makers(op: Callable[..., Any]) -> Mapping[str, Maker] | None:
    """Return what an op is called with, or None where vitkit cannot know.

    An activation of a plugin is known by its parameters, ``(x)``, and its gradient by theirs,
    ``(dy, x)``.
    """
    if is_ours(op) and op.__name__ in MAKERS:
        return MAKERS[op.__name__]
    arrays = pointwise(op)
    return elementwise(arrays) if arrays else None


def sums(op: Callable[..., Any]) -> bool:
    """Return whether an op may add up many numbers."""
    if is_ours(op) and op.__name__ in MAKERS:
        return op.__name__ not in NOTHING_SUMMED
    return not pointwise(op)


def chained(op: Callable[..., Any]) -> bool:
    """Return whether an op is a chain of products."""
    return is_ours(op) and op.__name__ in CHAINED


def is_ours(op: Callable[..., Any]) -> bool:
    """Return whether an op is one of ``vitkit.ops``."""
    return getattr(ops, getattr(op, "__name__", ""), None) is op


def pointwise(op: Callable[..., Any]) -> int:
    """Return how many arrays an element-wise op takes, 0 where it is none or not known to be."""
    parameters = tuple(inspect.signature(op).parameters)
    return {("x", "xp"): 1, ("dy", "x", "xp"): 2}.get(parameters, 0)
