"""Gradients of weights and biases of shapes whose parts do not go up in the threads there are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from vitkit import kernels

if reason := kernels.why_none(np):
    pytest.skip(f"no CPU kernels here: {reason}", allow_module_level=True)

from vitkit.backend.precision import from_bfloat16, to_bfloat16
from vitkit.kernels.cpu._branch import add_gradients
from vitkit.kernels.cpu._processor import why_no_bfloat16

WIDE = [(32, 24), (96, 32), (13, 12), (400, 390)]
DEEP = [(24, 32), (16, 32), (32, 64), (32, 128), (1, 100), (192, 770)]
ROWS = 150  # more than are multiplied at once, and some left over
shapes = pytest.mark.parametrize(("width", "depth"), [*WIDE, *DEEP, (1, 1), (33, 33)])
counts = pytest.mark.parametrize("count", [1, 2, 4, 8])


def close(actual: np.ndarray, expected: np.ndarray) -> None:
    error = np.abs(actual - expected).max() / np.abs(expected).max()
    assert error <= ROWS**0.5 * np.finfo(np.float32).eps, error


@shapes
@counts
def test_every_column_is_summed_once(
    width: int, depth: int, count: int, set_threads: Callable[..., None]
) -> None:
    set_threads(count)
    rng = np.random.default_rng(width + depth)
    dy, x = (rng.standard_normal((ROWS, n)).astype(np.float32) for n in (width, depth))
    dweight, dbias = np.ones((width, depth), np.float32), np.ones(width, np.float32)
    add_gradients(dy, x, dweight, dbias)
    wide = dy.astype(float)
    close(dweight, 1 + wide.T @ x)
    close(dbias, 1 + wide.sum(axis=0))


@pytest.mark.parametrize(("width", "depth"), [(32, 32), (96, 32), (32, 64), (64, 416)])
@counts
def test_so_it_is_of_bfloat16(
    width: int, depth: int, count: int, set_threads: Callable[..., None]
) -> None:
    if reason := why_no_bfloat16():
        pytest.skip(f"no bfloat16 kernels here: {reason}")
    set_threads(count)
    rng = np.random.default_rng(width + depth)
    dy, x = (
        to_bfloat16(rng.standard_normal((ROWS, n)).astype(np.float32), xp=np)
        for n in (width, depth)
    )
    dweight, dbias = np.ones((width, depth), np.float32), np.ones(width, np.float32)
    add_gradients(dy, x, dweight, dbias)
    wide, right = (from_bfloat16(each, xp=np).astype(float) for each in (dy, x))
    close(dweight, 1 + wide.T @ right)
    close(dbias, 1 + wide.sum(axis=0))
