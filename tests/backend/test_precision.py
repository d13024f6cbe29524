"""The numbers that products are made of: by their bits, against PyTorch's and exact arithmetic."""

from __future__ import annotations

import logging
from typing import Any, get_args

import numpy as np
import pytest

from vitkit import kernels, ops
from vitkit.backend import ArrayModule, to_numpy
from vitkit.backend.precision import (
    PRECISIONS,
    from_bfloat16,
    operand,
    stored,
    to_bfloat16,
    to_float16,
    to_tf32,
)
from vitkit.config.run import TrainConfig
from vitkit.testing import strict_device

LARGEST = float(np.finfo(np.float32).max)
SPECIAL = [0.0, -0.0, np.inf, -np.inf, 1e-40, -3e-45, LARGEST, -LARGEST, 1.00390625, 1.01171875]
ROUNDED = [name for name in PRECISIONS if name != "float32"]
DTYPES = {"float32": "float32", "tf32": "float32", "bfloat16": "uint16", "float16": "float16"}


def numbers(dropped: int = 16) -> np.ndarray:
    """Return numbers of every size, ties where so many bits are dropped, and what is special."""
    words = np.random.default_rng(0).integers(0, 2**32, 50_000, dtype=np.uint32)
    drawn = words.view(np.float32)
    kept, tie = np.uint32(2**32 - 2**dropped), np.uint32(2 ** (dropped - 1))
    ties = ((words & kept) | tie).view(np.float32)
    return np.concatenate([drawn, ties, np.float32(SPECIAL)])


def by_exact_arithmetic(x: np.ndarray, mantissa: int, smallest: int, largest: float) -> np.ndarray:
    """Return numbers rounded to so many bits of mantissa, ties to even, in float64.

    ``smallest`` is the exponent of the smallest normal number; what rounds to more than
    ``largest`` is infinite.
    """
    wide = x.astype(np.float64)
    exponents = np.maximum(np.frexp(wide)[1] - 1, smallest)
    steps = np.ldexp(1.0, np.where(np.isfinite(wide), exponents, 0) - mantissa)
    rounded = np.rint(wide / steps) * steps  # rint takes ties to even
    return np.where(np.abs(rounded) > largest, np.copysign(np.inf, wide), rounded)


def same_bits(actual: np.ndarray, expected: np.ndarray) -> None:
    """Compare float32 by value and sign of zero; any NaN is as good as another."""
    np.testing.assert_array_equal(actual, expected)
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(actual)[numbers], np.signbit(expected)[numbers])


def test_rounds_as_pytorch_does(xp: ArrayModule) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch, which values are compared to, is missing")
    x = numbers()
    expected = torch.from_numpy(x).to(torch.bfloat16).float().numpy()
    actual = to_numpy(from_bfloat16(to_bfloat16(xp.asarray(x), xp=xp), xp=xp))
    np.testing.assert_array_equal(actual, expected)  # NaN where there is NaN


def test_float16_rounds_as_pytorch_does(xp: ArrayModule) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch, which values are compared to, is missing")
    around = np.linspace(2.0**-26, 2.0**-13, 20_001, dtype=np.float32)  # where it has fewer bits
    x = np.concatenate([numbers(13), around, -around, np.linspace(6e4, 7e4, 5_001, dtype="f4")])
    half = to_float16(xp.asarray(x), xp=xp)
    assert half.dtype == "float16"
    same_bits(to_numpy(half).astype("f4"), torch.from_numpy(x).to(torch.float16).float().numpy())


@pytest.mark.parametrize(
    ("precision", "dropped", "format"),
    [
        ("tf32", 13, (10, -126, (2 - 2.0**-10) * 2.0**127)),
        ("bfloat16", 16, (7, -126, (2 - 2.0**-7) * 2.0**127)),
        ("float16", 13, (10, -14, 65504.0)),
    ],
)
def test_an_operand_is_the_nearest_number(
    precision: str, dropped: int, format: tuple[int, int, float], xp: ArrayModule
) -> None:
    x = numbers(dropped)
    x = x[~np.isnan(x)]
    actual = to_numpy(operand(xp.asarray(x), precision, xp=xp))
    assert actual.dtype == np.float32
    same_bits(actual, by_exact_arithmetic(x, *format).astype(np.float32))


ULP = 2.0**-10
EDGES = {
    "tf32": [
        *((1 + ULP / 2, 1.0), (1 + 3 * ULP / 2, 1 + 2 * ULP), (1 + ULP / 2 + 2**-23, 1 + ULP)),
        *((-1 - ULP / 2, -1.0), (0.0, 0.0), (-0.0, -0.0), (LARGEST, np.inf), (-LARGEST, -np.inf)),
        ((2 - ULP) * 2.0**127, (2 - ULP) * 2.0**127),  # its largest number
        ((2 - ULP / 2 - 2**-23) * 2.0**127, (2 - ULP) * 2.0**127),  # the last below the tie
        ((2 - ULP / 2) * 2.0**127, np.inf),  # the tie, of which infinity is the even side
        *((2.0**-149, 0.0), (2.0**-137, 0.0), (3 * 2.0**-137, 2.0**-135), (2.0**-136, 2.0**-136)),
        *((np.inf, np.inf), (-np.inf, -np.inf)),
    ],
    "float16": [
        *((1 + ULP / 2, 1.0), (1 + 3 * ULP / 2, 1 + 2 * ULP), (1 + ULP / 2 + 2**-23, 1 + ULP)),
        *((65504.0, 65504.0), (65519.996, 65504.0), (65520.0, np.inf), (-65520.0, -np.inf)),
        *((2.0**-24, 2.0**-24), (2.0**-25, 0.0), (3 * 2.0**-25, 2.0**-23), (-(2.0**-25), -0.0)),
        *((2.0**-25 + 2.0**-48, 2.0**-24), (1e-40, 0.0), (LARGEST, np.inf), (-np.inf, -np.inf)),
    ],
}


