"""Mish keeps the contract of activations, and its kernels that of kernels."""

import numpy as np
import pytest

from vitkit.testing import check_activation, check_kernel
from vitkit_extras_optim import mish, mish_backward
from vitkit_extras_optim.mish_numpy import mish_backward_numpy, mish_numpy


def test_it_keeps_the_contract() -> None:
    check_activation(mish, mish_backward, torch=lambda torch: torch.nn.functional.mish)


def test_its_kernels_keep_the_contract() -> None:
    check_kernel(mish, mish_numpy)
    check_kernel(mish_backward, mish_backward_numpy)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_it_is_exact_where_the_formula_of_the_paper_is_not(dtype: str) -> None:
    large = np.array([20, 100, 1e30], dtype)
    assert np.array_equal(mish(large, xp=np), large)
    small = np.array([-30, -40], dtype)  # tanh(log1p(e)) is e, to the last digit
    assert mish(small, xp=np) == pytest.approx(small * np.exp(small), rel=1e-6)
    assert mish(np.zeros(1, dtype), xp=np) == 0
