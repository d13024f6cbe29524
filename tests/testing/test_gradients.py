"""The checks that other tests rest on find what they should find."""

from __future__ import annotations

import numpy as np
import pytest

from vitkit.backend import Array, ArrayModule, to_numpy
from vitkit.testing import assert_close, directional_derivative_error


def cubes(x: Array, y: Array) -> Array:
    return (x**3).sum() + (x[0] * y).sum()


@pytest.fixture
def arrays(xp: ArrayModule, rng: np.random.Generator) -> list[Array]:
    return [xp.asarray(rng.standard_normal((3, 4))), xp.asarray(rng.standard_normal(4))]


def gradients(arrays: list[Array]) -> list[Array]:
    x, y = arrays
    dx = 3 * x**2
    dx[0] += y
    return [dx, x[0].copy()]


def test_a_right_gradient_has_a_small_error(xp: ArrayModule, arrays: list[Array]) -> None:
    for seed in range(5):
        error = directional_derivative_error(cubes, arrays, gradients(arrays), seed=seed, xp=xp)
        assert error < 1e-7


@pytest.mark.parametrize("which", [0, 1])
def test_one_wrong_entry_is_found(xp: ArrayModule, arrays: list[Array], which: int) -> None:
    wrong = gradients(arrays)
    wrong[which][-1] *= 1.01
    assert directional_derivative_error(cubes, arrays, wrong, xp=xp) > 1e-5


def test_not_a_number_is_not_small(xp: ArrayModule, arrays: list[Array]) -> None:
    wrong = gradients(arrays)
    wrong[1][0] = float("nan")
    assert not directional_derivative_error(cubes, arrays, wrong, xp=xp) < 1e-3


def test_a_constant_has_no_error(xp: ArrayModule, arrays: list[Array]) -> None:
    zeros = [xp.zeros_like(array) for array in arrays]
    assert directional_derivative_error(lambda *_: xp.ones(()), arrays, zeros, xp=xp) == 0


def test_the_arrays_are_put_back(xp: ArrayModule, arrays: list[Array]) -> None:
    before = [to_numpy(array).copy() for array in arrays]
    seen = []

    def failing(*arrays: Array) -> Array:
        seen.append(to_numpy(arrays[0]).copy())
        raise ZeroDivisionError

    directional_derivative_error(cubes, arrays, gradients(arrays), xp=xp)
    with pytest.raises(ZeroDivisionError):
        directional_derivative_error(failing, arrays, gradients(arrays), xp=xp)
    assert not np.array_equal(seen[0], before[0])
    for array, start in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(to_numpy(array), start)


def test_the_direction_depends_on_the_seed_alone(xp: ArrayModule, arrays: list[Array]) -> None:
    wrong = [gradient * 1.5 for gradient in gradients(arrays)]
    wrong[1] *= 2
    errors = [
        directional_derivative_error(cubes, arrays, wrong, seed=seed, xp=xp) for seed in (1, 1, 2)
    ]
    assert errors[0] == errors[1] != errors[2]


def test_arrays_and_gradients_must_match(xp: ArrayModule, arrays: list[Array]) -> None:
    with pytest.raises(ValueError, match="2 arrays need as many gradients; got 1"):
        directional_derivative_error(cubes, arrays, gradients(arrays)[:1], xp=xp)
    with pytest.raises(ValueError, match=r"Gradient 1 .* shape \(4,\); got \(3, 4\)"):
        directional_derivative_error(cubes, arrays, [arrays[0], arrays[0]], xp=xp)


def test_float32_is_refused(xp: ArrayModule) -> None:
    x = xp.ones(3, "float32")
    with pytest.raises(TypeError, match="Array 0 must be float64 for this check; got float32"):
        directional_derivative_error(lambda x: x.sum(), [x], [x], xp=xp)


@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-10), ("float32", 1e-5)])
def test_the_tolerance_follows_dtype_and_largest_value(
    xp: ArrayModule, dtype: str, rtol: float
) -> None:
    expected = np.array([[-8.0, 1.0], [0.0, 4.0]])
    for factor, closes in ((0.5, True), (2.0, False)):
        actual = expected.copy()
        actual[1, 0] = 8 * rtol * factor
        actual = xp.asarray(actual.astype(dtype))
        if closes:
            assert_close(actual, expected)
        else:
            with pytest.raises(AssertionError, match=r"1 of 4 elements differ. Worst at \(1, 0\)"):
                assert_close(actual, expected)


def test_a_long_reduction_loosens_float32_only() -> None:
    one = np.ones(1)
    off = np.float32(1 + 5e-5)
    assert_close(np.array([off]), one, reduction=100)
    with pytest.raises(AssertionError):
        assert_close(np.array([off]), one, reduction=16)
    with pytest.raises(AssertionError):
        assert_close(one + 5e-10, one, reduction=100)


def test_shapes_must_be_equal() -> None:
    with pytest.raises(AssertionError, match=r"shape \(2,\), expected \(1, 2\)"):
        assert_close(np.ones(2), np.ones((1, 2)))


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_must_stand_in_the_same_place(odd: float) -> None:
    a, b = np.array([1.0, odd, 2.0]), np.array([1.0, 2.0, odd])
    assert_close(a, a.copy())
    for other in (b, np.array([1.0, 0.0, 2.0]), np.array([1.0, -odd, 2.0])):
        if not np.array_equal(a, other, equal_nan=True):
            with pytest.raises(AssertionError, match="differ"):
                assert_close(a, other)
            with pytest.raises(AssertionError, match="differ"):
                assert_close(other, a)


def test_integers_must_be_equal() -> None:
    assert_close(np.array([1, 2]), np.array([1, 2]))
    with pytest.raises(AssertionError, match=r"Worst at \(1,\)"):
        assert_close(np.array([10**6, 2]), np.array([10**6, 3]))


def test_empty_arrays_are_close_and_scalars_compared() -> None:
    assert_close(np.ones((0, 3)), np.ones((0, 3)))
    assert_close(np.float32(1), np.float64(1))
    with pytest.raises(AssertionError, match=r"Worst at \(\)"):
        assert_close(np.float32(1), np.float64(1.1))


def test_a_dtype_without_tolerance_is_refused() -> None:
    with pytest.raises(TypeError, match="got float16"):
        assert_close(np.ones(1, np.float16), np.ones(1))
