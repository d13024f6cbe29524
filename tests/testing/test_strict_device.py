"""The stand-in for a GPU refuses what a GPU refuses, runs what runs there, and counts waits."""

from __future__ import annotations

import copy
import inspect
import math
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import special

from vitkit import backend
from vitkit.testing import recording
from vitkit.testing.strict_device import CUPY, count_syncs, xp

HOST = np.random.default_rng(0).normal(size=(4, 8)).astype("float32")


def device() -> Any:
    return xp.asarray(HOST)


def masked() -> Any:
    return device() > 0


# What a GPU refuses. Each is an error with CuPy too, save those marked "stricter": there CuPy
# copies in silence, or computes although the code did not say where.
REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "np.asarray(device)": (lambda: np.asarray(device()), TypeError, "Implicit conversion"),
    "np.array([device])": (lambda: np.array([device()[0]]), TypeError, "Implicit conversion"),
    "np.float32(device)": (lambda: np.float32(device().sum()), TypeError, "Implicit"),
    "stricter: np.exp(device)": (lambda: np.exp(device()), TypeError, "__array_ufunc__"),
    "stricter: np.sum(device)": (lambda: np.sum(device()), TypeError, "call xp.sum"),
    "stricter: np.concatenate": (lambda: np.concatenate([device()]), TypeError, "xp.concat"),
    "scipy.special.erf(device)": (lambda: special.erf(device()), TypeError, "__array_ufunc__"),
    "device + host": (lambda: device() + HOST, TypeError, "host array of shape"),
    "host + device": (lambda: HOST + device(), TypeError, "host array"),
    "host @ device": (lambda: HOST @ device().T, TypeError, "host array"),
    "device += host": (lambda: device().__iadd__(HOST), TypeError, "host array"),
    "device < host": (lambda: device() < HOST, TypeError, "host array"),
    "device == host": (lambda: device() == HOST, TypeError, "host array"),
    "device + 0-d host": (lambda: device() + np.ones(()), TypeError, "host array"),
    "device + list": (lambda: device() + [1.0] * 8, TypeError, "list or tuple"),
    "xp.exp(host)": (lambda: xp.exp(HOST), TypeError, "Unsupported type"),
    "xp.exp(list)": (lambda: xp.exp([1.0, 2.0]), TypeError, "not lists"),
    "xp.matmul(device, host)": (lambda: xp.matmul(device(), HOST.T), TypeError, "host array"),
    "xp.concatenate([device, host])": (
        lambda: xp.concatenate([device(), HOST]),
        TypeError,
        "host array",
    ),
    "xp.where(host, device, 0)": (lambda: xp.where(HOST > 0, device(), 0), TypeError, "host"),
    "xp.zeros_like(host)": (lambda: xp.zeros_like(HOST), TypeError, "host array"),
    "xp.ascontiguousarray(host)": (lambda: xp.ascontiguousarray(HOST), TypeError, "host array"),
    "xp.copyto(device, host)": (lambda: xp.copyto(device(), HOST), TypeError, "host array"),
    "out=host": (lambda: xp.exp(device(), out=np.empty_like(HOST)), TypeError, "host array"),
    "method out=host": (lambda: device().sum(out=np.empty(())), TypeError, "host array"),
    "device[0] = host": (lambda: device().__setitem__(0, HOST[0]), TypeError, "host array"),
    "stricter: device[host]": (lambda: device()[np.array([0, 1])], TypeError, "host array"),
    "stricter: device[:, host mask]": (lambda: device()[:, HOST[0] > 0], TypeError, "host"),
    "stricter: asarray([device])": (lambda: xp.asarray([device()]), TypeError, "xp.stack"),
    "stricter: array([[0-d]])": (lambda: xp.array([[device().sum()]]), TypeError, "xp.stack"),
    "erf(host)": (lambda: backend.erf(HOST, xp=xp), TypeError, "takes device arrays"),
    "where= of a ufunc": (lambda: xp.exp(device(), where=masked()), TypeError, "'where'"),
    "where= of a reduction": (lambda: xp.sum(device(), where=masked()), TypeError, "'where'"),
    "stable=": (lambda: device().argsort(stable=True), TypeError, "no argument 'stable'"),
    "subok=": (lambda: xp.broadcast_to(device(), (4, 8), subok=True), TypeError, "'subok'"),
    "optimize=": (lambda: xp.einsum("ij->ji", device(), optimize=True), TypeError, "'optimize'"),
    "initial=": (lambda: device().max(initial=0.0), TypeError, "no argument 'initial'"),
    "xp.asarray(strings)": (lambda: xp.asarray(["a"]), ValueError, "Unsupported dtype"),
    "xp.asarray(objects)": (lambda: xp.asarray([None]), ValueError, "Unsupported dtype object"),
    "hash": (lambda: hash(device()), TypeError, "unhashable"),
    "device = list": (lambda: device().__setitem__(0, [1.0] * 8), ValueError, "bring a list over"),
    "range(device)": (lambda: range(masked().sum()), TypeError, "as an integer"),
    "a mask of many": (lambda: bool(masked()), ValueError, "ambiguous"),
    "a number of many": (lambda: float(device()), TypeError, "0-dimensional|size-1"),
    "a name only NumPy has": (lambda: xp.busday_count, AttributeError, "module 'cupy' has no"),
    "xp.errstate": (lambda: xp.errstate, AttributeError, "module 'cupy' has no"),
    "a misspelt name": (lambda: xp.matmull, AttributeError, "no attribute 'matmull'"),
    "xp.add.at": (lambda: xp.add.at, AttributeError, "at"),
    "flags.writeable": (lambda: device().flags.writeable, AttributeError, "writeable"),
    "xp.random": (lambda: xp.random.default_rng(0), AttributeError, "philox"),
    "xp.linalg": (lambda: xp.linalg, AttributeError, "does not imitate cupy.linalg"),
    "xp.RawKernel": (lambda: xp.RawKernel, AttributeError, "does not imitate cupy.RawKernel"),
    "xp.vectorize": (lambda: xp.vectorize, AttributeError, "does not imitate cupy.vectorize"),
}


