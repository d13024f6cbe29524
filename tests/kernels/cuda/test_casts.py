"""Casts on a GPU: every bit of bfloat16 and float16, and gradients on their way to a product."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from vitkit import ViT, kernels, ops
from vitkit.backend.precision import from_bfloat16, to_bfloat16
from vitkit.data import Batch
from vitkit.kernels.cuda import _kernel
from vitkit.kernels.cuda.casts import cast, gained_cast
from vitkit.ops import softmax_cross_entropy
from vitkit.optim import AdamW
from vitkit.testing import cuda_on_cpu, strict_device
from vitkit.train.preprocess import Preprocess
from vitkit.train.step import train_step

xp = strict_device.xp
EPS = np.finfo("float32").eps
ORDERS = (0, 1, 2)
SIZES = [1, 3, 31, 32, 33, 65, 197, 4096, 4099]
SHAPES = [(1, 1, 1), (3, 5, 33), (2, 65, 192), (4, 197, 8), (1, 3, 130), (700, 1, 4)]
DTYPES = ["uint16", "float16", "float32"]


def rounded(x: np.ndarray, dtype: str) -> np.ndarray:
    """Return what is stored of float32 numbers."""
    if dtype == "uint16":
        return np.asarray(to_bfloat16(x, xp=np))
    with np.errstate(over="ignore"):
        return x.astype(dtype)


def widened(x: np.ndarray) -> np.ndarray:
    """Return stored numbers as float32."""
    return from_bfloat16(x, xp=np) if x.dtype == np.uint16 else x.astype("float32")


def same(found: np.ndarray, expected: np.ndarray) -> bool:
    """Return whether stored numbers agree in every bit, but for those of NaNs."""
    nan = np.isnan(widened(expected))
    bits = f"uint{8 * expected.itemsize}"
    equal = (found.view(bits) == expected.view(bits)) | nan
    return found.dtype == expected.dtype and bool(
        equal.all() and np.isnan(widened(found)[nan]).all()
    )


def many_float32(rng: np.random.Generator) -> np.ndarray:
    """Return float32 of every size, those halfway between two bfloat16 or float16, and odd ones."""
    bits = rng.integers(0, 2**32, 20_000, dtype="uint32")
    halves = np.arange(0, 2**32, 2**15, dtype="uint32")[::7]
    fine = np.arange(0x33000000, 0x47900000, 0x1000, dtype="uint32")[::11]
    return np.concatenate([bits, halves, halves + 1, fine, fine ^ 0x80000000]).view("float32")


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("dtype", ["uint16", "float16"])
def test_every_number_of_half_the_width_becomes_float32(dtype: str) -> None:
    host = np.arange(2**16, dtype="uint16").view(dtype)
    assert same(cast(xp.asarray(host), "float32", xp).get(), widened(host))


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("dtype", ["uint16", "float16"])
def test_rounds_to_nearest_even(dtype: str, rng: np.random.Generator) -> None:
    host = many_float32(rng)
    assert same(cast(xp.asarray(host), dtype, xp).get(), rounded(host, dtype))


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("size", SIZES)
def test_sizes_and_alignments(size: int, rng: np.random.Generator) -> None:
    host = rng.standard_normal(size + 1).astype("float32")
    for first in (0, 1):
        x = xp.asarray(host)[first:]
        for dtype in ("uint16", "float16"):
            low = cast(x, dtype, xp)
            assert same(low.get(), rounded(host[first:], dtype))
            assert same(cast(low[first:], "float32", xp).get(), widened(low.get()[first:]))


@pytest.mark.usefixtures("emulated_once")
def test_shapes_views_and_what_is_not_a_cast(rng: np.random.Generator) -> None:
    host = rng.standard_normal((4, 6, 10)).astype("float32")
    x = xp.asarray(host)
    view = cast(x[:, ::2].swapaxes(0, 2), "uint16", xp)
    assert same(view.get(), rounded(host[:, ::2].swapaxes(0, 2), "uint16"))
    assert cast(x, "float32", xp).data.ptr == x.data.ptr
    assert cast(xp.asarray(np.float32(2)), "float16", xp).shape == ()
    assert cast(xp.zeros((0, 3), "float32"), "uint16", xp).shape == (0, 3)
    for dtype, to in (("float16", "uint16"), ("float32", "float64"), ("float64", "float32")):
        with pytest.raises(ValueError, match="from or to float32"):
            cast(xp.zeros(3, dtype), to, xp)


def wrong(shape: tuple[int, ...], dtype: str, gains: bool, rng: np.random.Generator) -> str:
    """Return what is wrong with a gradient that was rounded, or nothing."""
    batch, _, width = shape
    dy = rng.standard_normal(shape).astype("float32")
    gain = rng.choice([0.0, 1 / 0.9], batch).astype("float32") if gains else None
    dbias = rng.standard_normal(width).astype("float32")
    into = xp.asarray(dbias)
    with strict_device.count_syncs() as syncs:
        on_device = None if gain is None else xp.asarray(gain)
        found = gained_cast(xp.asarray(dy), on_device, dtype, into, xp)
    assert syncs == []
    expected = rounded(dy if gain is None else dy * gain[:, None, None], dtype)
    if not same(found.get(), expected):
        return "a number"
    terms = widened(expected).astype("float64").reshape(-1, width)
    exact = dbias + terms.sum(axis=0)
    bound = EPS * (2 + np.sqrt(len(terms))) * (np.abs(dbias) + np.abs(terms).max(axis=0))
    return "" if (np.abs(into.get() - exact) <= bound).all() else "a sum"


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("gains", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gained_cast(
    shape: tuple[int, ...], dtype: str, gains: bool, rng: np.random.Generator
) -> None:
    assert wrong(shape, dtype, gains, rng) == ""


@pytest.mark.usefixtures("emulated")
def test_gained_cast_of_odd_numbers_views_and_nothing(rng: np.random.Generator) -> None:
    host = rng.standard_normal((2, 3, 10)).astype("float32")
    host[0, 0, :3] = np.nan, np.inf, 1e-40
    gain = np.asarray([0.0, 2.0], "float32")
    dbias = xp.zeros(5, "float32")
    found = gained_cast(xp.asarray(host)[..., ::2], xp.asarray(gain), "uint16", dbias, xp)
    with np.errstate(invalid="ignore"):
        expected = rounded(host[..., ::2] * gain[:, None, None], "uint16")
    assert same(found.get(), expected)
    assert np.isnan(dbias.get()).tolist() == [True, *[False] * 4]
    empty = gained_cast(xp.zeros((0, 3, 5), "float32"), None, "float16", dbias, xp)
    assert (empty.shape, empty.dtype) == ((0, 3, 5), np.float16)


FAULTS: dict[str, tuple[str, str]] = {
    "a sum before rounding": ("to_float(rounded.at[i])", "v[i] * factor"),
    "a gain of another sample": ("gain[row / tokens]", "gain[0]"),
    "no barrier": ("  __syncthreads();\n  const int mine", "  const int mine"),
    "a warp too few": ("for (int i = 0; i < 8; i++) sum +=", "for (int i = 0; i < 7; i++) sum +="),
    "rows left out": ("row += gridDim.y * 8", "row += gridDim.y * 16"),
    "parts of other blocks": ("(i64)blockIdx.y * width + first", "first"),
    "columns of others": ("sums[warp][lane * V + i]", "sums[warp][lane + i * 32]"),
    "half goes up": ("+ 0x7fffu + ((u >> 16) & 1u)", "+ 0x8000u"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_noticed(
    fault: str, plant: Callable[[str, str, str], None], rng: np.random.Generator
) -> None:
    if reason := cuda_on_cpu.why_not():
        pytest.skip(reason)
    plant("casts.cuh", *FAULTS[fault])

    def is_noticed(order: int) -> bool:
        with cuda_on_cpu.emulated(order), np.errstate(all="ignore"):
            host = many_float32(rng)
            right = same(cast(xp.asarray(host), "uint16", xp).get(), rounded(host, "uint16"))
            return not right or any(wrong(shape, "uint16", True, rng) for shape in SHAPES)

    assert any(map(is_noticed, ORDERS))


@pytest.fixture
def launched(emulated: None) -> Iterator[list[str]]:
    """Return the names of the kernels that run."""
    names: list[str] = []
    launch = _kernel.LAUNCHERS[xp.__name__]

    def counted(kernel: Any, *arguments: Any) -> None:
        names.append(kernel.name)
        launch(kernel, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(_kernel.LAUNCHERS, xp.__name__, counted)
        yield names


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_parts_of_what_is_rounded_once(
    precision: str, launched: list[str], rng: np.random.Generator
) -> None:
    dtype = {"bfloat16": "uint16", "float16": "float16"}[precision]
    values = xp.asarray(rng.standard_normal(64).astype("float32"))
    other = xp.asarray(rng.standard_normal(64).astype("float32"))
    parts = values[:12].reshape(3, 4), values[16:36], values
    with kernels.rounded_once([values], precision, xp=xp):
        found = [cast(part, dtype, xp) for part in parts]
        assert len(launched) == 1
        assert same(cast(other[:5], dtype, xp).get(), rounded(other[:5].get(), dtype))
        turned = cast(parts[0].T, dtype, xp)  # no part without gaps
        assert len(launched) == 3
        kept = values.copy()
        values[...] = 2.0  # as where weights are averaged for a validation, amid a step
        with kernels.rounded_once([values], precision, xp=xp):
            assert same(cast(values, dtype, xp).get(), rounded(values.get(), dtype))
        values[...] = kept
    for part, got in zip((*parts, parts[0].T), (*found, turned), strict=True):
        assert got.shape == part.shape
        assert same(got.get(), rounded(part.get(), dtype))
    values[...] = 7.0
    assert (cast(values, "float16", xp).get() == 7.0).all()  # nothing outlives the block


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_nothing_is_copied_that_is_not_rounded(precision: str, launched: list[str]) -> None:
    values = xp.asarray(np.ones(64, "float32"))
    with kernels.rounded_once([values], precision, xp=xp):
        assert cast(values[:3], "uint16", xp).get().tolist() == [0x3F80] * 3
    assert len(launched) == 1


def steps_of(accumulated: int) -> np.ndarray:
    """Return the weights after two steps of a model, and its logits then."""
    sizes = {"dim": 32, "depth": 2, "num_heads": 1, "mlp_dim": 32, "num_classes": 3}
    model = ViT("Ti/4", image_size=8, in_channels=1, xp=xp, precision="bfloat16", **sizes)
    optimizer = AdamW(1e-2).attach(model)
    images = np.random.default_rng(1).integers(0, 255, (accumulated, 2, 1, 8, 8), "uint8")
    labels, which = np.array([0, 2]), np.arange(2)
    batches = [Batch(each, labels, which, place) for place, each in enumerate(images)]
    preprocess = Preprocess(255.0, (0.5,), (0.5,))
    for step in range(2):
        settings = {"lr": 1e-2, "seed": 0, "step": step}
        train_step(model, optimizer, batches, softmax_cross_entropy, preprocess, **settings)
    logits = model(preprocess(images[0], model))
    return np.concatenate(
        [each.get().ravel() for each in (logits, *(g.values for g in model.groups))]
    )


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_step_rounds_its_weights_once(accumulated: int, launched: list[str]) -> None:
    once, rounding = steps_of(accumulated), roundings(launched)
    launched.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(kernels.ROUNDED, xp.__name__)
        assert np.array_equal(steps_of(accumulated), once)
    assert roundings(launched) > 20 + rounding


def roundings(launched: list[str]) -> int:
    return sum(name.startswith("cast<float, bf16") for name in launched)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("input_gradient", [True, False])
def test_an_affine_map_of_rounded_numbers(
    precision: str, input_gradient: bool, rng: np.random.Generator
) -> None:
    """As the patch embedding is: its operands are cast, its sums and results are float32."""
    dy, x, w, b = (
        rng.standard_normal(s).astype("float32") for s in [(2, 9, 5), (2, 9, 33), (5, 33), 5]
    )
    ways = {"precision": precision, "input_gradient": input_gradient}
    given = [xp.asarray(each) for each in (dy, x, w, b)]
    y = ops.linear(*given[1:], precision=precision, xp=xp)
    found = [y, *ops.linear_backward(*given[:3], **ways, xp=xp)]
    with ops.reference_only():
        expected = [
            ops.linear(x, w, b, precision=precision, xp=np),
            *ops.linear_backward(dy, x, w, **ways, xp=np),
        ]
    assert (found[1] is None) is (not input_gradient)
    for got, wanted in zip(found, expected, strict=True):
        if wanted is not None:
            assert got.dtype == "float32"
            np.testing.assert_allclose(got.get(), wanted, atol=64 * EPS * abs(wanted).max())
