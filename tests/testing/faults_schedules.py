"""Schedules with one fault each, and the words by which the kit must name it."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from vitkit.testing.schedules import check_schedule


class Sound:
    """The right version: a linear warm-up, then half a cosine."""

    def __init__(self, lr: float, total_steps: int, warmup_steps: int = 0) -> None:
        self.lr, self.total_steps, self.warmup_steps = lr, total_steps, warmup_steps
        self.prepare()

    def prepare(self) -> None:
        assert self.warmup_steps < self.total_steps

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.rising(step)
        return self.falling((step - self.warmup_steps) / (self.total_steps - self.warmup_steps))

    def rising(self, step: int) -> float:
        return self.lr * (step + 1) / self.warmup_steps

    def falling(self, progress: float) -> float:
        return self.lr * (1 + math.cos(math.pi * min(1.0, progress))) / 2


class NumpyNumber(Sound):
    def falling(self, progress: float) -> float:
        return self.lr * (1 + np.cos(math.pi * min(1.0, progress))) / 2  # type: ignore[no-any-return]


class WholeNumber(Sound):
    def falling(self, progress: float) -> float:
        return super().falling(progress) if progress < 1 else 0


class RisesAgain(Sound):
    def falling(self, progress: float) -> float:
        return self.lr * (1 + math.cos(math.pi * progress)) / 2


class FallsBelowZero(Sound):
    def falling(self, progress: float) -> float:
        return self.lr * (1 - progress)


class Overshoots(Sound):
    def rising(self, step: int) -> float:
        return self.lr * (step + 2) / self.warmup_steps


class WastesTheFirst(Sound):
    def rising(self, step: int) -> float:
        return self.lr * step / self.warmup_steps


class NeverArrives(Sound):
    def rising(self, step: int) -> float:
        return 0.9 * self.lr * (step + 1) / self.warmup_steps

    def falling(self, progress: float) -> float:
        return 0.9 * super().falling(progress)


class NoWarmup(Sound):
    def rising(self, step: int) -> float:
        return self.lr


class FallsInWarmup(Sound):
    def rising(self, step: int) -> float:
        return self.lr * (1 if step + 1 == self.warmup_steps else 0.5 / (step + 1))


class SquaresLr(Sound):
    def falling(self, progress: float) -> float:
        return self.lr * super().falling(progress)

    def rising(self, step: int) -> float:
        return self.lr * super().rising(step)


class IgnoresLr(Sound):
    def prepare(self) -> None:
        self.lr = 0.3  # whatever was given


class IgnoresTotal(Sound):
    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.rising(step)
        return self.lr / math.sqrt(1 + step - self.warmup_steps)


class CountsCalls(Sound):
    def prepare(self) -> None:
        self.calls = -1

    def __call__(self, step: int) -> float:
        self.calls += 1
        return super().__call__(self.calls)


class RemembersTheLast(Sound):
    last = 0

    def __call__(self, step: int) -> float:
        self.last = step
        return super().__call__(step)


class HoldsALock(Sound):
    def prepare(self) -> None:
        self.lock = threading.Lock()


class DividesByTheLast(Sound):
    def falling(self, progress: float) -> float:
        left = self.total_steps - self.warmup_steps
        return super().falling(progress * left / (left - 1))


class MakesATable(Sound):
    def prepare(self) -> None:
        self.table = [super(MakesATable, self).__call__(step) for step in range(self.total_steps)]

    def __call__(self, step: int) -> float:
        return self.table[step] if step < len(self.table) else 0.0


class EndsWithTheTable(MakesATable):
    def __call__(self, step: int) -> float:
        return self.table[step]


class NotFinite(Sound):
    def falling(self, progress: float) -> float:
        return super().falling(progress) if progress < 1 else math.nan


def triangle(lr: float, total_steps: int = 10, warmup_steps: int = 0) -> None:
    """Return nothing: a rate was computed instead of a function."""


RATES, ALONE, HELD, COPIED = (
    "rates are floats from 0 to lr",
    "depends on the step alone",
    "keeps nothing",
    "can be copied",
)
FIRST, WARMUP, LINEAR, END, SHORT, TABLE = (
    "first update counts",
    "warm-up",
    "follows lr",
    "end",
    "short runs",
    "keeps no table",
)


class Planted(NamedTuple):
    """A fault: who has it, what the kit says of it, and the checks that must fail, no others."""

    make: Callable[..., Any]
    message: str
    fails: set[str]


PLANTED = {
    "NumPy numbers": Planted(
        NumpyNumber, r"is np.float64\(0.3\), of type float64, expected a Python float", {RATES}
    ),
    "whole numbers": Planted(WholeNumber, r"schedule\(20\) .* is 0, of type int", {RATES}),
    "rises after its end": Planted(RisesAgain, "rises again after its end: schedule.19", {END}),
    "negative rates": Planted(FallsBelowZero, r"negative: -0.0\d+. Limit the progress", {RATES}),
    "NaN at the end": Planted(NotFinite, r"schedule\(20\) .* is nan, expected a finite", {RATES}),
    "above lr": Planted(Overshoots, "above lr=0.3, which is the highest", {RATES}),
    "first update wasted": Planted(
        WastesTheFirst, "has a rate of 0.0 and is wasted: warm up with", {FIRST}
    ),
    "lr never reached": Planted(NeverArrives, "the warm-up never reaches lr=0.3", {WARMUP}),
    "no warm-up": Planted(NoWarmup, "ignores warmup_steps=4: schedule.0. is 0.3", {WARMUP}),
    "falls while it warms up": Planted(
        FallsInWarmup, "does not rise during the warm-up: .* schedule.1. is", {WARMUP}
    ),
    "lr squared": Planted(SquaresLr, "is not linear in lr", {LINEAR, WARMUP}),
    "lr ignored": Planted(IgnoresLr, "ignores lr: the rates of lr=0.3 and lr=0.6", {LINEAR}),
    "total_steps ignored": Planted(IgnoresTotal, "ignores total_steps", {END}),
    "counted calls": Planted(CountsCalls, r"it remembers earlier calls", {ALONE, HELD}),
    "counted calls, by the attribute": Planted(
        CountsCalls, "a call changes 'self.calls'", {ALONE, HELD}
    ),
    "the last step kept": Planted(RemembersTheLast, "a call changes 'self.last'", {HELD}),
    "a lock": Planted(HoldsALock, "cannot be copied .TypeError.* hold numbers", {COPIED}),
    "runs of one update": Planted(
        DividesByTheLast,
        "total_steps=1, warmup_steps=0 it raised ZeroDivisionError",
        {SHORT},
    ),
    "a table of rates": Planted(MakesATable, "bytes for total_steps=100,000: it makes a", {TABLE}),
    "a table that ends": Planted(
        EndsWithTheTable,
        r"raised IndexError: list index out of range \(faults_schedules.py",
        {RATES, END, TABLE},
    ),
    "no lr": Planted(lambda rate=0.1: Sound(rate, 10), "make takes no lr", {"can be made"}),
    "no function": Planted(triangle, "make returned None, expected a function", {"can be made"}),
}
FAULTS = {
    name: (partial(check_schedule, planted.make), planted.message)
    for name, planted in PLANTED.items()
}
