"""Scenarios played on a GPU that never hurries, with a module as it is and with faults planted."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import fake_cuda
import fake_cupy
import pytest

KIB = 1024
CAPACITY = 64 * KIB
Scenario = Callable[[Any, Any], None]
"""What is done with CuPy and the module under test."""
NOTICED = (AssertionError, fake_cuda.Race, RuntimeError, MemoryError, TypeError, KeyboardInterrupt)
NOTICED += (pytest.fail.Exception,)


def device() -> fake_cuda.Device:
    """Return the GPU of the scenario."""
    return fake_cuda.device


def play(scenario: Scenario, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Play a scenario on a new GPU, and have all happen that it asked for."""
    cupy = fake_cupy.module(CAPACITY)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    scenario(cupy, module)
    device().finish()


def who_notices(
    module: ModuleType,
    fault: tuple[str, str],
    scenarios: Sequence[Scenario],
    monkeypatch: pytest.MonkeyPatch,
) -> list[str]:
    """Return which scenarios fail where a part of a module, found once, is replaced."""
    old, new = fault
    text = Path(str(module.__file__)).read_text("utf-8")
    assert text.count(old) == 1
    changed = ModuleType(module.__name__)
    exec(text.replace(old, new), vars(changed))  # noqa: S102
    failed = []
    for scenario in scenarios:
        try:
            play(scenario, changed, monkeypatch)
        except NOTICED:
            failed.append(scenario.__name__)
    return failed