@pytest.mark.parametrize("precision", EDGES)
def test_edges(precision: str, xp: ArrayModule) -> None:
    x, expected = (np.float32(side) for side in zip(*EDGES[precision], strict=True))
    same_bits(to_numpy(operand(xp.asarray(x), precision, xp=xp)), expected)


NANS = np.array([0x7F800001, 0xFF800001, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FC00000], np.uint32)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_nan_of_low_bits_stays_one(precision: str, xp: ArrayModule) -> None:
    x = xp.asarray(NANS.view(np.float32))
    kept = stored(x, precision, xp=xp)
    assert np.isnan(to_numpy(operand(kept, precision, xp=xp))).all()
    assert np.isnan(to_numpy(operand(x, precision, xp=xp))).all()


def test_float32_is_left_alone(xp: ArrayModule) -> None:
    x = xp.asarray(np.float32([1.0, 2.5]))
    assert stored(x, "float32", xp=xp) is x
    assert operand(x, "float32", xp=xp) is x
    assert stored(x, "tf32", xp=xp) is x


@pytest.mark.parametrize("precision", ROUNDED)
def test_an_operand_is_rounded_once(precision: str, xp: ArrayModule) -> None:
    x = xp.asarray(np.float32([1.00390625, -7.77, 1e-3, 1e6]))
    kept = stored(x, precision, xp=xp)
    assert kept.dtype == DTYPES[precision]
    once, again = operand(x, precision, xp=xp), operand(kept, precision, xp=xp)
    np.testing.assert_array_equal(to_numpy(once), to_numpy(again))
    np.testing.assert_array_equal(to_numpy(operand(once, precision, xp=xp)), to_numpy(once))
    assert (to_numpy(once) != to_numpy(x)).any()


@pytest.mark.parametrize("precision", ROUNDED)
def test_arrays_of_any_layout_keep_their_shape(precision: str, xp: ArrayModule) -> None:
    x = xp.asarray(np.random.default_rng(0).standard_normal((3, 4, 5)).astype("f4"))
    turned = operand(x.transpose(2, 0, 1)[::2], precision, xp=xp)
    expected = to_numpy(operand(x, precision, xp=xp)).transpose(2, 0, 1)[::2]
    np.testing.assert_array_equal(to_numpy(turned), expected)


def test_no_rounding_waits_for_the_device() -> None:
    xp = strict_device.xp
    x = xp.asarray(np.float32([1e6, 1.0, np.nan]))
    with strict_device.count_syncs() as syncs:
        for precision in PRECISIONS:
            operand(stored(x, precision, xp=xp), precision, xp=xp)
    assert syncs == []


def test_tf32_of_a_product_is_not_in_its_last_bits(xp: ArrayModule) -> None:
    x = xp.asarray(numbers(13))
    bits = to_numpy(to_tf32(x, xp=xp)).view(np.uint32)
    assert not (bits & 0x1FFF)[~np.isnan(numbers(13))].any()


def test_configurations_know_every_precision() -> None:
    assert get_args(TrainConfig.model_fields["precision"].annotation) == PRECISIONS


def asked(precision: str, xp: ArrayModule, caplog: Any) -> tuple[str, list[str]]:
    """Return what is served, and what is said about it."""
    caplog.clear()
    with caplog.at_level(logging.WARNING, "vitkit"):
        served = kernels.served_precision(precision, xp, "float32")
    return served, caplog.messages


@pytest.mark.parametrize("precision", ["tf32", "float16"])
def test_a_cpu_computes_float32_where_a_gpu_is_asked_for(
    precision: str, kernels_on: None, caplog: Any
) -> None:
    line = f"precision={precision!r} is computed in float32 here: it is for GPUs."
    assert asked(precision, np, caplog) == ("float32", [line])


@pytest.mark.parametrize("precision", ROUNDED)
def test_a_device_without_kernels_computes_float32(
    precision: str, kernels_on: None, caplog: Any
) -> None:
    served, said = asked(precision, strict_device.xp, caplog)
    start = f"precision={precision!r} is computed in float32 here: there are none for strict_device"
    assert (served, said) == ("float32", [f"{start}."])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("module", [np, strict_device.xp], ids=["numpy", "strict_device"])
def test_references_compute_what_is_asked(precision: str, module: ArrayModule, caplog: Any) -> None:
    with ops.reference_only():
        assert asked(precision, module, caplog) == (precision, [])


def test_none_but_these_can_be_asked_for() -> None:
    with pytest.raises(ValueError, match="float32, tf32, bfloat16, float16; got 'float8'"):
        kernels.served_precision("float8", np, "float32")
    for precision in ROUNDED:
        with pytest.raises(ValueError, match=f"'{precision}' needs dtype='float32'; got float64"):
            kernels.served_precision(precision, np, "float64")
