"""Branches of a block in bfloat16: kernels against the references that round as they do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vitkit import kernels, ops
from vitkit.backend.precision import from_bfloat16
from vitkit.ops import reference_only
from vitkit.ops.attention_branch import AttentionArrays
from vitkit.ops.mlp import MLPArrays

if reason := kernels.why_none(np):
    pytest.skip(f"no CPU kernels here: {reason}", allow_module_level=True)

from vitkit.kernels.cpu._processor import why_no_bfloat16

if reason := why_no_bfloat16():
    pytest.skip(f"no bfloat16 kernels here: {reason}", allow_module_level=True)

# A sum in another order may round to the neighbouring bfloat16, 2^-8 away, and so may what is made
# of it; that many arrays are rounded one after the other on the way from x to dx.
TOLERANCE = 4 * 2.0**-8
SIZES = [(2, 31, 32, 1), (1, 32, 64, 2), (3, 33, 96, 3), (2, 65, 192, 3), (1, 197, 160, 2)]
SIZES += [(2, 229, 64, 2)]  # more queries, and more rows, than are done at once
BRANCHES = ["mlp_branch", "attention_branch"]
sizes = pytest.mark.parametrize(("batch", "tokens", "dim", "heads"), SIZES)
branches = pytest.mark.parametrize("name", BRANCHES)


class Branch:
    """One branch with its arrays, forward and backward."""

    def __init__(self, name: str, batch: int, tokens: int, dim: int, heads: int) -> None:
        rng = np.random.default_rng(len(name) + tokens)

        def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
            return (scale * rng.standard_normal(shape)).astype(np.float32)

        attends = name.startswith("attention")
        hidden, kind = (3 * dim, AttentionArrays) if attends else (2 * dim, MLPArrays)
        last = dim if attends else hidden
        self.name, self.kind = name, kind
        self.x, self.dy = normal(batch, tokens, dim), normal(batch, tokens, dim)
        self.weights = kind(
            normal(dim),
            normal(dim),
            normal(hidden, dim, scale=dim**-0.5),
            normal(hidden),
            normal(dim, last, scale=last**-0.5),
            normal(dim),
        )
        self.settings = (heads, 1e-6) if attends else (1e-6, "gelu")
        self.gain = rng.random(batch, np.float32) + 0.5

    def forward(self, keep: bool = True) -> Any:
        op = getattr(ops, self.name)
        function = op if ops._op.kernels_off() else op.kernels["numpy"]
        return function(self.x, self.weights, *self.settings, self.gain, "bfloat16", keep, xp=np)

    def backward(self, kept: Any) -> tuple[np.ndarray, ...]:
        op = getattr(ops, f"{self.name}_backward_inplace")
        function = op if ops._op.kernels_off() else op.kernels["numpy"]
        grads = self.kind(*(np.ones_like(weight) for weight in self.weights))
        dx = function(self.dy, self.x, kept, self.weights, grads, self.gain, "bfloat16", xp=np)
        return (dx, *grads)


def close(actual: np.ndarray, expected: np.ndarray) -> None:
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    if actual.dtype == np.uint16:
        actual, expected = (from_bfloat16(array, xp=np) for array in (actual, expected))
    error = np.abs(actual - expected).max() / np.abs(expected).max()
    assert error <= TOLERANCE, error


@branches
@sizes
def test_kernels_round_where_references_do(
    name: str, batch: int, tokens: int, dim: int, heads: int
) -> None:
    branch = Branch(name, batch, tokens, dim, heads)
    with reference_only():
        expected, kept_expected = branch.forward()
        gradients_expected = branch.backward(kept_expected)
    y, kept = branch.forward()
    close(y, expected)
    np.testing.assert_array_equal(branch.forward(keep=False)[0], y)
    for actual, right in zip(kept, kept_expected, strict=True):
        close(actual, right)
    for actual, right in zip(branch.backward(kept), gradients_expected, strict=True):
        close(actual, right)


@branches
def test_it_is_nearer_to_its_reference_than_to_float32(name: str) -> None:
    branch = Branch(name, 2, 65, 192, 3)
    y, _ = branch.forward()
    with reference_only():
        rounded, _ = branch.forward()
        op = getattr(ops, name)
        full, _ = op(
            branch.x, branch.weights, *branch.settings, branch.gain, "float32", False, xp=np
        )
    assert np.abs(y - rounded).mean() < 0.1 * np.abs(full - rounded).mean()


@branches
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_comes_out_where_it_does(name: str, value: float) -> None:
    branch = Branch(name, 2, 33, 64, 2)
    branch.x[1, 7, 3] = value
    with reference_only(), np.errstate(all="ignore"):
        expected, kept_expected = branch.forward()
        gradients_expected = branch.backward(kept_expected)
    y, kept = branch.forward()
    np.testing.assert_array_equal(np.isfinite(y), np.isfinite(expected))
    assert not np.isfinite(y).all()
    for actual, right in zip(branch.backward(kept), gradients_expected, strict=True):
        np.testing.assert_array_equal(np.isfinite(actual), np.isfinite(right))


@branches
def test_the_same_bits_every_time(name: str) -> None:
    branch = Branch(name, 3, 65, 96, 3)
    runs = []
    for _ in range(3):
        y, kept = branch.forward()
        runs.append((y, *kept, *branch.backward(kept)))
    for again in runs[1:]:
        for one, two in zip(runs[0], again, strict=True):
            np.testing.assert_array_equal(one, two)


@branches
@pytest.mark.parametrize("dim", [12, 33])
def test_widths_that_tiles_do_not_fill_are_left_to_the_reference(name: str, dim: int) -> None:
    branch = Branch(name, 2, 33, dim, 1)
    assert branch.forward() is NotImplemented
