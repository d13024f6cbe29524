"""Whether a learning-rate schedule keeps its contract: ``check_schedule``.

A schedule is a function ``schedule(step) -> lr`` of the step alone, counted from 0, that works for
runs of any length. ``lr`` is the highest rate it gives; with ``warmup_steps`` the rate rises to
it first, and with ``total_steps`` it does not rise again after the run.
"""

from __future__ import annotations

import copy
import math
import tracemalloc
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from vitkit.testing.check import Check, Skip, run_checks, where
from vitkit.testing.parts.functions import name_of
from vitkit.testing.parts.making import expect_makeable
from vitkit.testing.parts.sameness import differing
from vitkit.testing.parts.settings import expect_enough, taken
from vitkit.testing.parts.staged import staged

Schedule = Callable[[int], float]

LR = 0.3
TOTAL = 20
WARMUPS = (1, 4)
BEYOND = (TOTAL, TOTAL + 1, 2 * TOTAL, 1000 * TOTAL, 10**9)
LONG = 100_000  # steps of a run for which no table may be kept
RTOL = 1e-9
SETTINGS = ("lr", "total_steps", "warmup_steps")


class Maker:
    """Makes the schedule under test, with those of the settings that it takes.

    Parameters
    ----------
    make : callable
        What was given to the kit.
    """

    def __init__(self, make: Callable[..., Schedule]) -> None:
        self.make = make
        self.takes = taken(make, SETTINGS)

    def __call__(self, lr: float = LR, total_steps: int = TOTAL, warmup_steps: int = 0) -> Schedule:
        """Return a new schedule."""
        return self.make(**self.settings(lr, total_steps, warmup_steps))

    def settings(
        self, lr: float = LR, total_steps: int = TOTAL, warmup_steps: int = 0
    ) -> dict[str, Any]:
        """Return what ``make`` is called with."""
        values = zip(SETTINGS, (lr, total_steps, warmup_steps), strict=True)
        return {name: value for name, value in values if name in self.takes}


def can_be_made(maker: Maker) -> None:
    """Check that ``make`` returns a schedule."""
    if "lr" not in maker.takes:
        raise AssertionError("make takes no lr, the highest rate; give it that argument.")
    expect_enough(maker.make, maker.settings())
    try:
        schedule = maker()
    except Exception as error:
        raise AssertionError(
            f"make({_said(maker, 0)}) raised {type(error).__name__}: {error}{where(error)}."
        ) from error
    if not callable(schedule):
        raise AssertionError(f"make returned {schedule!r}, expected a function of the step.")


def rates_are_floats(maker: Maker) -> None:
    """Check that every rate, also of steps after the run, is a Python float from 0 to ``lr``."""
    for warmup in _warmups(maker):
        schedule = maker(warmup_steps=warmup)
        for step in (*range(TOTAL), *BEYOND):
            _check_rate(schedule(step), f"schedule({step}) with {_said(maker, warmup)}")


def _check_rate(rate: Any, what: str) -> None:
    if type(rate) is not float:
        raise AssertionError(
            f"{what} is {rate!r}, of type {type(rate).__name__}, expected a Python float: a NumPy "
            "number would widen float32 arrays. Use math instead of numpy, or return float(...)."
        )
    if not math.isfinite(rate):
        raise AssertionError(f"{what} is {rate}, expected a finite number.")
    if rate < 0:
        raise AssertionError(
            f"{what} is negative: {rate}. Limit the progress to 1, with min(1.0, ...)."
        )
    if rate > LR * (1 + RTOL):
        raise AssertionError(f"{what} is {rate}, above lr={LR}, which is the highest rate.")


def depends_on_the_step_alone(maker: Maker) -> None:
    """Check that a step has one rate, in whatever order and however often it is asked for."""
    schedule, steps = maker(), range(TOTAL)
    forward = [schedule(step) for step in steps]
    backward = [schedule(step) for step in reversed(steps)][::-1]
    twice = [rate for step in steps for rate in (schedule(step), schedule(step))][::2]
    for how, rates in (("in reverse", backward), ("each step twice", twice)):
        for step, (first, again) in enumerate(zip(forward, rates, strict=True)):
            if first != again:
                raise AssertionError(
                    f"schedule({step}) was {first}, and asked {how} it is {again}: it remembers "
                    "earlier calls. A resumed run starts in the middle; compute the rate from the "
                    "step given."
                )


