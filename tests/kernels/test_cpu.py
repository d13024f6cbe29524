"""Every CPU kernel against the reference it replaces: each size, block, layout and odd number."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from vitkit import kernels, ops
from vitkit.kernels.cpu import _blocks
from vitkit.ops import Op
from vitkit.testing import assert_close

kernels.load(np)
KERNELS: dict[str, Op[Any, Any]] = {
    name: op for name, op in vars(ops).items() if isinstance(op, Op) and "numpy" in op.kernels
}
LONGEST = _blocks.BLOCK

# What each op is called with for an input of a shape: shapes of arrays, and plain numbers.
ARGUMENTS: dict[str, Callable[[tuple[int, ...]], tuple[Any, ...]]] = {
    "gelu_tanh": lambda shape: (shape,),
    "gelu_tanh_backward": lambda shape: (shape, shape),
    "layer_norm": lambda shape: (shape, shape[-1:], shape[-1:], 1e-6),
    "layer_norm_backward": lambda shape: (shape, shape, shape[-1:], *2 * ((*shape[:-1], 1),)),
}
SIZES = [1, 3, 6, 7, 8, 15, 31, 32, 33, 65, 197]
LAYOUTS: dict[str, Callable[[int], tuple[int, ...]]] = {
    "vector": lambda n: (n,),
    "wide": lambda n: (3, n),
    "tall": lambda n: (n, 6),
    "tokens": lambda n: (2, n, 4),
}
names = pytest.mark.parametrize("name", KERNELS)
elementwise = pytest.mark.parametrize(  # the others need a row, with numbers in it
    "name", [name for name in KERNELS if not name.startswith("layer_norm")]
)
dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])
sizes = pytest.mark.parametrize("size", SIZES)
layouts = pytest.mark.parametrize("layout", LAYOUTS)


def filled_with_nan(make: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    def spoilt(*args: Any, **kwargs: Any) -> np.ndarray:
        array = make(*args, **kwargs)
        if array.dtype.kind == "f":
            array.fill(np.nan)
        return array

    return spoilt


@pytest.fixture(autouse=True)
def no_lucky_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let new memory hold NaN, not an earlier and right answer where nothing was written."""
    for name in ("empty", "empty_like"):
        monkeypatch.setattr(np, name, filled_with_nan(getattr(np, name)))


