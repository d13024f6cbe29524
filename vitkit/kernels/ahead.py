"""Everything that CPU kernels compile, compiled before it is needed.

Numba compiles a function when it is called with types that it has not been called with before, and
keeps what it made on disk. So each operation that has a kernel is called here once with small
arrays of the types that models use.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitkit.backend.precision import stored
from vitkit.kernels import why_none
from vitkit.kernels.state import operations, part
from vitkit.ops.attention_branch import AttentionArrays
from vitkit.ops.mlp import MLPArrays

SIDE = 32  # of every axis that a kernel for bfloat16 wants to be a multiple of its tiles
KEY = (0, 0, 0)  # what a mask is drawn from
MOMENTS: dict[str, Any] = {
    "lr": 1e-3,
    "beta1": 0.9,
    "beta2": 0.99,
    "weight_decay": 0.1,
}
ADAM = {**MOMENTS, "eps": 1e-6, "step": 1}
SGD = {"lr": 1e-3, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments, and those by keyword."""


def _ones(*shape: int) -> np.ndarray:
    return np.ones(shape or (2, SIDE, SIDE), np.float32)


def _mlp_arrays() -> MLPArrays:
    square, line = _ones(SIDE, SIDE), _ones(SIDE)
    return MLPArrays(line, line, square, line, square, line)


def _attention_arrays() -> AttentionArrays:
    wide, line = _ones(3 * SIDE, SIDE), _ones(SIDE)
    return AttentionArrays(line, line, wide, _ones(3 * SIDE), _ones(SIDE, SIDE), line)


def _mlp_kept(precision: str) -> tuple[np.ndarray, ...]:
    hidden = stored(_ones(), precision, xp=np)
    return _ones(2, SIDE, 1), _ones(2, SIDE, 1), hidden, hidden


def _attention_kept(precision: str) -> tuple[np.ndarray, ...]:
    qkv, mixed = (stored(_ones(2, SIDE, width), precision, xp=np) for width in (3 * SIDE, SIDE))
    stats = _ones(2, SIDE, 1), _ones(2, SIDE, 1)
    return *stats, qkv, mixed, _ones(2, 1, SIDE), _ones(2, 1, SIDE)


def _mlp(precision: str) -> Call:
    return (_ones(), _mlp_arrays(), 1e-6, "gelu", _ones(2), precision, True), {}


def _mlp_backward(precision: str) -> Call:
    kept, weights, grads = _mlp_kept(precision), _mlp_arrays(), _mlp_arrays()
    return (_ones(), _ones(), kept, weights, grads, _ones(2), precision), {}


def _attention(precision: str) -> Call:
    return (_ones(), _attention_arrays(), 1, 1e-6, _ones(2), precision, True), {}


def _attention_backward(precision: str) -> Call:
    kept, weights, grads = _attention_kept(precision), _attention_arrays(), _attention_arrays()
    return (_ones(), _ones(), kept, weights, grads, _ones(2), precision), {}


def _attention_of_heads_backward() -> Call:
    stats = _ones(2, 1, SIDE), _ones(2, 1, SIDE)
    return (_ones(), _ones(2, SIDE, 3 * SIDE), _ones(), *stats), {}


def _with(*args: Any, **kwargs: Any) -> Callable[[], Call]:
    """Return what makes a call whose arrays are made when it is, from their shapes."""

    def make() -> Call:
        return tuple(_ones(*arg) if isinstance(arg, list) else arg for arg in args), kwargs

    return make


