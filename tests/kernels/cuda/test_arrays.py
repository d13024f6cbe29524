"""Arrays as kernels take them: without gaps, and of the shape that they had."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vitkit import ops
from vitkit.backend import to_numpy
from vitkit.kernels.cuda._arrays import aligned, plain
from vitkit.testing import strict_device

xp = strict_device.xp

OPERATIONS: dict[str, Callable[..., Any]] = {
    "gelu": ops.gelu,
    "gelu_backward": lambda x, *, xp: ops.gelu_backward(x, x, xp=xp),
    "gelu_tanh": ops.gelu_tanh,
    "dropout": lambda x, *, xp: ops.dropout(x, 0.0, (1, 2, 3), xp=xp),
}


@pytest.mark.usefixtures("emulated_once")
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_single_number_keeps_its_shape(name: str) -> None:
    number = np.asarray(0.5, "float32")
    with ops.reference_only():
        expected = OPERATIONS[name](number, xp=np)
    found = to_numpy(OPERATIONS[name](xp.asarray(number), xp=xp))
    assert found.shape == ()
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("make", [plain, aligned])
def test_only_gaps_are_taken_out(make: Callable[..., Any]) -> None:
    whole = xp.asarray(np.arange(12, dtype="float32").reshape(3, 4))
    assert make(whole, xp) is whole
    assert make(whole[1:2, :], xp).shape == (1, 4)
    turned = make(whole.T, xp)
    assert turned.flags.c_contiguous
    np.testing.assert_array_equal(to_numpy(turned), to_numpy(whole).T)
