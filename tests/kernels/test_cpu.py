"""Every CPU kernel against the reference it replaces: each size, layout, dtype and odd number."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from kernel_calls import (
    KERNELS,
    NAMES,
    arrays_in,
    call_of,
    changed_at,
    check,
    copied,
    op_of,
    places_in,
)

SIZES = [1, 3, 31, 32, 33, 65, 197]
names = pytest.mark.parametrize("name", NAMES)
pytestmark = pytest.mark.usefixtures("no_lucky_memory")


def test_every_kernel_is_here() -> None:
    assert {name.partition(",")[0] for name in NAMES} == set(KERNELS)


@names
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("axis", ["rows", "columns"])
def test_values(name: str, n: int, axis: str) -> None:
    check(name, call_of(name, *((n, 6) if axis == "rows" else (3, n))))


@names
@pytest.mark.parametrize("n", [2_051, 25_003])
def test_long_arrays_in_several_pieces(name: str, n: int) -> None:
    check(name, call_of(name, n, 3))


@names
def test_another_precision_is_left_to_the_reference(name: str) -> None:
    call = call_of(name, 5, 8, "float64")
    if name != "global_norm":  # which may have used up an iterator, so it asks the reference
        result = op_of(name).kernels["numpy"](*copied(call).args, **call.kwargs, xp=np)
        assert result is NotImplemented
    check(name, call, served=False)


@names
def test_one_array_of_another_precision(name: str) -> None:
    call = call_of(name, 5, 8)
    for place in places_in(call):
        check(name, changed_at(call, [place], lambda a: a.astype("float64")), served=False)


STRIDED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "every second": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "backwards": lambda a: a[..., ::-1].copy()[..., ::-1],
    "columns first": lambda a: a.copy(order="F"),
    "between others": lambda a: np.pad(a, [(1, 1)] * a.ndim, constant_values=np.nan)[
        (slice(1, -1),) * a.ndim
    ],
}


@names
@pytest.mark.parametrize("strides", STRIDED)
@pytest.mark.parametrize("shape", [(5, 8), (3, 33)])
def test_arrays_with_gaps(name: str, strides: str, shape: tuple[int, int]) -> None:
    whole = call_of(name, *shape)
    for places in (*([place] for place in places_in(whole)), [*places_in(whole)]):
        # each alone, and all together
        call = changed_at(whole, places, lambda a: STRIDED[strides](a) if a.ndim else a)
        check(name, call, served=False)


@names
def test_repeated_rows(name: str) -> None:
    whole = call_of(name, 5, 8)
    for place, array in enumerate(arrays_in(whole.args)):
        if not array.flags.writeable and array.ndim:
            call = changed_at(whole, [place], lambda a: np.broadcast_to(a[:1], a.shape))
            check(name, call, served=False)


@names
@pytest.mark.parametrize("shape", [(0, 6), (3, 0)])
def test_nothing(name: str, shape: tuple[int, int]) -> None:
    try:
        call = call_of(name, *shape)
        with np.errstate(all="ignore"):
            op_of(name).reference(*copied(call).args, **call.kwargs, xp=np)
    except (ValueError, ArithmeticError, IndexError, RuntimeWarning):
        return  # without numbers it means nothing
    check(name, call, served=False)


@names
@pytest.mark.parametrize("scale", [1e15, -1e15, 1e30, 1e-30, 1e-40])
def test_huge_and_tiny(name: str, scale: float) -> None:
    check(name, changed_at(call_of(name, 5, 8), [0], lambda a: a * np.float32(scale)))
    if not (abs(scale) > 1 and "attention" in name and "backward" in name):
        # There, the last digit of a score is 1e23, and the exponential of that decides.
        check(name, call_of(name, 5, 8, scale=scale), overflows=True)


@names
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf, 1e30, -1e30, 1e-45])
@pytest.mark.parametrize("where", [0, 6, 17, -1])
def test_odd_numbers_go_where_the_reference_has_them(name: str, odd: float, where: int) -> None:
    def put(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array.flat[where % array.size] = odd
        return array

    whole = call_of(name, 5, 8)
    for place in places_in(whole):
        check(name, changed_at(whole, [place], put))


@names
def test_a_later_call_leaves_an_earlier_result_alone(name: str) -> None:
    first, second = (call_of(name, 5, 8, seed=seed) for seed in (0, 1))
    op = op_of(name)
    results = list(arrays_in(op(*first.args, **first.kwargs, xp=np)))
    before = [result.copy() for result in results]
    later = list(arrays_in(op(*second.args, **second.kwargs, xp=np)))
    for result, old, other in zip(results, before, later, strict=True):
        np.testing.assert_array_equal(result, old)
        assert not np.shares_memory(result, other)