def keeps_nothing(maker: Maker) -> None:
    """Check that calls leave the schedule as it was."""
    schedule = maker()
    try:
        held = copy.deepcopy(getattr(schedule, "__dict__", {}))
    except Exception as error:
        raise Skip("cannot be copied, so what it holds cannot be compared") from error
    _rates(schedule, range(TOTAL))
    now = getattr(schedule, "__dict__", {})
    if changed := differing(held, now):
        raise AssertionError(
            f"a call changes {', '.join(repr(f'self.{name}') for name in changed)}: a schedule is "
            "a function of the step and keeps nothing."
        )


def can_be_copied(maker: Maker) -> None:
    """Check that a deep copy gives the same rates."""
    schedule = maker()
    try:
        other = copy.deepcopy(schedule)
    except Exception as error:
        raise AssertionError(
            f"cannot be copied ({type(error).__name__}: {error}): hold numbers, not open files, "
            "locks or generators."
        ) from error
    if _rates(other, range(TOTAL)) != _rates(schedule, range(TOTAL)):
        raise AssertionError("a deep copy gives other rates: does it lose what it was made with?")


def starts_above_zero(maker: Maker) -> None:
    """Check that the first update is not wasted."""
    for warmup in _warmups(maker):
        if not (rate := maker(warmup_steps=warmup)(0)) > 0:
            raise AssertionError(
                f"the first update, schedule(0) with {_said(maker, warmup)}, has a rate of {rate} "
                "and is wasted: warm up with lr * (step + 1) / warmup_steps."
            )


def warms_up(maker: Maker) -> None:
    """Check that the rate rises to ``lr`` in ``warmup_steps``."""
    if "warmup_steps" not in maker.takes:
        raise Skip("takes no warmup_steps")
    for warmup in WARMUPS:
        schedule = maker(warmup_steps=warmup)
        rates = _rates(schedule, range(warmup + 1))
        if warmup > 1 and _near(rates[0], LR):
            raise AssertionError(
                f"ignores warmup_steps={warmup}: schedule(0) is {rates[0]}, the full rate."
            )
        falls = [s for s in range(1, warmup) if not rates[s] > rates[s - 1]]
        if falls:
            raise AssertionError(
                f"does not rise during the warm-up: with warmup_steps={warmup} schedule"
                f"({falls[0]}) is {rates[falls[0]]} after {rates[falls[0] - 1]}."
            )
        if not (_near(rates[warmup - 1], LR) or _near(rates[warmup], LR)):
            raise AssertionError(
                f"the warm-up never reaches lr={LR}: with warmup_steps={warmup} schedule"
                f"({warmup - 1}) is {rates[warmup - 1]} and schedule({warmup}) {rates[warmup]}. "
                "Warm up with lr * (step + 1) / warmup_steps, and count the rest from there."
            )


def follows_lr(maker: Maker) -> None:
    """Check that rates are a straight line in ``lr``, but for a lowest rate it may have."""
    for warmup in _warmups(maker):
        one, two, three = (
            _rates(maker(lr=k * LR, warmup_steps=warmup), range(TOTAL)) for k in (1, 2, 3)
        )
        for step, (a, b, c) in enumerate(zip(one, two, three, strict=True)):
            if abs((c - b) - (b - a)) > RTOL * LR:
                raise AssertionError(
                    f"is not linear in lr: schedule({step}) is {a}, {b} and {c} with lr={LR}, "
                    f"{2 * LR} and {3 * LR}. Multiply by lr once, or interpolate from it."
                )
        if one == two:
            raise AssertionError(f"ignores lr: the rates of lr={LR} and lr={2 * LR} are the same.")


def ends(maker: Maker) -> None:
    """Check that ``total_steps`` counts, and that the rate does not rise after it."""
    if "total_steps" not in maker.takes:
        raise Skip("takes no total_steps")
    schedule, longer = maker(), maker(total_steps=2 * TOTAL)
    last = schedule(TOTAL - 1)
    for step in (*range(TOTAL, 3 * TOTAL), *BEYOND):
        if schedule(step) > last * (1 + RTOL):
            raise AssertionError(
                f"rises again after its end: schedule({TOTAL - 1}) is {last} with total_steps="
                f"{TOTAL}, schedule({step}) is {schedule(step)}. Limit the progress to 1, with "
                "min(1.0, ...)."
            )
    steps = range(2 * TOTAL)
    if _rates(schedule, steps) == _rates(longer, steps):
        raise AssertionError(
            f"ignores total_steps: the rates of {TOTAL} and {2 * TOTAL} are the same. Use it, or "
            "do not take it."
        )


