"""What the conformance kit is made of: named checks that run alone or all together.

A kind of plugin has a function that lists its checks, such as ``activation_checks``, and one
that runs them, ``check_activation``; ``pytest --vitkit-plugin`` and ``vitkit plugins check`` run
the same lists.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from vitkit.signals import Terminated

KIT = Path(__file__).parent


class Skip(Exception):
    """Raised by a check that cannot be made here; the text is the reason."""


class ConformanceError(AssertionError):
    """Checks have failed; the message lists each of them.

    Attributes
    ----------
    failures : dict of str to str
        What is wrong, by the name of the check.
    """

    def __init__(self, what: str, failures: dict[str, str]) -> None:
        self.failures = failures
        lines = "\n".join(f"  {name}: {message}" for name, message in failures.items())
        super().__init__(f"{what} fails {len(failures)} of its checks:\n{lines}")


@dataclass(frozen=True)
class Check:
    """One thing that must hold.

    Attributes
    ----------
    name : str
        What it is, in a few words: ``"gradient"``.
    run : callable
        Returns where it holds, raises AssertionError with what came, what was expected and what
        to do where it does not, and :class:`Skip` where it cannot be made.
    """

    name: str
    run: Callable[[], None]


@dataclass(frozen=True)
class Outcome:
    """How a check ended.

    Attributes
    ----------
    name : str
        The check's.
    passed : bool or None
        None where it was skipped.
    message : str
        What is wrong, or why it was skipped; empty where it passed.
    """

    name: str
    passed: bool | None
    message: str = ""


def outcome_of(check: Check) -> Outcome:
    """Run one check; whatever the plugin's code raises is a failure of the check."""
    try:
        check.run()
    except Skip as reason:
        return Outcome(check.name, None, str(reason))
    except AssertionError as error:
        return Outcome(check.name, False, str(error) or "an assertion without a message failed")
    except Terminated:
        raise
    except (Exception, SystemExit) as error:
        return Outcome(check.name, False, f"raised {type(error).__name__}: {error}{where(error)}")
    return Outcome(check.name, True)


def where(error: BaseException) -> str:
    """Return the innermost place of an error outside the kit, as ``" (file.py, line 3)"``."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if KIT not in Path(frame.filename).parents] or frames
    return f" ({Path(theirs[-1].filename).name}, line {theirs[-1].lineno})" if theirs else ""


def run_checks(what: str, checks: Iterable[Check]) -> list[Outcome]:
    """Run checks, and raise with every failure there is.

    Parameters
    ----------
    what : str
        What is checked, for the message: ``"activation 'mish'"``.
    checks : iterable of Check
        The checks.

    Returns
    -------
    list of Outcome
        All passed, or skipped with a reason.

    Raises
    ------
    ConformanceError
        Listing every check that failed, and what is wrong.
    """
    outcomes = [outcome_of(check) for check in checks]
    failures = {o.name: o.message for o in outcomes if o.passed is False}
    if failures:
        raise ConformanceError(what, failures)
    return outcomes
