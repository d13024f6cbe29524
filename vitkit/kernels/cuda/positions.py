"""Class token and positions in one pass on a GPU; the meaning is in :mod:`vitkit.ops.positions`."""

from __future__ import annotations

from typing import Any

from vitkit.backend import Array, ArrayModule
from vitkit.kernels.cuda._arrays import WIDTH, plain, pointer, served, vector
from vitkit.kernels.cuda._kernel import Family, blocks
from vitkit.kernels.cuda.column_sums import add_column_sums
from vitkit.ops.positions import embed_positions, embed_positions_backward

THREADS = 256  # of a block
EMBED = Family("positions.cuh", "embed_positions<{v}>", v=(1, WIDTH))


@embed_positions.kernel("cupy")
def embed_positions_cuda(
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
    tokens = xp.empty((batch, *shape[1:]), "float32")
    given = [plain(array, xp) for array in (patches, pos_embed, *first)]
    v, numbers = vector(width, *given, tokens), shape[1] * width
    across = blocks(numbers, THREADS * v)
    arrays = given[0], given[2] if first else pointer(None), given[1], tokens
    sizes = (batch * across,), (THREADS,)
    EMBED(v=v)(*sizes, *arrays, len(first) * width, numbers, across, xp=xp)
    return tokens


@embed_positions_backward.kernel("cupy")
def embed_positions_backward_cuda(dtokens: Array, has_cls_token: bool, *, xp: ArrayModule) -> Any:
    """Replace :func:`vitkit.ops.embed_positions_backward` for float32."""
    if not served(dtokens) or dtokens.ndim != 3:
        return NotImplemented
    dpos_embed = xp.empty((1, *dtokens.shape[1:]), "float32")
    images = plain(dtokens, xp).reshape(len(dtokens), -1)
    add_column_sums(images, dpos_embed.reshape(-1), adds=False, xp=xp)
    if not has_cls_token:
        return dtokens, None, dpos_embed
    return dtokens[:, 1:], dpos_embed[:, :1], dpos_embed
