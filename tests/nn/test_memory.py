"""What a pass allocates and keeps: attention N x N at a time, a checkpointed block its input."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vitkit import nn, ops
from vitkit.backend import ArrayModule
from vitkit.models import ViT
from vitkit.nn import Context

BATCH, HEADS, TOKENS, DIM = 2, 2, 128, 8
SCORES = BATCH * HEADS * TOKENS * TOKENS * 4  # bytes of one (B, h, N, N) array; a cube has 32


def allocated(run: Callable[[], Any]) -> tuple[Any, int, int]:
    """Return what ``run`` returns, the bytes it left behind, and the most it held at once."""
    run()  # what is made once, such as a buffer of BLAS, is not its own
    tracemalloc.start()
    try:
        result = run()
        left, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return result, left, peak


@pytest.mark.parametrize("scale", [1.0, 1e15])
def test_attention_holds_a_few_score_arrays_and_keeps_none(scale: float) -> None:
    rng = np.random.default_rng(0)
    qkv = (scale * rng.standard_normal((BATCH, TOKENS, 3 * DIM))).astype("float32")
    dy = rng.standard_normal((BATCH, TOKENS, DIM)).astype("float32")
    with ops.reference_only():
        (y, *stats), left, peak = allocated(lambda: ops.multi_head_attention(qkv, HEADS, xp=np))
        assert SCORES < peak < 2.5 * SCORES  # more than one: the scores were seen
        assert left < SCORES / 8
        _, left, peak = allocated(
            lambda: ops.multi_head_attention_backward(dy, qkv, y, *stats, xp=np)
        )
        assert SCORES < peak < 3.5 * SCORES
        assert left < SCORES / 8


def test_the_layer_neither() -> None:
    layer = nn.Attention(DIM, HEADS, xp=np)
    x = np.random.default_rng(0).standard_normal((BATCH, TOKENS, DIM)).astype("float32")

    def forward() -> tuple[np.ndarray, Context]:
        ctx = Context(train=True)
        return layer.forward(x, ctx), ctx

    def both() -> np.ndarray:
        y, ctx = forward()
        return layer.backward(y, ctx)

    with ops.reference_only():
        (_, ctx), left, _ = allocated(forward)
        assert ctx.nbytes <= left < SCORES / 2
        assert allocated(both)[2] < 3.5 * SCORES


@pytest.mark.parametrize("mlp_dim", [8, 32, 64])
def test_a_checkpointed_block_keeps_its_input_alone(mlp_dim: int, xp: ArrayModule) -> None:
    def kept(depth: int, gradient_checkpointing: bool) -> int:
        model = ViT(
            "Ti/2",
            **{"image_size": 16, "patch_size": 2, "in_channels": 1, "num_classes": 3},
            **{"dim": DIM, "depth": depth, "num_heads": HEADS, "mlp_dim": mlp_dim},
            gradient_checkpointing=gradient_checkpointing,
            xp=xp,
        )
        ctx = Context(train=True)
        model.forward(xp.zeros((3, 1, 16, 16), "float32"), ctx)
        return ctx.nbytes

    plain, checkpointed = (kept(3, on) - kept(1, on) for on in (False, True))
    assert checkpointed == 2 * 3 * 65 * DIM * 4  # two blocks, three images, 65 tokens, float32
    # In the block's own width: the inputs of two branches, q, k, v and what they gather, and twice
    # what is as wide as the MLP; beside them two numbers a row, and two more for each head.
    numbers = 6 + 2 * mlp_dim / DIM
    assert numbers <= plain / checkpointed <= numbers + (4 + 2 * HEADS) / DIM
