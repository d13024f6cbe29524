"""A function on arrays as the checks of activations, operations and kernels see it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitkit.backend import Array, ArrayModule, to_numpy
from vitkit.testing.check import Skip, where
from vitkit.testing.gradients import assert_close
from vitkit.testing.parts.array_modules import to
from vitkit.testing.parts.memory import watched_memory

DTYPES = ("float32", "float64")


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
