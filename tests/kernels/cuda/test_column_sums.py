"""Sums over the rows of a matrix on a GPU, whatever their number, width and place in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fake_cublaslt import narrow, wide

from vitkit.kernels.cuda import _kernel
from vitkit.kernels.cuda.column_sums import PARTS, add_column_sums
from vitkit.testing import cuda_on_cpu, strict_device

xp = strict_device.xp
EPS = float(np.finfo("float32").eps)
ORDERS = (0, 1, 2)
DTYPES = ["uint16", "float16", "float32"]
MANY = 32 * PARTS + 1  # more rows than one a warp for each of the most blocks
SHAPES = [(1, 1), (3, 33), (31, 256), (33, 264), (70, 1100), (MANY, 8), (MANY, 5)]


def wrong(
    shape: tuple[int, int], dtype: str, adds: bool, rng: np.random.Generator, first: int = 0
) -> bool:
    """Return whether sums are wrong; of an array that begins so many numbers after a boundary."""
    rows, width = shape
    numbers = narrow(rng.standard_normal(first + rows * width), np.dtype(dtype))
    x = xp.asarray(numbers)[first:].reshape(shape)
    before = rng.standard_normal(width).astype("float32")
    out = xp.asarray(before.copy())
    with strict_device.count_syncs() as syncs:
        add_column_sums(x, out, adds=adds, xp=xp)
    assert syncs == []
    terms = wide(numbers[first:].reshape(shape))
    exact = terms.sum(0) + (before if adds else 0)
    bound = EPS * (2 + np.sqrt(rows)) * (np.abs(before) + np.abs(terms).max(0))
    return not (np.abs(out.get() - exact) <= bound).all()


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values(shape: tuple[int, int], dtype: str, adds: bool, rng: np.random.Generator) -> None:
    assert not wrong(shape, dtype, adds, rng)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("first", [1, 2, 4, 8])
def test_arrays_that_lie_anywhere(first: int, dtype: str, rng: np.random.Generator) -> None:
    assert not wrong((70, 264), dtype, True, rng, first)


@pytest.mark.parametrize(("dtype", "numbers"), [("uint16", 8), ("float16", 8), ("float32", 4)])
def test_sixteen_bytes_are_read_at_once(
    dtype: str, numbers: int, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    if reason := cuda_on_cpu.why_not():
        pytest.skip(reason)
    names: list[str] = []
    with cuda_on_cpu.emulated():
        launch = _kernel.LAUNCHERS[xp.__name__]

        def counted(kernel: Any, *arguments: Any) -> None:
            names.append(kernel.name)
            launch(kernel, *arguments)

        monkeypatch.setitem(_kernel.LAUNCHERS, xp.__name__, counted)
        assert not wrong((300, 64), dtype, True, rng)
        monkeypatch.setitem(_kernel.LAUNCHERS, xp.__name__, launch)
    kind = _kernel.TYPES[dtype]
    assert names == [f"column_sums<{kind}, {numbers}>", "column_sums<float, 1>"]


def test_the_same_bits_in_any_order_of_threads() -> None:
    if reason := cuda_on_cpu.why_not():
        pytest.skip(reason)
    x = xp.asarray(np.random.default_rng(3).standard_normal((MANY, 40)).astype("float32"))
    found = []
    for order in ORDERS:
        with cuda_on_cpu.emulated(order):
            out = xp.zeros(40, "float32")
            add_column_sums(x, out, xp=xp)
            found.append(out.get())
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


FAULTS: dict[str, tuple[str, str]] = {
    "no barrier": ("  __syncthreads();\n  const int mine", "  const int mine"),
    "a warp too few": ("i < 8; i++) sum +=", "i < 7; i++) sum +="),
    "rows left out": ("row += AHEAD * step", "row += 2 * AHEAD * step"),
    "rows twice": ("row += AHEAD * step", "row += step"),
    "the first row again": ("v[k].at[i]", "v[0].at[i]"),
    "a row too few": (
        "k < AHEAD; k++) {\n        if (row + k * step >= rows) break;\n#pragma",
        "k < AHEAD - 1; k++) {\n#pragma",
    ),
    "parts of other blocks": ("(i64)blockIdx.y * width + first", "first"),
    "columns of others": ("sums[warp][lane * V + i]", "sums[warp][lane + i * 32]"),
    "nothing is added to": ("adds ? *to : 0.f", "0.f"),
    "all is added to": ("adds ? *to : 0.f", "*to"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_noticed(
    fault: str, plant: Callable[[str, str, str], None], rng: np.random.Generator
) -> None:
    if reason := cuda_on_cpu.why_not():
        pytest.skip(reason)
    plant("column_sums.cuh", *FAULTS[fault])

    def is_noticed(order: int) -> bool:
        with cuda_on_cpu.emulated(order), np.errstate(all="ignore"):
            return any(
                wrong(shape, "uint16", adds, rng) for shape in SHAPES for adds in (False, True)
            )

    assert any(map(is_noticed, ORDERS))
