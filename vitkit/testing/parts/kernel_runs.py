"""Kernel and reference side by side: the calls, what came of them, and how the two differ."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from vitkit.backend import ArrayModule, philox, to_numpy
from vitkit.ops import reference_only
from vitkit.testing.check import Skip
from vitkit.testing.gradients import errors
from vitkit.testing.parts.array_modules import DEVICES, device
from vitkit.testing.parts.functions import DTYPES, doing, name_of
from vitkit.testing.parts.kernel_inputs import Maker, makers, sums
from vitkit.testing.parts.memory import Placed, same_bits, watched_memory

LONG = 100_003
"""So long that work is divided among threads; it is prime, so nothing comes out even."""
LENGTHS = (0, 1, 2, 31, 32, 33, 257, LONG)


@dataclass(frozen=True)
class Case:
    """One set of arguments on the host; ``axis`` says what ``n`` counts in them."""

    axis: str
    n: int
    dtype: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def __str__(self) -> str:
        axis = f" ({self.axis})" if self.axis else ""
        return f"n = {self.n}{axis} in {self.dtype}"


@dataclass(frozen=True)
class Ran:
    """What came of a call, on the host.

    Attributes
    ----------
    results : list of numpy.ndarray, or None
        None where the kernel returned ``NotImplemented``.
    arguments : dict of str to numpy.ndarray
        What the arguments hold after the call, by name; of the reference, those that it changes.
    overrun : list of str
        The memory that was written to beyond its end.
    """

    results: list[np.ndarray] | None
    arguments: dict[str, np.ndarray]
    overrun: list[str]

    def finite_or_nan(self) -> Ran:
        """Return the same with NaN for infinity, where rounding may decide between the two."""
        results = [visible(array) for array in self.results or []]
        return Ran(results, {n: visible(a) for n, a in self.arguments.items()}, self.overrun)


class Fault(NamedTuple):
    """How the result of a kernel differs, and whether only its last elements do."""

    text: str
    tail: bool = False


Place = Callable[[str, np.ndarray], Placed]
"""Where an argument is put, from its name and its values."""


@dataclass(frozen=True)
class Comparison:
    """A kernel and what it replaces.

    Attributes
    ----------
    op : callable
        The operation, with its reference where it is an ``Op``.
    kernel : callable
        The replacement.
    backend : str
        The array module that it serves.
    inputs : callable, optional
        A maker of arguments, where vitkit has none for the op.
    """

    op: Callable[..., Any]
    kernel: Callable[..., Any]
    backend: str
    inputs: Maker | None

    @property
    def name(self) -> str:
        """What messages call the kernel."""
        return name_of(self.kernel, "the kernel")

    @property
    def reference(self) -> Callable[..., Any]:
        """What the kernel is compared to."""
        reference: Callable[..., Any] = getattr(self.op, "reference", self.op)
        return reference

    @property
    def xp(self) -> ArrayModule:
        """The array module; Skip is raised where it cannot work."""
        if self.backend not in ("numpy", *DEVICES):
            raise Skip(f"the kit knows no array module {self.backend!r} to run the kernel on")
        return np if self.backend == "numpy" else device(self.backend)

    def cases(
        self, lengths: Iterable[int], dtypes: Iterable[str] = DTYPES, seed: int = 0
    ) -> Iterator[Case]:
        """Yield arguments of each length along each axis."""
        table = {"": self.inputs} if self.inputs else makers(self.op)
        op = name_of(self.op, "the operation")
        if table is None:
            raise Skip(
                f"vitkit does not know what {op} is called with: pass inputs=, a function "
                "(rng, n, dtype) -> (args, kwargs) that makes arguments of length n on the host"
            )
        lengths = tuple(lengths)
        for axis, make in table.items():
            for dtype in dtypes:
                for n in lengths:
                    with doing(f"inputs for n = {n} (return None for a length of no use)"):
                        made = make(philox(seed, "conformance kernel", n), n, dtype)
                    if made is not None:
                        yield Case(axis, n, dtype, *made)

    def hosts(self, case: Case) -> dict[str, np.ndarray]:
        """Return the arrays of a case by name."""
        found: dict[str, np.ndarray] = {}
        for name, value in self.named(case).items():
            replaced(value, name, found.setdefault)
        return found

    def placed(self, case: Case, place: Place | None = None) -> dict[str, Placed]:
        """Return the arrays of a case where ``place`` puts them, with margins if it is left out."""
        return {
            name: place(name, host) if place else Placed(host, xp=self.xp)
            for name, host in self.hosts(case).items()
        }

    def with_number(self, case: Case, name: str, at: int, value: float) -> Case:
        """Return a case with one number of one array replaced."""

        def change(argument: str, host: np.ndarray) -> np.ndarray:
            changed = host.copy()
            if argument == name:
                changed.flat[at] = value
            return changed

        args, kwargs = self.with_arrays(case, change)
        return replace(case, args=args, kwargs=kwargs)

    def with_arrays(
        self, case: Case, function: Callable[[str, np.ndarray], Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of a case with each array, named, put through a function."""
        named = zip(self.named(case), case.args, strict=False)
        args = tuple(replaced(value, name, function) for name, value in named)
        return args, {name: replaced(v, name, function) for name, v in case.kwargs.items()}

    def named(self, case: Case) -> dict[str, Any]:
        """Return the arguments of a case by the names that the reference has for them."""
        bound = inspect.signature(self.reference).bind(*case.args, **case.kwargs, xp=None)
        return {name: value for name, value in bound.arguments.items() if name != "xp"}

    def call(self, case: Case, placed: Mapping[str, Placed]) -> tuple[Any, bool]:
        """Return what the kernel returns, and whether it kept to the memory that it made."""
        args, kwargs = self.with_arrays(case, lambda name, _: placed[name].array)
        with (
            doing(f"{self.name} for {case}"),
            watched_memory(self.xp) as intact,
            np.errstate(all="ignore"),
        ):
            value = self.kernel(*args, **kwargs, xp=self.xp)
        return value, intact()

    def run(self, case: Case, place: Place | None = None) -> Ran:
        """Return what comes of the kernel for a case."""
        placed = self.placed(case, place)
        value, intact = self.call(case, placed)
        overrun = [f"argument {name}" for name, there in placed.items() if not there.intact()]
        return Ran(
            None if value is NotImplemented else self.on_host(value),
            {name: to_numpy(there.array) for name, there in placed.items()},
            [*overrun, *([] if intact else ["an array that it made"])],
        )

    def on_host(self, value: Any) -> list[np.ndarray]:
        """Return results on the host; they must be arrays of the array module."""
        results = arrays_in(value)
        kinds = (np.ndarray, np.generic) if self.backend == "numpy" else self.xp.ndarray
        for result in results:
            if not isinstance(result, kinds):
                raise AssertionError(
                    f"{self.name} returned {type(result).__qualname__}; it must return arrays of "
                    f"{self.backend}, or NotImplemented."
                )
        return [to_numpy(result) for result in results]

    def expected(self, case: Case) -> Ran:
        """Return what comes of the reference, on NumPy."""
        results, arrays = self._reference(case)
        hosts = self.hosts(case)
        changed = {n: array for n, array in arrays.items() if not same_bits(array, hosts[n])}
        return Ran([np.asarray(result) for result in results], changed, [])

    def views(self, case: Case) -> set[str]:
        """Return the arguments of which the reference itself returns a view."""
        results, arrays = self._reference(case)
        return {
            name
            for name, array in arrays.items()
            if any(np.shares_memory(array, result) for result in results)
        }

    def _reference(self, case: Case) -> tuple[list[Any], dict[str, np.ndarray]]:
        arrays = {name: host.copy() for name, host in self.hosts(case).items()}
        args, kwargs = self.with_arrays(case, lambda name, _: arrays[name])
        with doing(f"the reference for {case}"), reference_only(), np.errstate(all="ignore"):
            return arrays_in(self.reference(*args, **kwargs, xp=np)), arrays

    def fault(self, ran: Ran, want: Ran) -> Fault | None:
        """Return how results, and arguments that are changed in place, differ."""
        results, expected = ran.results or [], want.results or []
        if len(results) != len(expected):
            return Fault(f"it returns {len(results)} arrays, the reference {len(expected)}")
        several = len(results) > 1
        pairs = {
            f"result {at}" if several else "the result": pair
            for at, pair in enumerate(zip(results, expected, strict=True))
        }
        pairs |= {
            f"argument {name} afterwards": (ran.arguments[name], array)
            for name, array in want.arguments.items()
        }
        longest = max((array.size for array in ran.arguments.values()), default=1)
        for what, (got, right) in pairs.items():
            found = difference(what, got, right, longest if sums(self.op) else 1)
            if found:
                return found
        return None


