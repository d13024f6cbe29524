"""Fragments of tensor cores, as the PTX ISA lays them out; the layout is written again here.

From "Matrix Fragments for mma.m16n8k16 with floating point type" and "ldmatrix".
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from vitkit.kernels.cuda import _kernel
from vitkit.kernels.cuda._kernel import Family
from vitkit.testing import cuda_on_cpu, strict_device

xp = strict_device.xp
LOW = ("bf16", "f16")
STEP = 24  # numbers from a row in shared memory to the next
PROBES = f"""
template <class T>
__global__ void product(const unsigned* a, const unsigned* b, float* c) {{
  const int i = threadIdx.x;
  const unsigned left[4] = {{a[i * 4], a[i * 4 + 1], a[i * 4 + 2], a[i * 4 + 3]}};
  float sum[4] = {{c[i * 4], c[i * 4 + 1], c[i * 4 + 2], c[i * 4 + 3]}};
  multiply<T>(left, b[i * 2], b[i * 2 + 1], sum);
  for (int k = 0; k < 4; k++) c[i * 4 + k] = sum[k];
}}

// Rows of a (16, 16) matrix of which only the first ``there`` are brought; read in three ways.
template <class T>
__global__ void squares(const T* matrix, unsigned* out, int there) {{
  DYNAMIC_SHARED(memory);
  T* rows = reinterpret_cast<T*>(memory);
  const int i = threadIdx.x, row = i / 2, c = i % 2 * 8;
  copy_to_shared<16>(rows + row * {STEP} + c, matrix + row * 16 + c, row < there);
  copies_arrived();
  __syncwarp();
  unsigned found[3][4];
  load_left<{STEP}>(rows, found[0]);
  load_columns<{STEP}>(rows, found[1]);
  load_right<{STEP}>(rows, found[2]);
  for (int k = 0; k < 12; k++) out[(k / 4 * 32 + i) * 4 + k % 4] = found[k / 4][k % 4];
}}

// Eight numbers from each of 32 places.
template <class T>
__global__ void quadrants(const T* numbers, const int* places, unsigned* out) {{
  DYNAMIC_SHARED(memory);
  T* all = reinterpret_cast<T*>(memory);
  const int i = threadIdx.x;
  copy_to_shared<16>(all + i * 8, numbers + i * 8, true);
  copies_arrived();
  __syncwarp();
  unsigned found[2][4];
  load_quadrants<false>(all + places[i], found[0]);
  load_quadrants<true>(all + places[i], found[1]);
  for (int k = 0; k < 8; k++) out[(k / 4 * 32 + i) * 4 + k % 4] = found[k / 4][k % 4];
}}

template <class T>
__global__ void pairs(const float* x, unsigned* y) {{
  y[threadIdx.x] = pack<T>(x[2 * threadIdx.x], x[2 * threadIdx.x + 1]);
}}
"""
Probes = dict[str, Family]


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> Probes:
    """Return kernels that do one thing each with what ``tensor.cuh`` has."""
    source = _kernel.source
    monkeypatch.setattr(_kernel, "source", lambda name: source(name) + PROBES)
    monkeypatch.setattr(_kernel, "FAMILIES", [])  # or all kernels of the package are compiled
    names = ("product", "squares", "quadrants", "pairs")
    return {name: Family("tensor.cuh", f"{name}<{{x}}>", least=80, x=LOW) for name in names}


def bits(x: np.ndarray, kind: str) -> np.ndarray:
    """Return the bits of numbers that bfloat16 and float16 both hold exactly."""
    if kind == "f16":
        return x.astype("float16").view("uint16")
    return (x.astype("float32").view("uint32") >> 16).astype("uint16")


def numbers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Return sums of a few powers of two."""
    return rng.integers(-127, 128, shape) * 2.0 ** rng.integers(-6, 3, shape)


def left_place(lane: int, i: int) -> tuple[int, int]:
    group, member = lane >> 2, lane % 4
    row = group if 0 <= i < 2 or 4 <= i < 6 else group + 8
    return row, member * 2 + (i & 1) + (0 if i < 4 else 8)


