"""The bits of NumPy's ``Philox``, many blocks at once.

A block is four words of 64 bits, made from a key and its number in ten rounds (Salmon et al., 2011,
"Parallel random numbers: as easy as 1, 2, 3"). NumPy counts before it draws, so the first block has
number 1. Any thread can draw any block.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vitkit.kernels.cpu._compile import serial, widest_vectors

U = np.uint64
LOW0, HIGH0, LOW1, HIGH1 = U(0xE14C6C93), U(0xD2E7470E), U(0x95121157), U(0xCA5A8263)
WEYL0, WEYL1 = U(0x9E3779B97F4A7C15), U(0xBB67AE8584CAA73B)
SHIFT, HALF_WORD = U(32), U(0xFFFFFFFF)

Words = tuple[Any, ...]


@serial
def _product(low: np.uint64, high: np.uint64, x: np.uint64) -> Words:
    """Return the upper and the lower word of a factor, given by halves, times a word.

    By halves, which vectors can multiply; none knows a product of 128 bits.
    """
    x_low, x_high = x & HALF_WORD, x >> SHIFT
    lowest = low * x_low
    upper = low * x_high + (lowest >> SHIFT)
    middle = high * x_low + (upper & HALF_WORD)
    top = high * x_high + (upper >> SHIFT) + (middle >> SHIFT)
    return top, (middle << SHIFT) | (lowest & HALF_WORD)


@serial
def _round(block: Words, key: Words, number: int) -> Words:
    c0, c1, c2, c3 = block
    high0, low0 = _product(LOW0, HIGH0, c0)
    high1, low1 = _product(LOW1, HIGH1, c2)
    k0, k1 = key[0] + U(number) * WEYL0, key[1] + U(number) * WEYL1
    return high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0


@serial
def _two_rounds(block: Words, key: Words, number: int) -> Any:
    return _round(_round(block, key, number), key, number + 1)


@serial
def draw(key: np.ndarray, counter: np.ndarray, first: int, words: np.ndarray) -> None:
    """Write the blocks from number ``first`` on, of a key and the upper words of a counter."""
    widest_vectors()
    k, c1, c2, c3 = (key[0], key[1]), counter[1], counter[2], counter[3]
    for at in range(words.size // 4):
        block = U(first + at), c1, c2, c3
        # Not a loop, which would stand between the outer one and vectors.
        block = _two_rounds(_two_rounds(block, k, 0), k, 2)
        block = _two_rounds(_two_rounds(_two_rounds(block, k, 4), k, 6), k, 8)
        words[4 * at], words[4 * at + 1], words[4 * at + 2], words[4 * at + 3] = block
