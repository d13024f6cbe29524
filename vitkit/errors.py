"""The errors vitkit raises on purpose: what came, what was expected, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import TypeVar

Raised = TypeVar("Raised", bound=BaseException)


class VitkitError(Exception):
    """Base of every error that vitkit raises about its input or its surroundings."""


class BackendError(VitkitError, RuntimeError):
    """The array backend that was asked for cannot work here; the message names cause and cure."""


class DataError(VitkitError, ValueError):
    """A data file, image or label is not what it should be; the message names file and place."""


class CheckpointError(VitkitError, RuntimeError):
    """A checkpoint cannot be written, or cannot be trusted when read."""


class ConfigError(VitkitError, ValueError):
    """A setting is wrong; every problem found is listed, one a line.

    Parameters
    ----------
    problems : sequence of str
        One line for each problem: where it is, what came, what was expected.
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


def blaming(error: Raised, culprit: object) -> Raised:
    """Return an error about what ``culprit`` returned, so that the plugin it is from is named.

    Where a plugin's own code raises, the traceback says so; where vitkit refuses what that code
    returned, only the error's ``culprit``, the name of a module, does.
    """
    culprit = getattr(culprit, "func", culprit)  # of a functools.partial
    named = hasattr(culprit, "__qualname__")  # a function or class
    module = getattr(culprit if named else type(culprit), "__module__", None)
    error.__dict__["culprit"] = module or ""
    return error


def first_line(error: BaseException, most: int = 160) -> str:
    """Return what an error says in short: its kind, and the first line of its text."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:most]}"


def nearest(name: object, known: Iterable[str]) -> str | None:
    """Return the known name closest to ``name``, or None where none is close."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    word = str(name).lower()
    close = difflib.get_close_matches(word, by_lower, 5, 0.6)
    # Two letters that changed places are the commonest slip: "eglu" is "gelu", and not "relu".
    swapped = [
        each
        for each in close
        if sorted(each) == sorted(word) and sum(map(str.__ne__, each, word)) == 2
    ]
    return by_lower[[*swapped, *close][0]] if close else None


def suggestion(name: object, known: Iterable[str]) -> str:
    """Return ``"; did you mean ...?"`` for an unknown ``name``, or nothing where none is close."""
    close = nearest(name, known)
    return f"; did you mean {close!r}?" if close else ""
