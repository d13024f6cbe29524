"""What the tests of the fault matrix share; rows import the modules beside them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def injected(
    request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> Callable[..., None]:
    """Return what a test reports its faults to; a test that asks for it must report some."""

    def report(what: str, number: int, *, at_least: int = 1) -> None:
        record_property("injected", f"{request.node.name}: {number} {what}")
        assert number >= at_least, f"only {number} {what}; expected at least {at_least}"

    return report
