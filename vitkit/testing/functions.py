"""What every pure function on arrays keeps to, be it a forward or a backward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from vitkit.backend import Array, ArrayModule, to_numpy
from vitkit.testing import strict_device
from vitkit.testing.array_modules import DEVICES, device, frozen, to, torch_or_skip
from vitkit.testing.check import Check, Skip, where
from vitkit.testing.gradients import assert_close
from vitkit.testing.memory import STRIDED, Placed, same_bits, watched_memory

DTYPES = ("float32", "float64")
LEAK = (
    "NumPy numbers such as np.sqrt(2), and arrays made without dtype=, turn float32 into float64: "
    "write math.sqrt(2) and dtype=x.dtype"
)
WAITING = (
    "Keep it on the device: xp.where instead of if, xp.sqrt instead of math.sqrt, and no float() "
    "or .item()"
)


@dataclass(frozen=True)
class Function:
    """A function on arrays, and what to call it with.

    Attributes
    ----------
    name : str
        What messages call it.
    parameters : tuple of str
        What messages call its arguments; those that follow are outputs of another function.
    call : callable
        ``call(*arrays, xp=xp)`` returns an array, or a tuple of arrays and None.
    draw : callable
        ``draw(seed)`` returns its arguments on the host, float64 where they are not integers.
    noun : str, default "output"
        What messages call its results.
    elementwise : bool, default False
        Whether nothing is ever summed, so that rounding does not grow with the arrays.
    """

    name: str
    parameters: tuple[str, ...]
    call: Callable[..., Any]
    draw: Callable[[int], Sequence[np.ndarray]]
    noun: str = "output"
    elementwise: bool = False

    def results(self, arrays: Sequence[Array], xp: ArrayModule) -> list[Array | None]:
        """Return what the function makes of arrays of ``xp``."""
        with watched_memory(xp):
            value = self.call(*arrays, xp=xp)
        made = list(value) if isinstance(value, (tuple, list)) else [value]
        kinds = (np.ndarray, np.generic) if xp is np else xp.ndarray
        for at, result in enumerate(made):
            if result is not None and not isinstance(result, kinds):
                raise AssertionError(
                    f"{self.label(at, len(made))} is of type {type(result).__qualname__}; it must "
                    f"be an array of {xp.__name__}."
                )
        return made

    def values(self, hosts: Sequence[np.ndarray], xp: ArrayModule = np) -> list[np.ndarray | None]:
        """Return on the host what the function makes of fresh copies of host arrays."""
        arrays = [to(xp, host.copy()) for host in hosts]
        return [None if r is None else to_numpy(r) for r in self.results(arrays, xp)]

    def argument(self, at: int) -> str:
        """Return what a message calls an argument."""
        known = len(self.parameters)
        return self.parameters[at] if at < known else f"output {at - known}"

    def label(self, at: int, of: int) -> str:
        """Return what a message calls a result."""
        return self.name if of == 1 else f"{self.noun} {at} of {self.name}"

    def reduction(self, hosts: Sequence[np.ndarray]) -> int:
        """Return how many terms the longest sum may have."""
        return 1 if self.elementwise else max([1, *(host.size for host in hosts)])

    def same(self, what: str, got: Sequence[Any], want: Sequence[Any], reduction: int) -> None:
        """Raise, saying ``what``, unless two lists of results are the same but for rounding."""
        if [g is None for g in got] != [w is None for w in want]:
            raise AssertionError(f"{what}: {len(got)} results beside {len(want)}, or other Nones.")
        for at, (one, two) in enumerate(zip(got, want, strict=True)):
            if one is None:
                continue
            try:
                assert_close(one, two, reduction=reduction)
            except AssertionError as error:
                of = f", {self.noun} {at}" if len(got) > 1 else ""
                raise AssertionError(f"{what}{of}: {error}") from None


def cast(hosts: Sequence[np.ndarray], dtype: str) -> list[np.ndarray]:
    """Return copies with floating-point numbers in ``dtype``."""
    return [np.array(host, dtype if host.dtype.kind == "f" else None) for host in hosts]


def name_of(function: Callable[..., Any], otherwise: str) -> str:
    """Return what a message may call a function."""
    name: str = getattr(getattr(function, "func", function), "__name__", otherwise)
    return otherwise if name == "<lambda>" else name


@contextlib.contextmanager
def doing(what: str, but: type[Exception] = Skip) -> Iterator[None]:
    """Say in which call something else than a check raised; leave ``but`` as it is."""
    try:
        yield
    except (AssertionError, Skip, but):
        raise
    except Exception as error:
        raise AssertionError(
            f"{what} raised {type(error).__name__}: {error}{where(error)}"
        ) from error


def behind(first: Check, checks: Sequence[Check]) -> list[Check]:
    """Return all checks; where the first fails the others, which could only repeat it, skip."""

    def run(check: Check) -> None:
        try:
            first.run()
        except Skip:
            raise
        except Exception:
            raise Skip(f"needs {first.name!r} to pass") from None
        check.run()

    return [first, *(Check(check.name, partial(run, check)) for check in checks)]


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
    places = [[at] for at, host in enumerate(hosts) if host.ndim]
    for kind, layout in STRIDED.items():
        for changed in (*places, [at for place in places for at in place]):
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


def agrees_with_torch(
    forward: Function, backward: Function, twin: Callable[[Any], Callable[..., Any]]
) -> None:
    """Require PyTorch's first output and gradients."""
    torch = torch_or_skip()
    theirs = twin(torch)
    for dtype in DTYPES:
        arguments = cast(backward.draw(0), dtype)
        dy, arrays = arguments[0], arguments[1 : 1 + len(forward.parameters)]
        tensors = [torch.tensor(a, requires_grad=a.dtype.kind == "f") for a in arrays]
        with doing("the PyTorch twin"):
            y = theirs(*tensors)
            y = y[0] if isinstance(y, (tuple, list)) else y
            y.backward(torch.tensor(dy))
        reduction = forward.reduction(arguments)
        what = f"{forward.name} differs from its PyTorch twin"
        forward.same(what, forward.values(arrays)[:1], [y.detach().numpy()], reduction)
        for at, gradient in enumerate(backward.values(arguments)):
            if gradient is None:
                continue
            grad = tensors[at].grad
            want = np.zeros_like(arrays[at]) if grad is None else grad.numpy()
            what = f"{backward.name} differs from the gradient of the PyTorch twin"
            of = f" for {forward.argument(at)}" if len(arrays) > 1 else ""
            backward.same(f"{what}{of}", [gradient], [want], reduction)