def short_runs(maker: Maker) -> None:
    """Check runs of one update, and those where all updates but one warm up."""
    if "total_steps" not in maker.takes:
        raise Skip("takes no total_steps")
    runs = [(1, 0)] + [(2, 1), (TOTAL, TOTAL - 1)] * ("warmup_steps" in maker.takes)
    for total, warmup in runs:
        settings = _said(maker, warmup, total)
        try:
            schedule = maker(total_steps=total, warmup_steps=warmup)
            rates = _rates(schedule, range(total))
        except Exception as error:
            raise AssertionError(
                f"with {settings} it raised {type(error).__name__}: {error}{where(error)}; a run "
                "may be as short."
            ) from error
        wasted = total == 1 and not rates[0] > 0
        if wasted or not all(map(math.isfinite, rates)):
            raise AssertionError(
                f"with {settings} the rates are {rates}, expected finite numbers, the first above "
                "0; a run may be as short."
            )


def keeps_no_table(maker: Maker) -> None:
    """Check that the memory it takes does not grow with the run."""
    if "total_steps" not in maker.takes:
        raise Skip("takes no total_steps")
    mine = not tracemalloc.is_tracing()
    if mine:
        tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        maker(total_steps=LONG)(0)
        taken = tracemalloc.get_traced_memory()[1] - before
    finally:
        if mine:
            tracemalloc.stop()
    if taken > LONG:
        raise AssertionError(
            f"takes {taken:,} bytes for total_steps={LONG:,}: it makes a table of rates. Compute "
            "the rate from the step; settings are tried with a total_steps of 10**9 before the "
            "data are known."
        )


CHECKS: dict[str, Callable[[Maker], None]] = {
    "rates are floats from 0 to lr": rates_are_floats,
    "depends on the step alone": depends_on_the_step_alone,
    "keeps nothing": keeps_nothing,
    "can be copied": can_be_copied,
    "first update counts": starts_above_zero,
    "warm-up": warms_up,
    "follows lr": follows_lr,
    "end": ends,
    "short runs": short_runs,
    "keeps no table": keeps_no_table,
}


def schedule_checks(make: Callable[..., Schedule]) -> list[Check]:
    """Return the checks of a schedule, each to be run alone.

    Parameters
    ----------
    make : callable
        As for :func:`check_schedule`.

    Returns
    -------
    list of Check
        The checks.
    """
    maker = Maker(make)
    foundation = [Check("can be made", partial(can_be_made, maker))]
    return staged(foundation, [Check(n, partial(check, maker)) for n, check in CHECKS.items()])


def check_schedule(make: Callable[..., Schedule]) -> None:
    """Check that a learning-rate schedule keeps its contract.

    Parameters
    ----------
    make : callable
        ``make(lr=...)`` returns a new ``schedule(step) -> lr``. It also gets ``total_steps=`` and
        ``warmup_steps=`` where it takes them, as in a configured run; what else it needs is given
        beforehand, ``functools.partial(Step, milestones=(30, 60))``, and must go with runs of 20
        steps of which 4 warm up.

    Raises
    ------
    ConformanceError
        Listing every check that failed, and what is wrong.
    TypeError
        If ``make`` needs other arguments.
    """
    expect_makeable(make, dict.fromkeys(SETTINGS))
    run_checks(f"schedule {name_of(make, 'of this name')!r}", schedule_checks(make))


def _warmups(maker: Maker) -> tuple[int, ...]:
    return (0, *WARMUPS) if "warmup_steps" in maker.takes else (0,)


def _said(maker: Maker, warmup: int, total: int = TOTAL) -> str:
    settings = maker.settings(total_steps=total, warmup_steps=warmup)
    return ", ".join(f"{name}={value}" for name, value in settings.items())


def _rates(schedule: Schedule, steps: Iterable[int]) -> list[float]:
    return [float(schedule(step)) for step in steps]


def _near(rate: float, other: float) -> bool:
    return abs(rate - other) <= RTOL * other