@pytest.fixture(params=[7, LONGEST], ids=["blocks of 7", "real blocks"])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Cut arrays into blocks of 7 numbers, so that small ones have several and a tail, or not."""
    monkeypatch.setattr(_blocks, "BLOCK", request.param)
    return int(request.param)


def arguments(
    name: str, shape: tuple[int, ...], rng: np.random.Generator, dtype: str = "float32"
) -> list[Any]:
    """Return what the op may be called with; no array may be written to."""
    args: list[Any] = []
    for item in ARGUMENTS[name](shape):
        if isinstance(item, tuple):
            item = rng.standard_normal(item).astype(dtype)
            item.flags.writeable = False
        args.append(item)
    return args


def arrays_in(values: Any) -> Iterator[np.ndarray]:
    for value in values if isinstance(values, (list, tuple)) else (values,):
        if isinstance(value, (np.ndarray, np.generic)):
            yield np.asarray(value)


def copies(args: list[Any]) -> list[Any]:
    return [np.array(arg) if isinstance(arg, np.ndarray) else arg for arg in args]


def assert_same(actual: Any, expected: Any, *, reduction: int) -> None:
    """Assert that two results are the same in number, shape and dtype, and close in value."""
    ours, theirs = list(arrays_in(actual)), list(arrays_in(expected))
    assert [(a.shape, a.dtype) for a in ours] == [(a.shape, a.dtype) for a in theirs]
    for one, two in zip(ours, theirs, strict=True):
        assert_close(one, two, reduction=reduction)


def check(name: str, args: list[Any], *, served: bool) -> None:
    """Compare kernel and reference; ``served`` says that the reference must not answer."""
    op, before = KERNELS[name], copies(args)
    actual = op.kernels["numpy"](*args, xp=np)
    if served:
        assert actual is not NotImplemented, "the kernel left a plain case to the reference"
    if actual is NotImplemented:
        actual = op(*args, xp=np)
    for arg, old in zip(args, before, strict=True):
        np.testing.assert_array_equal(arg, old, "an input was changed")
    made = list(arrays_in(actual))
    for at, result in enumerate(made):
        for other in (*arrays_in(args), *made[:at]):
            assert not np.shares_memory(result, other), "a result is not an array of its own"
    longest = max(array.size for array in arrays_in(args))
    assert_same(actual, op.reference(*before, xp=np), reduction=longest)


def test_every_kernel_is_here() -> None:
    assert set(KERNELS) == set(ARGUMENTS)


@names
@dtypes
@sizes
@layouts
@pytest.mark.usefixtures("block")
def test_values(name: str, dtype: str, size: int, layout: str, rng: np.random.Generator) -> None:
    check(name, arguments(name, LAYOUTS[layout](size), rng, dtype), served=True)


@names
@dtypes
@pytest.mark.parametrize(
    "shape",
    [(LONGEST - 1,), (LONGEST,), (LONGEST + 1,), (2 * LONGEST + 5,), (3, LONGEST // 2 + 1, 2)],
    ids=["one short", "one block", "one more", "two and a tail", "tokens"],
)
def test_real_blocks(
    name: str, dtype: str, shape: tuple[int, ...], rng: np.random.Generator
) -> None:
    check(name, arguments(name, shape, rng, dtype), served=True)


@elementwise
@dtypes
@pytest.mark.usefixtures("block")
def test_a_single_number(name: str, dtype: str, rng: np.random.Generator) -> None:
    check(name, arguments(name, (), rng, dtype), served=True)


STRIDED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "every second": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "backwards": lambda a: a[..., ::-1],
    "columns first": np.asfortranarray,
    "repeated rows": lambda a: np.broadcast_to(a[:1], a.shape),
}


@names
@dtypes
@pytest.mark.parametrize("strides", STRIDED)
@pytest.mark.parametrize("shape", [(5, 8), (3, 5, 4)])
@pytest.mark.usefixtures("block")
def test_arrays_with_gaps(
    name: str, dtype: str, strides: str, shape: tuple[int, ...], rng: np.random.Generator
) -> None:
    plain = arguments(name, shape, rng, dtype)
    places = [at for at, arg in enumerate(plain) if isinstance(arg, np.ndarray)]
    for changed in (*([at] for at in places), places):  # each alone, and all together
        args = [STRIDED[strides](a) if at in changed else a for at, a in enumerate(plain)]
        check(name, args, served=False)


@names
@dtypes
@pytest.mark.usefixtures("block")
def test_one_array_of_another_precision(name: str, dtype: str, rng: np.random.Generator) -> None:
    plain = arguments(name, (5, 8), rng, dtype)
    other = "float64" if dtype == "float32" else "float32"
    for place, arg in enumerate(plain):
        if isinstance(arg, np.ndarray):
            args = [a.astype(other) if at == place else a for at, a in enumerate(plain)]
            check(name, args, served=False)


@names
@dtypes
@pytest.mark.parametrize("shape", [(0, 6), (2, 0, 6)])
@pytest.mark.usefixtures("block")
def test_no_row(name: str, dtype: str, shape: tuple[int, ...], rng: np.random.Generator) -> None:
    check(name, arguments(name, shape, rng, dtype), served=False)


@elementwise
@dtypes
@pytest.mark.parametrize("shape", [(0,), (3, 0)])
@pytest.mark.usefixtures("block")
def test_no_number(name: str, dtype: str, shape: tuple[int, ...], rng: np.random.Generator) -> None:
    check(name, arguments(name, shape, rng, dtype), served=False)


@names
@dtypes
@pytest.mark.parametrize("scale", [1e15, -1e15, 1e30, 1e-30])
@pytest.mark.parametrize("place", ["first", "all"])
@pytest.mark.usefixtures("block")
def test_huge_and_tiny(
    name: str, dtype: str, scale: float, place: str, rng: np.random.Generator
) -> None:
    args = arguments(name, (5, 8), rng, dtype)
    for at, arg in enumerate(args):
        if isinstance(arg, np.ndarray) and (place == "all" or at == 0):
            args[at] = arg * np.asarray(scale, dtype)
    with np.errstate(all="ignore"):  # squares overflow, in the reference too
        check(name, args, served=True)


@names
@dtypes
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0, 6, 7, 17, -1])
@pytest.mark.usefixtures("block")
def test_nan_and_infinity_go_where_the_reference_has_them(
    name: str, dtype: str, odd: float, where: int, rng: np.random.Generator
) -> None:
    plain = arguments(name, (5, 8), rng, dtype)
    for place, arg in enumerate(plain):
        if isinstance(arg, np.ndarray):
            args = copies(plain)
            args[place].flat[where % arg.size] = odd
            with np.errstate(all="ignore"):
                check(name, args, served=True)


@names
@dtypes
@pytest.mark.usefixtures("block")
def test_a_later_call_leaves_an_earlier_result_alone(
    name: str, dtype: str, rng: np.random.Generator
) -> None:
    first, second = (arguments(name, (5, 8), rng, dtype) for _ in range(2))
    results = list(arrays_in(KERNELS[name](*first, xp=np)))
    before = [result.copy() for result in results]
    later = list(arrays_in(KERNELS[name](*second, xp=np)))
    for result, old, other in zip(results, before, later, strict=True):
        np.testing.assert_array_equal(result, old)
        assert not np.shares_memory(result, other)


@names
@dtypes
@pytest.mark.usefixtures("block")
def test_the_same_bits_every_time(name: str, dtype: str, rng: np.random.Generator) -> None:
    args = arguments(name, (5, 33), rng, dtype)
    one, two = (list(arrays_in(KERNELS[name](*args, xp=np))) for _ in range(2))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)
