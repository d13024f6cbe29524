"""Pixels to numbers and to patches by CUDA kernels, against float64 and planted faults."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vitkit import ops
from vitkit.backend import record
from vitkit.backend.precision import operand, stored
from vitkit.kernels.cuda.images import patchify_pixels
from vitkit.testing import cuda_on_cpu, strict_device

xp = strict_device.xp
EPS = float(np.finfo("float32").eps)
SHAPES = [(1, 1, 1, 1), (2, 3, 8, 12), (3, 3, 31, 33), (1, 4, 16, 20), (2, 5, 6, 8), (1, 9, 3, 65)]
ROUNDED = {"float32": 0.0, "bfloat16": 2.0**-8, "float16": 2.0**-11}
DTYPES = {"float32": "float32", "bfloat16": "uint16", "float16": "float16"}
CUTS = [
    ((1, 1, 1, 1), (1, 1)),
    ((2, 3, 32, 48), (16, 16)),
    ((3, 3, 6, 10), (3, 5)),
    ((2, 5, 8, 8), (4, 4)),
    ((1, 9, 6, 8), (2, 8)),
]


def statistics(channels: int) -> tuple[float, list[float], list[float]]:
    """Return scale, means and spreads."""
    return (
        255.0,
        [0.3 + 0.05 * c for c in range(channels)],
        [0.2 + 0.03 * c for c in range(channels)],
    )


def exact(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers in float64, and what float32 may lose of each."""
    scale, mean, std = statistics(images.shape[1])
    m, s = (np.asarray(each)[:, None, None] for each in (mean, std))
    return (images / scale - m) / s, 2 * EPS * (images / scale + m) / s


def pixels(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, shape, dtype=np.uint8)


def wrong(shape: tuple[int, ...], rng: np.random.Generator) -> bool:
    """Return whether pixels become other numbers than they should."""
    images = pixels(shape, rng)
    with strict_device.count_syncs() as syncs:
        y = ops.normalize_images(xp.asarray(images), *statistics(shape[1]), "float32", xp=xp)
    assert syncs == []
    expected, lost = exact(images)
    return bool((np.abs(y.get() - expected) > lost).any())


def cut_wrong(
    case: tuple[tuple[int, ...], tuple[int, int]], precision: str, rng: np.random.Generator
) -> bool:
    """Return whether pixels become other patches than they should."""
    shape, patch = case
    images, settings = pixels(shape, rng), (*statistics(shape[1]), DTYPES[precision])
    with strict_device.count_syncs() as syncs:
        y = patchify_pixels(xp.asarray(images), patch, *settings, xp)
    assert syncs == []
    expected, lost = (ops.patchify.reference(each, patch, xp=np) for each in exact(images))
    assert (y.shape, y.dtype) == (expected.shape, DTYPES[precision])
    difference = np.abs(operand(y.get(), precision, xp=np) - expected)
    rounding = ROUNDED[precision] * (np.abs(expected) + lost) + 2.0**-25 * (precision == "float16")
    return bool((difference > lost + rounding).any())


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values(shape: tuple[int, ...], rng: np.random.Generator) -> None:
    assert not wrong(shape, rng)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("case", CUTS, ids=str)
def test_patches(
    case: tuple[tuple[int, ...], tuple[int, int]], precision: str, rng: np.random.Generator
) -> None:
    assert not cut_wrong(case, precision, rng)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("precision", DTYPES)
def test_patches_are_those_of_two_steps(precision: str, rng: np.random.Generator) -> None:
    images, settings = xp.asarray(pixels((2, 3, 8, 12), rng)), statistics(3)
    numbers = ops.normalize_images(images, *settings, "float32", xp=xp)
    steps = stored(ops.patchify(numbers, (4, 4), xp=xp).get(), precision, xp=np)
    y = patchify_pixels(images, (4, 4), *settings, DTYPES[precision], xp)
    assert y.get().tobytes() == steps.tobytes()