X, LINE, TOKENS = [2, SIDE, SIDE], [SIDE], [2, SIDE]
BRANCHES: dict[str, Callable[[str], Call]] = {
    "mlp_branch": _mlp,
    "mlp_branch_backward_inplace": _mlp_backward,
    "attention_branch": _attention,
    "attention_branch_backward_inplace": _attention_backward,
}
"""What the operations that are compiled for each precision are called with."""
CALLS: dict[str, Callable[[], Call]] = {
    "linear": _with(X, [SIDE, SIDE], LINE),
    "linear_backward": _with(X, X, [SIDE, SIDE]),
    "layer_norm": _with(X, LINE, LINE, 1e-6),
    "layer_norm_backward": _with(X, X, LINE, [2, SIDE, 1], [2, SIDE, 1]),
    "multi_head_attention": _with([2, SIDE, 3 * SIDE], 1),
    "multi_head_attention_backward": _attention_of_heads_backward,
    "softmax": _with(X),
    "softmax_backward": _with(X, X),
    "gelu": _with(X),
    "gelu_backward": _with(X, X),
    "gelu_tanh": _with(X),
    "gelu_tanh_backward": _with(X, X),
    "dropout": _with(X, 0.5, KEY),
    "dropout_backward": _with(X, 0.5, KEY),
    "drop_path": _with(X, 0.5, KEY),
    "drop_path_backward": _with(X, 0.5, KEY),
    "softmax_cross_entropy": _with(TOKENS, np.zeros(2, np.int64), 0.1),
    "normalize_images": _with(np.zeros((2, 1, 4, 4), np.uint8), 255.0, (0.5,), (0.5,), "float32"),
    "patchify": _with([2, 1, 4, 4], (2, 2)),
    "unpatchify": _with([2, 4, 4], (4, 4), (2, 2)),
    "embed_positions": _with(X, [1, 1, SIDE], [1, SIDE + 1, SIDE]),
    "embed_positions_backward": _with(X, True),
    "pool_first_backward": _with(TOKENS, SIDE),
    "pool_mean": _with(X),
    "pool_mean_backward": _with(TOKENS, SIDE),
    "global_norm": lambda: (([_ones()],), {}),
    "clip_by_norm_inplace": lambda: ((_ones(), np.asarray(2, np.float32), 0.5), {}),
    "sgd_update_inplace": _with(LINE, LINE, LINE, **SGD),
    "adam_update_inplace": _with(LINE, LINE, LINE, LINE, **ADAM),
    "adamw_update_inplace": _with(LINE, LINE, LINE, LINE, **ADAM),
    "lamb_update_inplace": _with(LINE, LINE, LINE, LINE, **ADAM),
    "lion_update_inplace": _with(LINE, LINE, LINE, **MOMENTS),
    "ema_update_inplace": _with(LINE, LINE, decay=0.9),
}
"""What the others are called with."""


@dataclass(frozen=True)
class Compiled:
    """What :func:`compile_all` did.

    Attributes
    ----------
    functions : int
        How many were compiled: none where all were in the cache.
    seconds : float
        How long that took.
    """

    functions: int
    seconds: float


def compile_all(progress: Callable[[str, int, int], None] | None = None) -> Compiled:
    """Compile every CPU kernel for this processor, in the precisions that it serves.

    Parameters
    ----------
    progress : callable, optional
        Called before each operation with its name, how many are done, and how many there are.

    Returns
    -------
    Compiled
        How much there was to do.

    Raises
    ------
    RuntimeError
        If no kernels can be had here, saying why.
    """
    reason = why_none(np)
    if reason:
        raise RuntimeError(f"There are no CPU kernels to compile: {reason}.")
    compilations = part("_compilations")
    started, before = time.perf_counter(), compilations.counted()
    calls = list(_calls())
    with compilations.unannounced():
        for done, (name, kernel, (args, kwargs)) in enumerate(calls):
            if progress is not None:
                progress(name, done, len(calls))
            if kernel(*args, **kwargs, xp=np) is NotImplemented:
                raise RuntimeError(f"The CPU kernel of {name} does not serve what it is for.")
    seconds = time.perf_counter() - started
    return Compiled(compilations.counted() - before, seconds)


def _calls() -> Iterator[tuple[str, Callable[..., Any], Call]]:
    """Yield the name, the kernel and the arguments of each call that is to be compiled."""
    no_bfloat16 = part("_processor").why_no_bfloat16()
    for name, op in operations().items():
        kernel = op.kernels.get("numpy")
        if kernel is None:
            continue
        if name not in BRANCHES:
            yield name, kernel, CALLS[name]()
            continue
        yield name, kernel, BRANCHES[name]("float32")
        if not no_bfloat16:
            yield f"{name}, bfloat16", kernel, BRANCHES[name]("bfloat16")