def needs_no_forward(forward: Function, backward: Function) -> None:
    """Require that backward does not depend on what forward was called with last."""
    arguments, others = cast(backward.draw(0), "float64"), cast(forward.draw(1), "float64")
    forward.values(arguments[1 : 1 + len(forward.parameters)])
    want = backward.values(arguments)
    forward.values(others)
    with doing(f"{backward.name} after another {forward.name}"):
        got = backward.values(arguments)
    what = (
        f"{backward.name} changes with what {forward.name} was called with last: something is "
        "kept between the two, which is wrong where it is used twice. Use the arguments alone"
    )
    backward.same(what, got, want, backward.reduction(arguments))


def linear_in_dy(backward: Function) -> None:
    """Require that backward is linear in ``dy``."""
    dy, *rest = cast(backward.draw(0), "float64")
    other = np.flip(dy)

    def at(seen: np.ndarray) -> list[np.ndarray | None]:
        return backward.values([seen, *rest])

    whole = at(0.5 * dy - 2 * other)
    for place, parts in enumerate(zip(whole, at(dy), at(other), at(2 * dy), strict=True)):
        got, one, two, twice = parts
        if got is None or one is None or two is None or twice is None:
            continue
        want = 0.5 * one - 2 * two
        if np.abs(got - want).max(initial=0) <= 1e-9 * max(np.abs(p).max() for p in (one, two)):
            continue
        seen = "It ignores dy" if same_bits(one, twice) else "Perhaps dy is clipped, or used twice"
        raise AssertionError(
            f"{backward.label(place, len(whole))} is not linear in dy: the gradients for two dy do "
            f"not add up to that for their sum. {seen}. A gradient is dy times "
            "a derivative that depends on the inputs alone."
        )
