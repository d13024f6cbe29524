"""The seam between what an operation means and how fast it runs."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import update_wrapper
from typing import Any, Generic, ParamSpec, TypeAlias, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

SWITCHED_OFF = os.environ.get("VITKIT_KERNELS") == "off"
"""Whether the environment asks for the references, for as long as the process lives."""

_use_kernels = ContextVar("use_kernels", default=not SWITCHED_OFF)

Watch: TypeAlias = Callable[["Op[..., Any]", Any], Callable[[], None]]
"""Told of a call, the op and its ``xp``, before it; what it returns is called after it."""
watch: ContextVar[Watch | None] = ContextVar("watch", default=None)
"""What is told of every call in this thread; see :func:`vitkit.ops.profiled`."""


class Op(Generic[P, R]):
    """A pure array function whose body is the reference, and the kernels that replace it.

    Calling the op runs the kernel registered for ``xp`` when there is one, and the reference
    otherwise. A kernel that cannot serve the given dtype or shape returns ``NotImplemented``,
    and the reference answers instead. ``VITKIT_KERNELS=off`` in the environment, or
    :func:`reference_only`, runs everything by the references. Kernels are registered when the
    first module is placed on their array module; they may differ from the reference in the last
    digits.

    Parameters
    ----------
    reference : callable
        The function that says what the operation means; it takes ``xp`` keyword-only.

    Attributes
    ----------
    reference : callable
        The function as it was given; what every kernel is compared to.
    kernels : dict of str to callable
        The registered replacements, by the name of the array module they serve.
    overrides : dict of str to callable
        Those of plugins, which are asked first.
    """

    def __init__(self, reference: Callable[P, R]) -> None:
        self.reference = reference
        self.kernels: dict[str, Callable[P, R]] = {}
        self.overrides: dict[str, Callable[P, R]] = {}
        self.__name__ = reference.__name__
        self.__signature__ = inspect.signature(reference)
        update_wrapper(self, reference)

    def kernel(self, backend: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Register the decorated function as this op's kernel for the array module ``backend``.

        Raises
        ------
        TypeError
            If the kernel does not take exactly the parameters of the reference.
        """

        def register(function: Callable[P, R]) -> Callable[P, R]:
            self.check_kernel(function, backend)
            self.kernels[backend] = function
            return function

        return register

    def check_kernel(self, function: Callable[..., Any], backend: str) -> None:
        """Raise a TypeError unless ``function`` takes exactly the parameters of the reference."""
        theirs, ours = _parameters(function), _parameters(self.reference)
        if theirs != ours:
            raise TypeError(
                f"The {backend} kernel of {self.__name__} takes ({theirs}); it must take ({ours})."
            )

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        watching = watch.get()
        done = None if watching is None else watching(self, kwargs.get("xp"))
        try:
            if _use_kernels.get():
                backend = getattr(kwargs.get("xp"), "__name__", "")
                two = (self.overrides, self.kernels) if self.overrides else (self.kernels,)
                for kernels in two:
                    kernel = kernels.get(backend)
                    if kernel is not None:
                        result = kernel(*args, **kwargs)
                        if result is not NotImplemented:
                            return result
            return self.reference(*args, **kwargs)
        finally:
            if done is not None:
                done()

    def __repr__(self) -> str:
        served = ", ".join(sorted({*self.kernels, *self.overrides})) or "none"
        return f"<op {self.__name__}({_parameters(self.reference)}), kernels: {served}>"


def kernels_off() -> bool:
    """Return whether everything runs by the references now."""
    return not _use_kernels.get()


@contextmanager
def reference_only() -> Iterator[None]:
    """Run every op by its reference inside the block: the first thing to try on a wrong number."""
    token = _use_kernels.set(False)
    try:
        yield
    finally:
        _use_kernels.reset(token)


def _parameters(function: Callable[..., Any]) -> str:
    """Return the parameters of a function without their annotations."""
    signature = inspect.signature(function)
    bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return str(inspect.Signature(bare))[1:-1]
