"""bfloat16 by its bits, against PyTorch's."""

from __future__ import annotations

import numpy as np
import pytest

from vitkit.backend import ArrayModule, to_numpy
from vitkit.backend.precision import from_bfloat16, operand, stored, to_bfloat16

LARGEST = float(np.finfo(np.float32).max)
SPECIAL = [0.0, -0.0, np.inf, -np.inf, 1e-40, -3e-45, LARGEST, -LARGEST, 1.00390625, 1.01171875]


def numbers() -> np.ndarray:
    """Return numbers of every size, ties between two bfloat16, and what is special."""
    words = np.random.default_rng(0).integers(0, 2**32, 50_000, dtype=np.uint32)
    drawn = words.view(np.float32)
    ties = ((words & 0xFFFF0000) | 0x8000).view(np.float32)
    return np.concatenate([drawn, ties, np.float32(SPECIAL)])


def test_rounds_as_pytorch_does(xp: ArrayModule) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch, which values are compared to, is missing")
    x = numbers()
    expected = torch.from_numpy(x).to(torch.bfloat16).float().numpy()
    actual = to_numpy(from_bfloat16(to_bfloat16(xp.asarray(x), xp=xp), xp=xp))
    np.testing.assert_array_equal(actual, expected)  # NaN where there is NaN


def test_a_nan_of_low_bits_stays_one(xp: ArrayModule) -> None:
    x = np.array([0x7F800001, 0xFF800001, 0x7FFFFFFF], np.uint32).view(np.float32)
    assert np.isnan(to_numpy(from_bfloat16(to_bfloat16(xp.asarray(x), xp=xp), xp=xp))).all()


def test_float32_is_left_alone(xp: ArrayModule) -> None:
    x = xp.asarray(np.float32([1.0, 2.5]))
    assert stored(x, "float32", xp=xp) is x
    assert operand(x, "float32", xp=xp) is x


def test_an_operand_is_rounded_once(xp: ArrayModule) -> None:
    x = xp.asarray(np.float32([1.00390625, -7.77, 1e-3]))
    kept = stored(x, "bfloat16", xp=xp)
    assert kept.dtype == "uint16"
    once, again = operand(x, "bfloat16", xp=xp), operand(kept, "bfloat16", xp=xp)
    np.testing.assert_array_equal(to_numpy(once), to_numpy(again))
    np.testing.assert_array_equal(to_numpy(operand(once, "bfloat16", xp=xp)), to_numpy(once))