def right_place(lane: int, i: int) -> tuple[int, int]:
    group, member = lane >> 2, lane % 4
    return member * 2 + (i & 1) + (0 if i < 2 else 8), group


def result_place(lane: int, i: int) -> tuple[int, int]:
    group, member = lane >> 2, lane % 4
    return (group if i < 2 else group + 8), member * 2 + (i & 1)


def fragments(
    matrix: np.ndarray, place: Callable[[int, int], tuple[int, int]], count: int
) -> np.ndarray:
    """Return what each lane holds of a matrix, (32, count)."""
    return np.array([[matrix[place(lane, i)] for i in range(count)] for lane in range(32)])


def registers(halves: np.ndarray) -> np.ndarray:
    """Return pairs of 16 bits as words, the first in the lower half."""
    pairs = halves.reshape(*halves.shape[:-1], -1, 2).astype("uint32")
    return np.asarray(pairs[..., 0] | pairs[..., 1] << 16)


def product_error(probes: Probes, kind: str, rng: np.random.Generator) -> float:
    """Return the worst error of a product, over what float32 may lose."""
    a, b, c = numbers(rng, 16, 16), numbers(rng, 16, 8), numbers(rng, 16, 8)
    left = registers(bits(fragments(a, left_place, 8), kind))
    right = registers(bits(fragments(b, right_place, 4), kind))
    out = xp.asarray(fragments(c, result_place, 4).astype("float32"))
    probes["product"](x=kind)((1,), (32,), xp.asarray(left), xp.asarray(right), out, xp=xp)
    expected = fragments(a @ b + c, result_place, 4)
    most = fragments(np.abs(a) @ np.abs(b) + np.abs(c), result_place, 4)
    return float((np.abs(out.get() - expected) / (17 * np.finfo("float32").eps * most)).max())


def square_errors(probes: Probes, kind: str, there: int, rng: np.random.Generator) -> int:
    """Return how many registers are not those of the operands that a square is read as."""
    matrix = numbers(rng, 16, 16)
    shown = np.where(np.arange(16)[:, None] < there, matrix, 0)
    out = xp.empty((3, 32, 4), "uint32")
    given = xp.asarray(bits(matrix, kind).view("uint16" if kind == "bf16" else "float16"))
    shared = 16 * STEP * 2
    probes["squares"](x=kind)((1,), (32,), given, out, there, shared=shared, xp=xp)
    columns = [fragments(part, right_place, 4) for part in (shown[:8].T, shown[8:].T)]
    right = [fragments(part, right_place, 4) for part in (shown[:, :8], shown[:, 8:])]
    expected = [fragments(shown, left_place, 8), np.hstack(columns), np.hstack(right)]
    return int((out.get() != registers(bits(np.array(expected), kind))).sum())


def pair_errors(probes: Probes, kind: str) -> int:
    """Return how many of 32 pairs are not rounded to the nearest, ties to even, first one low."""
    ties = 1 + np.arange(16) * 2.0**-9  # halfway between bfloat16 numbers are 2 and 6 mod 8
    fine = 1 + np.arange(16) * 2.0**-12
    special = [np.inf, -np.inf, 0.0, -0.0, 3.4e38, 65519.0, 65520.0, 1e-40]
    special += [2.0**-24, 2.0**-25, 6e-8, 1.5 * 2.0**-24, -1e-8, 7.0, 1e30, -65536.0]
    x = np.concatenate([ties, fine, special, -ties]).astype("float32")
    out = xp.empty(32, "uint32")
    probes["pairs"](x=kind)((1,), (32,), xp.asarray(x), out, xp=xp)
    with np.errstate(over="ignore"):
        half = x.astype("float16").view("uint16")
    whole = x.view("uint32").astype("uint64")
    brain = ((whole + 0x7FFF + (whole >> 16 & 1)) >> 16).astype("uint16")
    return int((out.get() != registers(half if kind == "f16" else brain)).sum())


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("kind", LOW)
def test_a_product_is_laid_out_as_documented(
    kind: str, probes: Probes, rng: np.random.Generator
) -> None:
    assert max(product_error(probes, kind, rng) for _ in range(4)) <= 1


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("kind", LOW)
@pytest.mark.parametrize("there", [16, 11, 0])
def test_squares_become_operands(
    kind: str, there: int, probes: Probes, rng: np.random.Generator
) -> None:
    assert square_errors(probes, kind, there, rng) == 0


