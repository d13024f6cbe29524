"""WSD keeps the contract of schedules, and has three parts."""

import pytest

from vitkit.testing import check_schedule
from vitkit_extras_optim import WSD


def test_it_keeps_the_contract() -> None:
    check_schedule(WSD)


def test_it_rises_stays_and_falls() -> None:
    schedule = WSD(0.1, total_steps=110, warmup_steps=10, decay=0.25)
    rates = [schedule(step) for step in range(120)]
    assert rates[:10] == pytest.approx([0.01 * (step + 1) for step in range(10)])
    assert rates[10:86] == [0.1] * 76
    assert rates[86:111] == sorted(rates[86:111], reverse=True)
    assert rates[110:] == [0.0] * 10
    with pytest.raises(ValueError, match="decay must be a number > 0 and <= 1; got 0"):
        WSD(0.1, total_steps=100, decay=0)
