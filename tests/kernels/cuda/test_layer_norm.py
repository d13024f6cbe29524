"""Layer normalization's CUDA kernels against float64, and against faults planted in them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from vitkit import ops
from vitkit.kernels.cuda import layer_norm
from vitkit.testing import cuda_on_cpu, strict_device

xp = strict_device.xp
EPS = 1e-6
SHAPES = [(2, 5, 33), (1, 1, 1), (3, 65, 192), (2, 31, 768), (600, 32), (4, 3, 6)]


def difference(shape: tuple[int, ...], rng: np.random.Generator) -> float:
    """Return the worst error of all outputs, in units of what float32 may lose in their sums."""
    x, dy = rng.standard_normal((2, *shape)) + 0.5
    weight, bias = rng.standard_normal((2, shape[-1]))
    host = [np.asarray(array, "float32") for array in (x, weight, bias, dy)]
    on_device = [xp.asarray(array) for array in host]
    y, mean, rstd = ops.layer_norm(*on_device[:3], EPS, xp=xp)
    found = ops.layer_norm_backward(on_device[3], *on_device[:2], mean, rstd, xp=xp)
    x64, w64, b64, dy64 = (array.astype("float64") for array in host)
    outputs = ops.layer_norm.reference(x64, w64, b64, EPS, xp=np)
    expected = [*outputs, *ops.layer_norm_backward.reference(dy64, x64, w64, *outputs[1:], xp=np)]
    sums = [shape[-1]] * 4 + [x.size // shape[-1]] * 2
    worst = 0.0
    for got, exact, terms in zip((y, mean, rstd, *found), expected, sums, strict=True):
        error = np.abs(got.get() - exact).max() / max(np.abs(exact).max(), 1)
        units = error / (np.finfo("float32").eps * (4 + np.sqrt(terms)))
        worst = max(worst, np.nan_to_num(units, nan=np.inf))
    return worst


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("shape", SHAPES)
def test_values(shape: tuple[int, ...], rng: np.random.Generator) -> None:
    assert difference(shape, rng) < 1


def test_rows_that_shared_memory_does_not_hold_are_left_to_the_reference() -> None:
    for width, served in ((layer_norm.WIDEST, True), (layer_norm.WIDEST + 1, False)):
        x, line = xp.zeros((2, width), "float32"), xp.zeros((width,), "float32")
        stats = xp.zeros((2, 1), "float32"), xp.zeros((2, 1), "float32")
        assert 4 * 2 * width * layer_norm.ROWS <= 64 << 10 or not served
        if not served:
            found = layer_norm.layer_norm_backward_cuda(x, x, line, *stats, xp=xp)
            assert found is NotImplemented


FAULTS = {
    "a shuffle too few": ("for (int lane = 16; lane", "for (int lane = 8; lane"),
    "no barrier": ("  __syncthreads();\n  const float* all", "  const float* all"),
    "a dropped tail": (
        "c < width; c += 32 * V) {\n    load(x + c, v);\n    load(weight",
        "c < width - 32; c += 32 * V) {\n    load(x + c, v);\n    load(weight",
    ),
    "a wrong sign": ("- sum - (v[i]", "- sum + (v[i]"),
    "a variance of one row": ("/ width + eps", "+ eps"),
    "parts of other blocks": ("blockIdx.x * 2 * width + c", "2 * width + c"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_noticed(
    fault: str, plant: Callable[[str, str, str], None], rng: np.random.Generator
) -> None:
    if reason := cuda_on_cpu.why_not():
        pytest.skip(reason)
    plant("layer_norm.cuh", *FAULTS[fault])
    worst = 0.0
    for order in (0, 1, 2):
        with cuda_on_cpu.emulated(order), np.errstate(all="ignore"):
            errors = [difference(shape, rng) for shape in SHAPES]
        worst = max(worst, np.nan_to_num(errors, nan=np.inf).max())
    assert worst > 1
