"""The parts of the programs for GPUs, for tests that try them by themselves."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def gpu_modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return the parts of the programs that can be tried by themselves."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    names = "gpu_race gpu_truth gpu_report gpu_machine gpu_all gpu_kernels gpu_profile".split()
    names += ["process", "report"]
    parts = "task entries gpu_cases serve costs tape device".split()
    names += [f"contenders.{name}" for name in parts]
    before = set(sys.modules)
    found = {name.rpartition(".")[2]: __import__(name, fromlist=["x"]) for name in names}
    yield SimpleNamespace(**found)
    for name in set(sys.modules) - before:  # their names are common words
        if str(BENCHMARKS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