def replaced(value: Any, name: str, function: Callable[[str, np.ndarray], Any]) -> Any:
    """Return an argument with each array in it, named, put through a function."""
    if isinstance(value, np.ndarray):
        return function(name, value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):  # arrays with names of their own
        named = zip(value._fields, value, strict=True)
        return type(value)(*(replaced(item, f"{name}.{at}", function) for at, item in named))
    if type(value) in (list, tuple):
        items = (replaced(item, f"{name}[{at}]", function) for at, item in enumerate(value))
        return type(value)(items)
    return value


def visible(array: np.ndarray) -> np.ndarray:
    """Return an array with NaN where it is not finite."""
    return np.where(
        np.isfinite(array), array, array.dtype.type(np.nan if array.dtype.kind == "f" else 0)
    )


def arrays_in(value: Any) -> list[Any]:
    """Return the results of a call: none, one, or those of tuples that are not None."""
    if isinstance(value, (tuple, list)):
        return [result for item in value for result in arrays_in(item)]
    return [] if value is None else [value]


def difference(what: str, got: np.ndarray, want: np.ndarray, reduction: int) -> Fault | None:
    """Return how an array differs from the one that it must be."""
    for attribute in ("shape", "dtype"):
        here, there = getattr(got, attribute), getattr(want, attribute)
        if here != there:
            return Fault(f"{what} has {attribute} {here}, that of the reference {there}")
    error, allowed = errors(got, want, reduction)
    wrong = error > allowed
    if not wrong.any():
        return None
    worst = np.unravel_index(int(error.argmax()), error.shape)
    where, tail = which(wrong)
    return Fault(
        f"{where} of {what} differ, most of all {tuple(int(i) for i in worst)}: {got[worst]:.7g}, "
        f"the reference gives {want[worst]:.7g}",
        tail,
    )


def which(wrong: np.ndarray) -> tuple[str, bool]:
    """Return in words which elements are marked, and whether most of the last ones are."""
    count = int(np.count_nonzero(wrong))
    if count == wrong.size:
        return ("the one element" if count == 1 else f"all {count} elements"), False
    marked: dict[str, np.ndarray] = {"elements": wrong.reshape(-1)}
    for axis in range(wrong.ndim if wrong.ndim > 1 else 0):
        others = tuple(other for other in range(wrong.ndim) if other != axis)
        marked[f"positions along axis {axis}"] = np.asarray(wrong.any(axis=others))
    for noun, line in marked.items():
        some = int(np.count_nonzero(line))
        if some < line.size and line[-some:].all() and 2 * count >= wrong.size // line.size * some:
            return f"the last {some} of {line.size} {noun}", True
    return f"{count} of {wrong.size} elements", False
