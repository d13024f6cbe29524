"""Which of two kernels computes attention faster: timed once for each shape, then remembered.

Both directions are timed together and have one answer, also where nothing follows: what a kernel
keeps for backward is what is kept for it. Where nothing is timed it is the first, which is cuDNN.
"""

from __future__ import annotations

import ctypes
import logging
import math
from collections.abc import Sequence
from typing import Any

from vitkit.backend import Array, ArrayModule
from vitkit.errors import first_line
from vitkit.kernels.cuda import _lt
from vitkit.kernels.cuda._cublaslt import Algorithm
from vitkit.kernels.cuda._gpu import Gpu, wants_same_bits

LOGGER = logging.getLogger("vitkit")
EDITION = 1  # of our own kernel; with a new one they are timed against each other again
GPU = Gpu()
FASTER: dict[tuple[Any, ...], Any] = {}
"""What a device is faster with, by its number, the dtype, the shape and the heads."""


def known(qkv: Array, num_heads: int, xp: ArrayModule) -> Any | None:
    """Return what :func:`faster` found before, or None."""
    if xp.__name__ != GPU.name or wants_same_bits():
        return None
    return FASTER.get(_case(qkv, num_heads))


def faster(ways: Sequence[Any], qkv: Array, num_heads: int, xp: ArrayModule) -> Any:
    """Return the module that is the fastest at attention of ``qkv`` (B, N, 3 D).

    Parameters
    ----------
    ways : sequence of module
        Those that serve it, at least one; the first where nothing is, or can be, timed.
    qkv : array, shape (B, N, 3 D)
        Queries, keys and values.
    num_heads : int
        How many heads.
    xp : module
        The array module.
    """
    if len(ways) == 1 or wants_same_bits():
        return ways[0]
    case = _case(qkv, num_heads)
    if case not in FASTER:
        if GPU.capturing():
            return ways[0]
        FASTER[case] = _timed(ways, qkv, num_heads, xp)
        if FASTER[case] is not ways[0]:
            ways[0].forget(qkv, num_heads)  # a plan of cuDNN's keeps memory to work in
    return FASTER[case]


def _case(qkv: Array, num_heads: int) -> tuple[Any, ...]:
    return GPU.device(), qkv.dtype.name, qkv.shape, num_heads


def _timed(ways: Sequence[Any], qkv: Array, num_heads: int, xp: ArrayModule) -> Any:
    """Return the fastest, or the first where memory is too short to know."""
    # As if they were algorithms of a library, of which the memory has room for what it may choose.
    named = [Algorithm(data=(ctypes.c_uint64 * 8)(number)) for number, _ in enumerate(ways, 1)]
    taken: dict[str, list[float]] = {way.NAME: [] for way in ways}

    def seconds(which: Algorithm) -> float:
        way = ways[which.data[0] - 1]

        def both() -> None:
            y, largest, log_total = way.attend(qkv, num_heads, xp)
            way.attend_backward(y, qkv, y, largest, log_total, xp)

        try:
            taken[way.NAME].append(GPU.seconds(both))
        except MemoryError:
            raise
        except Exception as error:  # what cannot run does not win, and the other may
            if math.inf not in taken[way.NAME]:
                LOGGER.info("Attention cannot be by %s: %s.", way.NAME, first_line(error))
            taken[way.NAME].append(math.inf)
        return taken[way.NAME][-1]

    key = f"{qkv.shape} {num_heads} {qkv.dtype}, {' or '.join(taken)}, {EDITION}"
    memory = _lt.memory(f"{GPU.title()}-{ways[0].version()}")
    try:
        chosen = memory.choose(key, named, seconds)
    except MemoryError as error:
        LOGGER.info("No memory to time attention, so by %s: %s.", ways[0].NAME, first_line(error))
        return ways[0]
    best = ways[chosen.data[0] - 1]
    if any(taken.values()):
        LOGGER.info("Attention of %s, %d heads, is fastest by %s.", qkv.shape, num_heads, best.NAME)
    return best
