"""What ships passes the checks of schedules; each planted fault is named, by the right checks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from faults_schedules import FAULTS, PLANTED, Sound

from vitkit.optim import Constant, Cosine, Linear, Rsqrt, Step
from vitkit.testing.check import ConformanceError, outcome_of
from vitkit.testing.schedules import check_schedule, schedule_checks


def half_life(lr: float) -> Callable[[int], float]:
    """Return a schedule that is a function, and takes nothing but ``lr``."""
    return lambda step: lr * 0.5**step


SHIPPED: dict[str, Callable[..., Any]] = {
    "constant": Constant,
    "cosine": Cosine,
    "cosine to a lowest rate": partial(Cosine, min_lr=0.01),
    "linear": Linear,
    "rsqrt": partial(Rsqrt, timescale=7),
    "step": partial(Step, milestones=(9, 12)),
}
NEED_A_TOTAL = {"end", "short runs", "keeps no table"}


@pytest.mark.parametrize("case", SHIPPED)
def test_what_ships_passes(case: str) -> None:
    outcomes = [outcome_of(check) for check in schedule_checks(SHIPPED[case])]
    assert [o for o in outcomes if o.passed is False] == []
    skipped = {o.name for o in outcomes if o.passed is None}
    assert skipped == (set() if case.startswith(("cosine", "linear")) else NEED_A_TOTAL)


def test_the_right_version_of_the_faults_passes() -> None:
    outcomes = [outcome_of(check) for check in schedule_checks(Sound)]
    assert {o.passed for o in outcomes} == {True}
    check_schedule(Sound)


def test_a_function_of_lr_alone_passes() -> None:
    outcomes = [outcome_of(check) for check in schedule_checks(half_life)]
    assert {o.name for o in outcomes if o.passed is not True} == {*NEED_A_TOTAL, "warm-up"}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(fault: str) -> None:
    check, message = FAULTS[fault]
    with pytest.raises(ConformanceError, match=message) as caught:
        check()
    assert set(caught.value.failures) == PLANTED[fault].fails, caught.value


def test_what_needs_other_arguments_is_not_checked_but_said() -> None:
    def make(lr: float, cycles: int) -> Any:
        raise AssertionError("never called")

    assert {o.passed for o in map(outcome_of, schedule_checks(make))} == {None}
    assert "register it with example=" in outcome_of(schedule_checks(make)[0]).message
    with pytest.raises(TypeError, match="making one needs cycles"):
        check_schedule(make)
