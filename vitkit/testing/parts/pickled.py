"""The way to another process and back.

vitkit loads no pickle, since a pickle can run code. Here it is an object of the caller's own that
is written and read at once, to see whether multiprocessing could send it.
"""

from __future__ import annotations

import pickle
from typing import TypeVar

T = TypeVar("T")


def content(thing: object) -> bytes:
    """Return bytes that change when what is kept in ``thing`` changes."""
    try:
        return pickle.dumps(thing)
    except Exception:  # of a type that cannot be sent
        return repr(thing).encode()


def pickled(thing: T, what: str) -> T:
    """Return what a process would get that is sent ``thing``.

    Parameters
    ----------
    thing : object
        What is sent.
    what : str
        What messages call it.

    Returns
    -------
    object
        A copy that has gone through pickle.

    Raises
    ------
    AssertionError
        If it cannot be pickled, or not be read again.
    """
    try:
        copy: T = pickle.loads(pickle.dumps(thing))  # noqa: S301 (of our own, made just now)
    except Exception as error:
        raise AssertionError(
            f"{what} cannot be sent to another process: {type(error).__name__}: {error}. Define "
            "classes and functions at the top level of a module, and keep no lambda, lock or open "
            "file on self."
        ) from error
    return copy