@pytest.mark.parametrize("slip", REFUSED)
def test_what_a_gpu_refuses_is_refused(slip: str) -> None:
    run, error, message = REFUSED[slip]
    with pytest.raises(error, match=message):
        run()


# Legal on a GPU, and each makes the host wait.
WAITS: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "float": (lambda: float(device().sum()), ["float"]),
    "int": (lambda: int(device().sum()), ["int"]),
    "bool": (lambda: 1 if (device() > 0).any() else 0, ["bool"]),
    "item": (lambda: device().sum().item(), ["item"]),
    "tolist": (lambda: device().tolist(), ["tolist"]),
    "repr": (lambda: str(device()), ["repr"]),
    "get": (lambda: device().get(), ["copy to host"]),
    "asnumpy": (lambda: xp.asnumpy(device()), ["copy to host"]),
    "to_numpy": (lambda: backend.to_numpy(device()), ["copy to host"]),
    "synchronize": (lambda: backend.synchronize(xp), ["synchronize"]),
    "math.sqrt": (lambda: math.sqrt(xp.sum(device() ** 2)), ["float"]),
    "boolean mask": (lambda: device()[masked()], ["boolean mask"]),
    "boolean mask, other axes": (lambda: device()[:, masked()[0]], ["boolean mask"]),
    "mask = array": (
        lambda: device().__setitem__(masked(), xp.zeros(int((HOST > 0).sum()), "float32")),
        ["boolean mask"],
    ),
    "nonzero": (lambda: xp.nonzero(device()), ["nonzero"]),
    "method nonzero": (lambda: device().nonzero(), ["nonzero"]),
    "where(condition)": (lambda: xp.where(masked()), ["where"]),
    "unique": (lambda: xp.unique(device()), ["unique"]),
    "bincount": (lambda: xp.bincount(xp.arange(3)), ["bincount"]),
    "nanmax": (lambda: xp.nanmax(device()), ["nanmax"]),
    "average, weighted": (lambda: xp.average(device(), weights=device()), ["average"]),
    "average": (lambda: xp.average(device()), []),
    "a loop over elements": (lambda: [float(e) for e in device()[0, :3]], ["float"] * 3),
    "max() of Python": (lambda: max(device()[0, :3]), ["bool"] * 2),
}


@pytest.mark.parametrize("slip", WAITS)
def test_a_wait_is_counted(slip: str) -> None:
    run, expected = WAITS[slip]
    with count_syncs() as syncs:
        run()
    assert syncs == expected


