"""Both spellings of every op, inputs that must stay as they are, the gradient check of a pair."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest

from vitkit.backend import Array, ArrayModule, to_numpy
from vitkit.ops import reference_only
from vitkit.testing import directional_derivative_error


@pytest.fixture(scope="module", autouse=True)
def spelling(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run every test by the references, and once more by the kernels where there are any."""
    with reference_only() if request.param == "reference" else nullcontext():
        yield


@pytest.fixture
def bring(xp: ArrayModule) -> Iterator[Callable[..., Array]]:
    """Return ``bring(values, dtype)``, which makes an array that no operation may change.

    NumPy arrays are read-only; on a device every array is compared with what it was, at the end.
    """
    brought: list[tuple[Array, np.ndarray]] = []

    def bring(values: Any, dtype: Any = "float64") -> Array:
        host = np.array(values, dtype)
        array = xp.asarray(host.copy())
        if isinstance(array, np.ndarray):
            array.flags.writeable = False
        brought.append((array, host))
        return array

    yield bring
    for array, host in brought:
        np.testing.assert_array_equal(to_numpy(array), host, "an input was changed")


@pytest.fixture
def gradient_error(
    xp: ArrayModule, rng: np.random.Generator, bring: Callable[..., Array]
) -> Callable[..., float]:
    """Return a function that checks a pair: ``gradient_error(forward, backward, *inputs)``.

    ``forward(*inputs)`` returns ``y``; ``backward(dy, *inputs)`` returns one gradient an input.
    The smallest error of three directions: a wrong gradient is wrong along each, and where one
    happens to run across the gradient, only rounding is left to compare.
    """

    def error(
        forward: Callable[..., Array],
        backward: Callable[..., Sequence[Array]],
        *inputs: np.ndarray,
    ) -> float:
        arrays = [bring(values) for values in inputs]
        dy = bring(rng.standard_normal(forward(*arrays).shape))
        gradients = backward(dy, *arrays)
        return min(
            directional_derivative_error(
                lambda *changed: (forward(*changed) * dy).sum(),
                [xp.asarray(values.copy()) for values in inputs],
                gradients,
                seed=seed,
                xp=xp,
            )
            for seed in range(3)
        )

    return error