@pytest.mark.usefixtures("emulated")
def test_rows_come_from_where_lanes_say(probes: Probes, rng: np.random.Generator) -> None:
    halves = rng.integers(0, 1 << 16, (32, 8)).astype("uint16")
    order = rng.permutation(32)
    out = xp.empty((2, 32, 4), "uint32")
    places = xp.asarray((order * 8).astype("int32"))
    probes["quadrants"](x="bf16")((1,), (32,), xp.asarray(halves), places, out, shared=512, xp=xp)
    # Lane 8 m + r names row r of matrix m, which is register m of lanes 4 r to 4 r + 3.
    matrices = halves[order].reshape(4, 8, 8)
    for found, each in zip(out.get(), (matrices, matrices.transpose(0, 2, 1)), strict=True):
        np.testing.assert_array_equal(found, registers(each).transpose(1, 2, 0).reshape(32, 4))


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("kind", LOW)
def test_pairs_are_rounded_to_the_nearest_even(kind: str, probes: Probes) -> None:
    assert pair_errors(probes, kind) == 0


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("kind", LOW)
def test_pairs_keep_nan(kind: str, probes: Probes) -> None:
    x = np.array([0x7FC00000, 0x7F800001, 0xFF800001, 0xFFFFFFFF] * 16, "uint32").view("float32")
    out = xp.empty(32, "uint32")
    probes["pairs"](x=kind)((1,), (32,), xp.asarray(x), out, xp=xp)
    largest = 0x7F80 if kind == "bf16" else 0x7C00
    assert ((out.get().view("uint16") & 0x7FFF) > largest).all()


FAULTS = {
    "halves of rows swapped": (".a[row / 8 + k / 8 * 2]", ".a[row / 8 * 2 + k / 8]"),
    "halves of columns swapped": (".b[k / 8]", ".b[1 - k / 8]"),
    "results of other rows": ("lane / 4 + i / 2 * 8", "lane / 4 + i % 2 * 8"),
    "results of other columns": ("column = lane % 4 * 2 + i % 2", "column = lane % 4 + i % 2 * 4"),
    "the operands swapped": ("number_of<T>(left, k % 2)", "number_of<T>(right, k % 2)"),
    "a half of each pair twice": ("pair >> 16 * which", "pair"),
    "pairs the wrong way around": ("return low.bits | (unsigned)high.bits << 16",
                                   "return high.bits | (unsigned)low.bits << 16"),
    "quadrants in another order": ("(lane >> 4) * 8, square", "(lane & 8), square"),
    "columns as rows": ("((lane & 7) + (lane >> 4) * 8) * STEP + (lane & 8)",
                        "(lane & 15) * STEP + (lane >> 4) * 8"),
    "not transposed": ("load_quadrants<true>", "load_quadrants<false>"),
    "rows of other lanes": ("part = rows + 8 * i", "part = rows + 4 * i"),
    "not waited for": ("cuda_on_cpu::wait_for_copies();", ""),
    "no zeros": ("there ? BYTES : 0", "BYTES"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_noticed(
    fault: str,
    probes: Probes,
    plant: Callable[[str, str, str], None],
    rng: np.random.Generator,
) -> None:
    if reason := cuda_on_cpu.why_not():
        pytest.skip(reason)
    plant("tensor.cuh", *FAULTS[fault])
    noticed = False
    for order in (0, 1):
        with cuda_on_cpu.emulated(order):
            try:
                noticed |= product_error(probes, "f16", rng) > 1
                noticed |= square_errors(probes, "f16", 11, rng) > 0
                noticed |= pair_errors(probes, "f16") > 0
            except RuntimeError as error:
                if "nobody waits for" not in str(error):
                    raise
                noticed = True
    assert noticed
