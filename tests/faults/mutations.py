"""What becomes of a file: flipped bits, cut ends, lengths and digits that are others."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Rng = np.random.Generator
Mutation = Callable[[bytes, Rng], bytes]


def at(content: bytes, rng: Rng) -> int:
    """Return a place in a file; small files and headers are hit as often as data."""
    first = rng.random() < 0.5
    return int(rng.integers(0, min(len(content), 200) if first else len(content)))


def flip(content: bytes, rng: Rng) -> bytes:
    place, found = at(content, rng), bytearray(content)
    found[place] ^= 1 << int(rng.integers(8))
    return bytes(found)


def truncate(content: bytes, rng: Rng) -> bytes:
    return content[: at(content, rng)]


def append(content: bytes, rng: Rng) -> bytes:
    return content + rng.bytes(int(rng.integers(1, 64)))


def zeros(content: bytes, rng: Rng) -> bytes:
    place = at(content, rng)
    size = min(int(rng.integers(1, 512)), len(content) - place)
    return content[:place] + bytes(size) + content[place + size :]


def swap(content: bytes, rng: Rng) -> bytes:
    size = int(rng.integers(1, 33))
    one, two = sorted((at(content, rng), at(content, rng)))
    if two + size > len(content) or one + size > two:
        return flip(content, rng)
    middle = content[one + size : two]
    return (
        content[:one]
        + content[two : two + size]
        + middle
        + content[one : one + size]
        + (content[two + size :])
    )


def random_byte(content: bytes, rng: Rng) -> bytes:
    place = at(content, rng)
    return content[:place] + rng.bytes(1) + content[place + 1 :]


def insert(content: bytes, rng: Rng) -> bytes:
    place = at(content, rng)
    return content[:place] + rng.bytes(int(rng.integers(1, 9))) + content[place:]


def remove(content: bytes, rng: Rng) -> bytes:
    place = at(content, rng)
    return content[:place] + content[place + int(rng.integers(1, 17)) :]


def length_field(content: bytes, rng: Rng) -> bytes:
    """Change the length of a safetensors header; of a document the first bytes."""
    length = int.from_bytes(content[:8], "little") + int(rng.integers(-64, 65))
    return (length % 2**64).to_bytes(8, "little") + content[8:]


def digits(content: bytes, rng: Rng) -> bytes:
    """Change a digit of a header, a hash or a size into another."""
    places = [place for place, byte in enumerate(content[:4096]) if 48 <= byte <= 57]
    if not places:
        return flip(content, rng)
    found = bytearray(content)
    place = places[int(rng.integers(len(places)))]
    found[place] = 48 + (found[place] - 48 + int(rng.integers(1, 10))) % 10
    return bytes(found)


def letters(content: bytes, rng: Rng) -> bytes:
    """Change the case of a letter: what a reader that is not strict would take for the same."""
    places = [
        p for p, byte in enumerate(content[:4096]) if chr(byte).isascii() and chr(byte).isalpha()
    ]
    if not places:
        return flip(content, rng)
    found = bytearray(content)
    found[places[int(rng.integers(len(places)))]] ^= 32
    return bytes(found)


MUTATIONS: tuple[Mutation, ...] = (
    *(flip, flip, flip, truncate, append, zeros, swap, random_byte, insert, remove),
    *(length_field, digits, letters, lambda content, rng: b""),
)
