"""Patches moved by CUDA kernels, every bit of them, and faults planted in these."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vitkit import ops
from vitkit.testing import cuda_on_cpu, strict_device

xp = strict_device.xp
CASES = [
    ((1, 1, 1, 1), (1, 1)),
    ((2, 3, 6, 4), (3, 2)),
    ((1, 3, 32, 48), (16, 16)),
    ((3, 1, 8, 24), (2, 8)),
    ((2, 5, 7, 33), (7, 3)),
    ((2, 4, 12, 20), (3, 4)),
]


def bits(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Return float32 of any bits, NaNs of every kind among them."""
    return rng.integers(0, 2**32, shape, dtype="uint32").view("float32")


def moved(case: tuple[tuple[int, ...], tuple[int, int]], rng: np.random.Generator) -> bool:
    """Return whether images become patches, and patches images, as in the reference."""
    shape, patch = case
    images = bits(shape, rng)
    expected = ops.patchify.reference(images, patch, xp=np)
    with strict_device.count_syncs() as syncs:
        patches = ops.patchify(xp.asarray(images), patch, xp=xp)
        back = ops.unpatchify(xp.asarray(expected), (shape[2], shape[3]), patch, xp=xp)
    assert syncs == []
    assert (patches.shape, back.shape) == (expected.shape, shape)
    return bool(
        patches.get().tobytes() == expected.tobytes() and back.get().tobytes() == images.tobytes()
    )


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_number_finds_its_place(
    case: tuple[tuple[int, ...], tuple[int, int]], rng: np.random.Generator
) -> None:
    assert moved(case, rng)


@pytest.mark.usefixtures("emulated")
def test_views_and_what_the_reference_serves(rng: np.random.Generator) -> None:
    host = bits((2, 8, 8, 3), rng)
    patches = ops.patchify(xp.asarray(host).transpose(0, 3, 1, 2), (4, 4), xp=xp)
    expected = ops.patchify.reference(host.transpose(0, 3, 1, 2), (4, 4), xp=np)
    assert patches.get().tobytes() == expected.tobytes()
    shifted = ops.patchify(xp.asarray(host).reshape(-1)[4:].reshape(1, 1, 4, 95), (2, 5), xp=xp)
    right = ops.patchify.reference(host.reshape(-1)[4:].reshape(1, 1, 4, 95), (2, 5), xp=np)
    assert shifted.get().tobytes() == right.tobytes()
    cut: Any
    join: Any
    cut, join = (op.kernels["cupy"] for op in (ops.patchify, ops.unpatchify))
    images = xp.zeros((2, 3, 8, 8), "float32")
    for given, size in ((images, (3, 4)), (images, (0, 4)), (images[0], (4, 4))):
        assert cut(given, size, xp=xp) is NotImplemented
    assert cut(images.astype("float16"), (4, 4), xp=xp) is NotImplemented
    for size, patch in (((8, 8), (3, 4)), ((8, 12), (4, 4)), ((8, 8), (2, 2)), ((8, 8), (0, 4))):
        assert join(patches, size, patch, xp=xp) is NotImplemented


FAULTS = {
    "down and across": ("const unsigned d = at % cut.down", "const unsigned d = at % cut.across"),
    "channels last": ("(channel * cut.rows + row)", "(row * cut.channels + channel)"),
    "columns of one row": ("row = at / cut.columns", "row = 0"),
    "another image": ("(i64)(blockIdx.x / blocks) * count", "0"),
    "one block of an image": ("blockIdx.x % blocks * blockDim.x", "0"),
    "a dropped tail": ("if (in_patches >= count) return", "if (in_patches + 1 >= count) return"),
    "one way only": ("BACK ? place.at : in_patches", "in_patches"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_noticed(
    fault: str, plant: Callable[[str, str, str], None], rng: np.random.Generator
) -> None:
    if reason := cuda_on_cpu.why_not():
        pytest.skip(reason)
    plant("patches.cuh", *FAULTS[fault])
    with cuda_on_cpu.emulated():
        assert not all(moved(case, rng) for case in CASES)