# Legal too, but not where a stream captures; as seen in CuPy 14.2.
UNRECORDABLE: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a wait": (lambda x: float(x.sum()), "a wait for the device"),
    "a list as an index": (lambda x: x[[0, 1]], "bringing an index"),
    "a list as an index to write to": (lambda x: x.__setitem__([0, 1], 0), "bringing an index"),
    "a list among indices": (lambda x: x[:, [0, 1]], "bringing an index"),
    "take by a list": (lambda x: xp.take(x, [0, 1]), "bringing an index"),
    "take by a list, named": (lambda x: xp.take(x, indices=[0, 1]), "bringing an index"),
    "method take by a list": (lambda x: x.take([0, 1]), "bringing an index"),
    "a list": (lambda x: xp.asarray([1.0]), "bringing an array"),
    "a product": (lambda x: x @ x.T, "cuBLAS"),
    "cov": (lambda x: xp.cov(x), "cuBLAS"),
    "nanmin": (lambda x: xp.nanmin(x), "a wait for the device"),
    "average, weighted": (lambda x: xp.average(x, weights=x), "a wait for the device"),
}


@pytest.mark.parametrize("slip", UNRECORDABLE)
def test_what_cannot_be_recorded_is_refused_there(slip: str) -> None:
    run, message = UNRECORDABLE[slip]
    x = device()
    run(x)
    with pytest.raises(RuntimeError, match=f"is capturing: {message}"):
        recording.record(lambda: run(x))


def test_an_index_that_python_knows_is_recorded() -> None:
    x, places = device(), xp.asarray([0, 1])
    recording.record(lambda: (x[1], x[0, ::2], x[places], x[..., None], xp.take(x, places)))


def test_counters_nest_and_end() -> None:
    with count_syncs() as outer:
        float(device().sum())
        with count_syncs() as inner:
            device().get()
        int(device().sum())
    device().get()
    assert inner == ["copy to host"]
    assert outer == ["float", "copy to host", "int"]


def softmax_attention(m: Any, x: Any) -> Any:
    s = x @ x.T / np.float32(math.sqrt(x.shape[-1]))
    s = s - s.max(axis=1, keepdims=True)
    p = m.exp(s)
    p /= p.sum(axis=1, keepdims=True)
    return m.matmul(p, x, out=m.empty_like(x))


def adamw(m: Any, x: Any) -> Any:
    gradient, first, second = x * 2, m.zeros_like(x), m.zeros_like(x)
    for _ in range(3):
        first += 0.1 * (gradient - first)
        second += 0.001 * (gradient * gradient - second)
        step = first / (m.sqrt(second) + 1e-8)
        x -= 1e-3 * step
    return x


def shapes(m: Any, x: Any) -> Any:
    y = x.reshape(2, 2, 8).transpose(1, 0, 2).reshape(4, 8)
    y = m.concatenate([y, m.broadcast_to(x[:1], (2, 8))], axis=0)
    y = m.stack([y, m.where(y > 0, y, m.full_like(y, 0.5))])
    y = m.pad(y, ((0, 0), (1, 1), (0, 0)))[:, ::-1, 1:-1].swapaxes(0, 1)
    return m.ascontiguousarray(m.clip(m.maximum(y, -1), None, 0.75)).astype("float64")


def gather(m: Any, x: Any) -> Any:
    labels = m.asarray([1, 0, 3, 2])
    one_hot = (labels[:, None] == m.arange(8)).astype(x.dtype)
    x[m.arange(4), labels] -= 1
    x[x < -0.5] = 0
    m.copyto(x, 2.0, where=one_hot > 0)
    return one_hot * x + m.take(x, labels, axis=0) + x[labels]


@pytest.mark.parametrize("program", [softmax_attention, adamw, shapes, gather])
def test_right_code_runs_unchanged_and_never_waits(program: Callable[..., Any]) -> None:
    expected = program(np, HOST.copy())
    with count_syncs() as syncs:
        result: Any = program(xp, device())
    assert syncs == []
    assert isinstance(result, xp.ndarray)
    assert (result.dtype, result.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(result.get(), expected)


OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "//": lambda a, b: a // b,
    "%": lambda a, b: a % b,
    "**": lambda a, b: a**b,
    "<": lambda a, b: a < b,
    ">=": lambda a, b: a >= b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
}


