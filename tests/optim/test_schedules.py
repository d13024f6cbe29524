"""Schedules against torch's, at every step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest

from vitkit.optim import Constant, Cosine, Linear, Rsqrt, Schedule, Step

LR = 0.3
HALF: Any = 1.5
MILESTONES: Any = [3, 5]  # as TOML gives them


def rates(torch: Any, steps: int, make: Callable[[Any], Any]) -> list[float]:
    """Return the learning rates that a torch scheduler gives to the first steps."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    scheduler = make(optimizer)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def after_warmup(torch: Any, warmup: int, then: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return torch's linear warm-up from lr / warmup, followed by another scheduler."""

    def make(optimizer: Any) -> Any:
        schedulers = torch.optim.lr_scheduler
        # LinearLR reaches the full rate after total_iters steps, so at step warmup - 1.
        first = schedulers.LinearLR(optimizer, 1 / warmup, 1.0, total_iters=warmup - 1)
        return schedulers.SequentialLR(optimizer, [first, then(optimizer)], milestones=[warmup])

    return make


def cosine(torch: Any) -> tuple[Schedule, Callable[[Any], Any]]:
    def then(optimizer: Any) -> Any:
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=15, eta_min=0.01)

    return Cosine(LR, 20, warmup_steps=5, min_lr=0.01), after_warmup(torch, 5, then)


def linear(torch: Any) -> tuple[Schedule, Callable[[Any], Any]]:
    def then(optimizer: Any) -> Any:
        return torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=15)

    return Linear(LR, 20, warmup_steps=5, min_lr=0.1 * LR), after_warmup(torch, 5, then)


def constant(torch: Any) -> tuple[Schedule, Callable[[Any], Any]]:
    def then(optimizer: Any) -> Any:
        return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)

    return Constant(LR, warmup_steps=5), after_warmup(torch, 5, then)


def steps(torch: Any) -> tuple[Schedule, Callable[[Any], Any]]:
    return Step(LR, (3, 9, 10), factor=0.2), lambda optimizer: torch.optim.lr_scheduler.MultiStepLR(
        optimizer, [3, 9, 10], gamma=0.2
    )


def rsqrt(torch: Any) -> tuple[Schedule, Callable[[Any], Any]]:
    def factor(s: int) -> float:
        return min((s + 1) / 5, 1.0) if s < 5 else (7 / (7 + s - 5)) ** 0.5

    return Rsqrt(
        LR, warmup_steps=5, timescale=7
    ), lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


@pytest.mark.parametrize("case", [cosine, linear, constant, steps, rsqrt])
@pytest.mark.filterwarnings("ignore:The epoch parameter:UserWarning")  # SequentialLR's own
def test_follows_torch(case: Any, torch: Any) -> None:
    schedule, make = case(torch)
    expected = rates(torch, 20, make)
    assert len(set(expected)) > 3
    for step, rate in enumerate(expected):
        assert schedule(step) == pytest.approx(rate, rel=1e-12)


ALL = [
    Constant(LR, warmup_steps=4),
    Cosine(LR, 20, warmup_steps=4),
    Linear(LR, 20, warmup_steps=4),
    Rsqrt(LR, warmup_steps=4, timescale=7),
    Step(LR, (9, 12), warmup_steps=4),
]


@pytest.mark.parametrize("schedule", ALL, ids=lambda s: type(s).__name__)
def test_warms_up_in_equal_steps_then_starts_from_the_full_rate(schedule: Schedule) -> None:
    assert [schedule(s) for s in range(5)] == pytest.approx(
        [LR / 4, LR / 2, 3 * LR / 4, LR, LR], rel=1e-15
    )
    assert all(type(schedule(s)) is float for s in range(25))


@pytest.mark.parametrize("schedule", [Cosine(LR, 20, 4, 0.01), Linear(LR, 20, 4, 0.01)])
def test_stays_at_the_least_rate(schedule: Schedule) -> None:
    assert schedule(19) > 0.01
    assert schedule(20) == schedule(21) == schedule(10**9) == 0.01


def test_closed_forms() -> None:
    assert Cosine(2.0, 100)(50) == pytest.approx(1.0, rel=1e-15)
    assert Cosine(2.0, 100)(25) == pytest.approx(1 + math.sqrt(0.5), rel=1e-15)
    assert Linear(2.0, 100)(75) == pytest.approx(0.5, rel=1e-15)
    assert Rsqrt(2.0, warmup_steps=100, timescale=100)(400) == pytest.approx(1.0, rel=1e-15)
    assert Step(2.0, (10,))(10) == pytest.approx(0.2, rel=1e-15)


def test_schedules_are_values() -> None:
    assert Cosine(0.1, 10) == Cosine(0.1, 10)
    assert Step(0.1, MILESTONES) == Step(0.1, (3, 5))
    with pytest.raises(dataclasses.FrozenInstanceError):
        Constant(0.1).lr = 0.2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constant(-0.1), r"lr must be a number >= 0; got -0\.1"),
        (lambda: Constant(0.1, warmup_steps=-1), "warmup_steps must be a whole number >= 0; got -"),
        (lambda: Constant(0.1, warmup_steps=HALF), "warmup_steps must be a whole .* got 1.5"),
        (lambda: Cosine(0.1, 0), "total_steps must be a whole number >= 1; got 0"),
        (lambda: Cosine(0.1, 9, warmup_steps=9), "warmup_steps must be less than total_steps=9"),
        (lambda: Linear(0.1, 9, min_lr=0.2), r"min_lr must be a number >= 0 and <= 0\.1; got 0\.2"),
        (lambda: Rsqrt(0.1, timescale=0), "timescale must be a whole number >= 1; got 0"),
        (lambda: Step(0.1, (3, 3)), r"milestones must rise; got \(3, 3\)"),
        (lambda: Step(0.1, (3,), warmup_steps=4), "milestones must be a whole number >= 4; got 3"),
        (lambda: Step(0.1, 5), r"milestones must be a list of steps, such as \(30, 60\); got 5"),
        (lambda: Step(0.1, (3,), factor=0), "factor must be a number > 0 and <= 1|<= 1 and > 0"),
        (lambda: Constant(0.1)(-1), "step must be a whole number >= 0; got -1"),
    ],
)
def test_refuses_settings_out_of_range(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
