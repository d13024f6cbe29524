"""The conformance kit, which plugins are held to, on vitkit's own kernels.

It does what the tests beside it do not: margins that must be neither read nor written, lengths up
to 100003, arguments that change after the call.
"""

from __future__ import annotations

import pytest
from kernel_calls import KERNELS

from vitkit.testing.check import Check, outcome_of
from vitkit.testing.kernels import kernel_checks
from vitkit.testing.parts.kernel_inputs import makers

pytestmark = pytest.mark.usefixtures("no_lucky_memory")
ELSEWHERE = {"values in float64", "answers", "NaN, infinity, large and tiny"}  # in test_cpu.py
CHECKS = {
    f"{name}: {check.name}": check
    for name, op in KERNELS.items()
    if makers(op) is not None
    for check in kernel_checks(op, op.kernels["numpy"])
    if check.name not in ELSEWHERE
}


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_kit(check: Check) -> None:
    outcome = outcome_of(check)
    assert outcome.passed is not False, outcome.message
