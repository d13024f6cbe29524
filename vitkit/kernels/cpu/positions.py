"""Class token and positions in one pass; the meaning is in :mod:`vitkit.ops.positions`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from vitkit.backend import Array, ArrayModule
from vitkit.kernels.cpu._arrays import plain, served
from vitkit.kernels.cpu._compile import parallel
from vitkit.kernels.cpu._math import ZERO
from vitkit.kernels.cpu._memory import empty
from vitkit.kernels.cpu._rows import add_bias, add_to, piece
from vitkit.kernels.cpu._threads import threads
from vitkit.ops.positions import embed_positions, embed_positions_backward


@parallel
def _embed(
    patches: np.ndarray, first: np.ndarray, positions: np.ndarray, tokens: np.ndarray, parts: int
) -> None:
    """Write first and patches plus positions; each image, and the positions, is one long row."""
    lead = first.size
    for t in prange(parts):
        for b in range(len(patches) * t // parts, len(patches) * (t + 1) // parts):
            add_bias(first, positions[:lead], tokens[b, :lead])
            add_bias(patches[b], positions[lead:], tokens[b, lead:])


@parallel
def _sum_images(dtokens: np.ndarray, total: np.ndarray, parts: int) -> None:
    """Write the sum over the images, each a long row of which a thread takes a piece."""
    for t in prange(parts):
        i, j = piece(total.size, t, parts)
        sums = total[i:j]
        sums[:] = ZERO
        for b in range(len(dtokens)):
            add_to(dtokens[b, i:j], sums)


@embed_positions.kernel("numpy")
def embed_positions_cpu(
    patches: Array, cls_token: Array | None, pos_embed: Array, *, xp: ArrayModule
) -> Any:
    """Replace :func:`vitkit.ops.embed_positions` for float32."""
    first = () if cls_token is None else (cls_token,)
    if not served(patches, pos_embed, *first) or patches.ndim != 3:
        return NotImplemented
    batch, count, width = patches.shape
    shape = (1, count + len(first), width)
    if pos_embed.shape != shape or any(token.shape != (1, 1, width) for token in first):
        return NotImplemented
    tokens = empty((batch, *shape[1:]))
    token = np.empty(0, np.float32) if cls_token is None else plain(cls_token).reshape(-1)
    positions = plain(pos_embed).reshape(-1)
    _embed(
        plain(patches).reshape(batch, -1), token, positions, tokens.reshape(batch, -1), threads()
    )
    return tokens


@embed_positions_backward.kernel("numpy")
def embed_positions_backward_cpu(dtokens: Array, has_cls_token: bool, *, xp: ArrayModule) -> Any:
    """Replace :func:`vitkit.ops.embed_positions_backward` for float32."""
    if not served(dtokens) or dtokens.ndim != 3:
        return NotImplemented
    dpos_embed = empty((1, *dtokens.shape[1:]))
    _sum_images(plain(dtokens).reshape(len(dtokens), -1), dpos_embed.reshape(-1), threads())
    if not has_cls_token:
        return dtokens, None, dpos_embed
    return dtokens[:, 1:], dpos_embed[:, :1], dpos_embed