@pytest.mark.parametrize("symbol", OPERATORS)
@pytest.mark.parametrize("other", [2, 2.5, np.float32(2), "array"])
def test_operators_are_those_of_numpy(symbol: str, other: Any) -> None:
    calculate = OPERATORS[symbol]
    a = np.abs(HOST) + 1
    b = a[::-1].copy() if isinstance(other, str) else other
    there = xp.asarray(b) if isinstance(other, str) else other
    for expected, got in (
        (calculate(a, b), calculate(xp.asarray(a), there)),
        (calculate(b, a), calculate(there, xp.asarray(a))),
    ):
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got.get(), expected)


def test_reductions_stay_arrays() -> None:
    scalar: Any
    for scalar in (device().sum(), xp.max(device()), xp.sqrt(2.0), xp.allclose(device(), 0)):
        assert isinstance(scalar, xp.ndarray)
        assert scalar.shape == ()
    assert device().sum().dtype == np.float32


def test_slices_and_elements_are_views() -> None:
    flat = xp.zeros(12, "float32")
    part = flat[2:8].reshape(2, 3)
    part[...] = 1
    part += 2
    part.T[0] *= 2
    element = flat[11]
    element += 5
    flat[:2].fill(7)
    assert flat.get().tolist() == [7, 7, 6, 3, 3, 6, 3, 3, 0, 0, 0, 5]


def test_a_copy_is_not_a_view() -> None:
    a = device()
    for other in (a.copy(), xp.array(a), a.astype("float32"), copy.deepcopy(a), a.get()):
        other[0] = 0
    np.testing.assert_array_equal(a.get(), HOST)


def test_the_host_is_copied_once_and_never_shared() -> None:
    host = HOST.copy()
    there = xp.asarray(host)
    host[...] = 0
    np.testing.assert_array_equal(there.get(), HOST)


def test_the_same_array_comes_back_where_cupy_gives_it_back() -> None:
    a = device()
    out = xp.empty_like(a)
    before = a
    a += 1
    assert a is before
    assert xp.asarray(a) is a
    assert xp.asarray(a, "float64") is not a
    assert xp.ascontiguousarray(a) is a
    assert a.astype("float32", copy=False) is a
    assert xp.exp(a, out=out) is out
    assert xp.exp(a, out) is out
    square = before = xp.ones((2, 2))
    square @= square
    assert square is not before
    assert before.get().tolist() == [[1, 1], [1, 1]]


def test_dtypes_follow_those_of_numpy() -> None:
    a = device()
    assert (a * 2.0).dtype == (a * np.float32(2)).dtype == np.float32
    assert (a * np.float64(2)).dtype == np.float64
    assert xp.zeros(2).dtype == np.float64
    assert xp.float32 is np.float32
    assert xp.newaxis is None
    assert xp.pi == np.pi
    assert xp.asarray([1.5, 2], dtype="float32").dtype == np.float32


def test_what_arrays_say_about_themselves() -> None:
    a = device()
    assert (a.shape, a.ndim, a.size, a.nbytes, a.itemsize) == ((4, 8), 2, 32, 128, 4)
    assert a.strides == (32, 4)
    assert len(a) == 4
    assert (a.flags.c_contiguous, a.flags.f_contiguous) == (True, False)
    assert (a.T.flags.c_contiguous, a.T.flags.f_contiguous) == (False, True)
    assert xp.stack([a, a]).mT.shape == (2, 8, 4)
    assert [row.shape for row in a] == [(8,)] * 4
    assert isinstance(a, xp.ndarray)


def test_an_array_that_nobody_holds_is_freed_at_once() -> None:
    a = device()
    watch = weakref.ref(a)
    b = xp.exp(a)
    del a
    assert watch() is None
    assert b.shape == (4, 8)


def test_the_backend_is_registered() -> None:
    assert xp.__name__ == "strict_device"
    assert backend.array_module(xp) is xp
    assert not backend.backend_of(xp).on_host
    assert type(device()).__module__ == "strict_device"


def test_names_and_keywords_are_those_of_cupy() -> None:
    # Asked of the real CuPy where it is installed; it needs no GPU for this.
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed", exc_type=ImportError)
    assert sorted(CUPY.keys() - set(dir(cupy))) == []
    for name in ("sum", "max", "std", "clip", "take", "where", "copyto", "concatenate", "stack"):
        parameters = inspect.signature(getattr(cupy, name)).parameters
        assert CUPY[name] == list(parameters), name
    assert not hasattr(cupy.ndarray, "__imatmul__")
    assert not hasattr(cupy.ndarray, "__index__")