@pytest.mark.usefixtures("emulated")
def test_views_and_what_the_reference_serves(rng: np.random.Generator) -> None:
    host = pixels((2, 9, 8, 3), rng)
    view = xp.asarray(host).transpose(0, 3, 1, 2)[:, :, ::2]
    expected, lost = exact(host.transpose(0, 3, 1, 2)[:, :, ::2])
    y = ops.normalize_images(view, *statistics(3), "float32", xp=xp)
    assert (np.abs(y.get() - expected) <= lost).all()
    kernel: Any = ops.normalize_images.kernels["cupy"]
    for images, dtype in (
        (view, "float64"),
        (view.astype("int32"), "float32"),
        (view[0], "float32"),
    ):
        assert kernel(images, *statistics(3), dtype, xp=xp) is NotImplemented
    assert kernel(view, *statistics(4), "float32", xp=xp) is NotImplemented
    with pytest.raises(ValueError, match="of uint8; got float32"):
        patchify_pixels(view.astype("float32"), (5, 2), *statistics(3), "float32", xp)
    with pytest.raises(ValueError, match="do not divide"):
        patchify_pixels(view, (3, 3), *statistics(3), "float32", xp)
    with pytest.raises(ValueError, match="3 channels have 4 means and 4 spreads"):
        patchify_pixels(view, (5, 2), *statistics(4), "float32", xp)


@pytest.mark.usefixtures("emulated")
def test_can_be_recorded(rng: np.random.Generator) -> None:
    images = xp.asarray(pixels((2, 3, 8, 8), rng))
    settings = (*statistics(3), "float32")

    def both() -> tuple[Any, Any]:
        numbers = ops.normalize_images(images, *settings, xp=xp)
        return numbers, patchify_pixels(images, (4, 4), *settings, xp)

    graph, results = record(both, xp=xp)
    images[...] = xp.asarray(pixels((2, 3, 8, 8), rng))
    graph.replay()
    for found, right in zip(results, both(), strict=True):
        assert found.get().tobytes() == right.get().tobytes()


FAULTS = {
    "factors of other channels": ("one_of(i, factor0, factor1,", "one_of(i, factor1, factor0,"),
    "shifts of other channels": ("shift3);\n  const i64 at", "shift2);\n  const i64 at"),
    "the fifth channel": ("channels + first + i", "channels + i"),
    "another image": ("blockIdx.x / across, i = blockIdx.y", "0, i = blockIdx.y"),
    "one block of a channel": ("blockIdx.x % across * blockDim.x", "0"),
    "a dropped tail": ("if (pixel >= pixels) return", "if (pixel + 1 >= pixels) return"),
    "a wrong sign": ("v[k] * factor + shift", "v[k] * factor - shift"),
}
CUT_FAULTS = {
    "channels of the first group": ("place.channel - first", "place.channel % 4"),
    "channels done before": ("if (i < 0 || i >= 4) return;", "if (i >= 4) return;"),
    "lines mixed up": ("const unsigned d = at % cut.down", "const unsigned d = at % cut.across"),
    "the first image": ("load(x + (image + place.at)", "load(x + (0 + place.at)"),
    "a dropped tail": (
        "if (i < 0 || i >= 4) return;",
        "if (i < 0 || in_patches == count - 1) return;",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_noticed(
    fault: str, plant: Callable[[str, str, str], None], rng: np.random.Generator
) -> None:
    if reason := cuda_on_cpu.why_not():
        pytest.skip(reason)
    plant("images.cuh", *FAULTS[fault])
    with cuda_on_cpu.emulated(), np.errstate(all="ignore"):
        assert any(wrong(shape, rng) for shape in SHAPES)


@pytest.mark.parametrize("fault", CUT_FAULTS)
def test_a_planted_fault_of_patches_is_noticed(
    fault: str, plant: Callable[[str, str, str], None], rng: np.random.Generator
) -> None:
    if reason := cuda_on_cpu.why_not():
        pytest.skip(reason)
    plant("images.cuh", *CUT_FAULTS[fault])
    with cuda_on_cpu.emulated(), np.errstate(all="ignore"):
        assert any(cut_wrong(case, "bfloat16", rng) for case in CUTS)
