"""What every pure function on arrays keeps to, be it a forward or a backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from vitkit.backend import Array, to_numpy
from vitkit.testing import strict_device
from vitkit.testing.check import Check, Skip, where
from vitkit.testing.parts.array_modules import DEVICES, device, frozen, to
from vitkit.testing.parts.functions import DTYPES, Function, cast, doing
from vitkit.testing.parts.memory import STRIDED, Placed, same_bits

LEAK = (
    "NumPy numbers such as np.sqrt(2), and arrays made without dtype=, turn float32 into float64: "
    "write math.sqrt(2) and dtype=x.dtype"
)
WAITING = (
    "Keep it on the device: xp.where instead of if, xp.sqrt instead of math.sqrt, and no float() "
    "or .item()"
)


def function_checks(part: str, function: Function) -> list[Check]:
    """Return what any function keeps to; ``part`` is put before the names of the checks."""
    checks: dict[str, Callable[[Function], None]] = {
        "dtype": keeps_dtype,
        "inputs left alone": leaves_inputs,
        "nothing kept": keeps_nothing,
        "any memory layout": takes_any_layout,
        "no host sync": never_waits,
        **{f"same on {name}": partial(same_on, name) for name in DEVICES},
    }
    return [Check(f"{part}: {name}", partial(check, function)) for name, check in checks.items()]


def keeps_dtype(function: Function) -> None:
    """Require float32 for float32 and float64 for float64, to their precision."""
    exact = cast(cast(function.draw(0), "float32"), "float64")  # numbers that both can hold
    made: dict[str, list[np.ndarray | None]] = {}
    for dtype in DTYPES:
        made[dtype] = function.values(cast(exact, dtype))
        for at, result in enumerate(made[dtype]):
            if result is None or result.dtype == dtype or (at and result.dtype.kind in "biu"):
                continue
            cure = LEAK if result.dtype == "float64" else "Make it in the dtype of the input"
            raise AssertionError(
                f"{function.label(at, len(made[dtype]))} is {result.dtype} where the input is "
                f"{dtype}; it must be {dtype}. {cure}."
            )
    for result in function.values(function.draw(0)):
        if result is not None and fits_float32(result):
            raise AssertionError(
                f"{function.name} computes in float32 within: given float64, it returns numbers "
                "that are all float32 numbers. Leave out what names a dtype, or use x.dtype."
            )
    what = f"{function.name} loses precision in float32, beside the same in float64"
    function.same(what, made["float32"], made["float64"], function.reduction(exact))


def fits_float32(values: np.ndarray) -> bool:
    """Whether float64 numbers, many and different, could all be float32."""
    many = np.unique(values).size > max(8, values.size // 4)
    return values.dtype == np.float64 and many and bool((values == values.astype("f4")).all())


def leaves_inputs(function: Function) -> None:
    """Require that no argument is changed, and that read-only arrays will do."""
    hosts = cast(function.draw(0), "float64")
    arrays = [host.copy() for host in hosts]
    function.results(arrays, np)
    require_unchanged(function, arrays, hosts)
    try:
        function.results([frozen(host) for host in hosts], np)
    except ValueError as error:
        raise AssertionError(
            f"{function.name} cannot take read-only arrays: {error}{where(error)}."
        ) from None


def require_unchanged(
    function: Function, arrays: Sequence[Array], hosts: Sequence[np.ndarray]
) -> None:
    """Raise, naming the argument, if an array is no longer what it was."""
    for at, (array, host) in enumerate(zip(arrays, hosts, strict=True)):
        now = to_numpy(array)
        if not same_bits(now, host):
            raise AssertionError(
                f"{function.name} changes its argument {function.argument(at)} in place: "
                f"{np.count_nonzero(now != host)} of {host.size} elements are others after the "
                "call. They belong to the caller, and backward needs them as they were: work on "
                "a new array, as in y = x * x; y += 1."
            )


def keeps_nothing(function: Function) -> None:
    """Require that a call depends on no other, and leaves what it returned to the caller."""
    hosts, others = (cast(function.draw(seed), "float64") for seed in (0, 1))
    arrays = [host.copy() for host in hosts]
    first = function.results(arrays, np)
    before = [None if r is None else np.array(r) for r in first]
    later = function.results([host.copy() for host in others], np)
    for one, two, old in zip(first, later, before, strict=True):
        if one is None or two is None or old is None:
            continue
        if np.shares_memory(one, two) or not same_bits(np.asarray(one), old):
            raise AssertionError(
                f"{function.name} returns memory that it keeps: the next call changes what an "
                "earlier call returned. Return a new array from each call."
            )
    for array, host in zip(arrays, hosts, strict=True):
        array[...] = host
    again = function.results(arrays, np)
    for old, new in zip(before, again, strict=True):
        if old is not None and (new is None or not same_bits(old, np.asarray(new))):
            raise AssertionError(
                f"{function.name} gives another result when it is called again with the same "
                "arguments: it keeps something between calls, or draws random numbers. A result "
                "may depend on nothing but the arguments."
            )


def takes_any_layout(function: Function) -> None:
    """Require that transposed, reversed and strided arrays give what contiguous ones do."""
    hosts = cast(function.draw(0), "float64")
    want, reduction = function.values(hosts), function.reduction(hosts)
    for kind, layout in STRIDED.items():
        places = [at for at, host in enumerate(hosts) if host.ndim >= layout.least]
        for changed in filter(None, (*([at] for at in places), places)):
            arrays = [host.copy() for host in hosts]
            for at in changed:
                arrays[at] = Placed(hosts[at], layout, before=np.nan, after=np.nan).array
            names = " and ".join(map(function.argument, changed))
            what = f"{function.name} with {kind} as {names}"
            with doing(what):
                got = function.results(arrays, np)
            function.same(f"{what} gives another result", got, want, reduction)


def never_waits(function: Function) -> None:
    """Require that nothing on the way needs a number on the host."""
    xp = strict_device.xp
    arrays = [to(xp, host) for host in cast(function.draw(0), "float32")]
    with strict_device.count_syncs() as syncs:
        try:
            function.results(arrays, xp)
        except Exception as error:
            raise Skip(f"it does not run on strict_device: {error}") from None
    if syncs:
        raise AssertionError(
            f"{function.name} makes the host wait for the device {len(syncs)} times: "
            f"{', '.join(syncs)}. {WAITING}."
        )


def same_on(name: str, function: Function) -> None:
    """Require that a device gives what NumPy does, and that arguments are left alone there."""
    xp = device(name)
    for dtype in DTYPES:
        hosts = cast(function.draw(0), dtype)
        arrays = [to(xp, host) for host in hosts]
        with doing(f"{function.name} on {name}, where only functions of xp work,"):
            results = function.results(arrays, xp)
        require_unchanged(function, arrays, hosts)
        got = [None if r is None else to_numpy(r) for r in results]
        what = f"{function.name} differs on {name} from NumPy"
        function.same(what, got, function.values(hosts), function.reduction(hosts))


def finite(function: Function, hosts: Sequence[np.ndarray], what: str) -> None:
    """Raise unless all results are finite, and were so on the way."""
    arrays = [host.copy() for host in hosts]
    try:
        with (
            np.errstate(over="raise", divide="raise", invalid="raise"),
            doing(f"{function.name} with {what}", but=FloatingPointError),
        ):
            results = function.results(arrays, np)
    except FloatingPointError as error:
        raise AssertionError(
            f"{function.name} with {what}: {error}{where(error)}. Use a form that cannot, such as "
            "exp(-abs(x)) in a sigmoid, or clip where the result is certain."
        ) from None
    for at, result in enumerate(results):
        if result is not None and not np.isfinite(result).all():
            worst = np.asarray(result)[~np.isfinite(result)].flat[0]
            raise AssertionError(
                f"{function.label(at, len(results))} holds {worst} with {what}; finite numbers "
                "must give finite ones."
            )
