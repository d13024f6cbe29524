"""Augmentations that are wrong, each in one thing, and the right ones that they were made from."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from vitkit.testing.transforms import check_transform


class Cutout:
    """The right one: a square of zeros at random."""

    def __init__(self, side: int = 3) -> None:
        self.side = side

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return self.cut(image.copy(), rng)

    def cut(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        y, x = (int(u * n) for u, n in zip(rng.random(2), image.shape[1:], strict=True))
        image[:, y : y + self.side, x : x + self.side] = 0
        return image


def brighten(image: np.ndarray, rng: np.random.Generator, scale: int = 255) -> np.ndarray:
    """Return the image brighter or darker: right for images up to ``scale``."""
    factor = rng.uniform(0.5, 1.5)
    return (image * factor).clip(0, scale).astype(np.uint8)


def invert(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the negative: right for images up to 255, and draws nothing."""
    return 255 - image


class InPlace(Cutout):
    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return self.cut(image, rng)


def through_a_buffer(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    image.setflags(write=True)
    return image.copy()


def from_numpys_global(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return image[:, :, ::-1] if np.random.rand() < 0.5 else image  # noqa: NPY002 (the fault)


def from_pythons_global(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return image[:, :, ::-1] if random.random() < 0.5 else image  # noqa: S311


def from_its_own(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return image[:, :, ::-1] if np.random.default_rng().random() < 0.5 else image


def seeds_the_global(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    np.random.seed(int(rng.integers(2**31)))  # noqa: NPY002
    return image[:, :, ::-1] if np.random.rand() < 0.5 else image  # noqa: NPY002


class WithItsOwnGenerator:
    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return image[:, :, ::-1] if self.rng.random() < 0.5 else image


class DecidesOnce(Cutout):
    place: tuple[int, int] | None = None

    def cut(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if self.place is None:
            y, x = rng.integers(0, image.shape[1:])
            self.place = int(y), int(x)
        image[:, self.place[0] :, self.place[1] :] = 0
        return image


class KeepsThePlace(Cutout):
    def cut(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        self.y, self.x = rng.integers(0, image.shape[1:])
        rows = slice(self.y, self.y + self.side)
        image[:, rows, self.x : self.x + self.side] = 0
        return image


class Counts(Cutout):
    calls = 0

    def cut(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        self.calls += 1
        return super().cut(image, rng)


found: dict[str, int] = {}


def through_a_global(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    found["shift"] = int(rng.integers(image.shape[2]))
    return np.roll(image, found["shift"], axis=2)


class OneBuffer(Cutout):
    def __init__(self) -> None:
        super().__init__()
        self.buffers = _buffers

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        buffer = self.buffers.of(image.shape)
        buffer[...] = image
        return self.cut(buffer, rng)


class Buffers:
    """Looks the same to whoever compares it."""

    def __init__(self) -> None:
        self.known: dict[Any, np.ndarray] = {}

    def of(self, shape: tuple[int, ...]) -> np.ndarray:
        return self.known.setdefault(shape, np.empty(shape, np.uint8))

    def __reduce__(self) -> Any:
        return Buffers, ()


_buffers = Buffers()


def as_float(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return image * np.float32(rng.uniform(0.5, 1))


def smaller(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return image[:, :7, :7]


def turned(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return image.transpose(0, 2, 1) if rng.random() < 0.2 else image


def for_colours(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    red, green, blue = image
    return np.stack([blue, green, red])


def by_memory(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return image.ravel(order="K").reshape(image.shape)[:, ::-1]


def draws_in_vain(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    angle = rng.uniform(-10, 10)
    return np.rot90(image, 2 if angle > 20 else 0, axes=(1, 2))


class ForgetsItsSide(Cutout):
    def __reduce__(self) -> Any:
        return Cutout, (1,)


# What is wrong: how it is made, the checks that fail and no others, what the message says.
FAULTY: dict[str, tuple[Callable[[], Any], set[str], str]] = {
    "writes to the image": (
        InPlace,
        {"image is left alone"},
        "image is left alone: writes to the image it is given",
    ),
    "needs an image that can be written to": (
        lambda: through_a_buffer,
        {"image is left alone"},
        "cannot take an image that is read-only",
    ),
    "draws from np.random": (
        lambda: from_numpys_global,
        {"the generator decides alone"},
        "depends on the global generator of np.random or random: draw from rng",
    ),
    "draws from random": (
        lambda: from_pythons_global,
        {"the generator decides alone"},
        "depends on the global generator of np.random or random: draw from rng",
    ),
    "draws from a generator of its own": (
        lambda: from_its_own,
        {"the generator decides alone"},
        "it draws from a generator of its own, or looks at the clock. Draw from rng",
    ),
    "keeps a generator on self": (
        WithItsOwnGenerator,
        {"the generator decides alone"},
        "when it has been called before: something is kept between calls",
    ),
    "seeds np.random": (
        lambda: seeds_the_global,
        {"global generators", "threads"},
        "draws from the global generator of np.random, or seeds it",
    ),
    "decides once for all images": (
        DecidesOnce,
        {"the generator decides alone"},
        "something is kept between calls, on self or in a global",
    ),
    "keeps the place on self": (
        KeepsThePlace,
        {"nothing kept", "threads"},
        "nothing kept: keeps 'y' on self: several threads call one transform at once",
    ),
    "counts its calls": (Counts, {"nothing kept"}, "keeps 'calls' on self"),
    "passes numbers through a global": (
        lambda: through_a_global,
        {"threads"},
        "returns other images when several threads call it at once",
    ),
    "returns one buffer": (
        OneBuffer,
        {"no shared buffer", "threads"},
        "returns the same buffer each time, so one result changes",
    ),
    "returns floats": (
        lambda: as_float,
        {"shape and dtype"},
        r"returned float32 \(1, 8, 8\) for an image uint8 \(1, 8, 8\)",
    ),
    "returns smaller images": (
        lambda: smaller,
        {"shape and dtype"},
        r"returned uint8 \(1, 7, 7\) for an image uint8 \(1, 8, 8\)",
    ),
    "turns images that are not square": (
        lambda: turned,
        {"shape and dtype"},
        r"returned uint8 \(3, 11, 7\) for an image uint8 \(3, 7, 11\)",
    ),
    "takes coloured images only": (
        lambda: for_colours,
        {"shape and dtype"},
        r"raised ValueError for an image of shape \(1, 8, 8\): not enough values",
    ),
    "reads memory as if it were contiguous": (
        lambda: by_memory,
        {"any memory layout"},
        r"whose memory is not contiguous \(.*begin with np.ascontiguousarray",
    ),
    "draws in vain": (
        lambda: draws_in_vain,
        {"seed, epoch and sample"},
        "still does the same to each of 40 images whatever the seed",
    ),
    "a lambda cannot be pickled": (
        lambda: lambda image, rng: image,
        {"pickling"},
        "the transform cannot be sent to another process: .*lambda",
    ),
    "pickling loses an argument": (
        ForgetsItsSide,
        {"pickling"},
        "returns other images after it was sent to another process: does __getstate__",
    ),
    "returns a function to be called again": (
        lambda: None,
        {"a function of image and generator"},
        "returned NoneType, which cannot be called",
    ),
}

FAULTS = {
    name: (partial(check_transform, make), message) for name, (make, _, message) in FAULTY.items()
}
FAULTS["assumes pixels up to 255"] = (
    partial(check_transform, lambda: invert, scale=16),
    "assumes pixels up to 255: an image up to 16 became one up to 255, which is 15.9 times the "
    "largest value of its kind. Take the scale as an argument",
)
