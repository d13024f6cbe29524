"""How many faults a row of the matrix injects, and the line that says how many it did.

A row has a count for every run of the tests and one for ``tox -e faults``, which sets
``VITKIT_FAULT_TIER=N``; ``VITKIT_FAULT_SCALE`` multiplies either.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeAlias

Injected: TypeAlias = Callable[..., None]
"""``injected(what, number, at_least=n)``: reports a number, and fails where it is too small."""


def faults(every_run: int, by_night: int | None = None) -> int:
    """Return how many faults to inject."""
    at_night = os.environ.get("VITKIT_FAULT_TIER") == "N" and by_night is not None
    scale = float(os.environ.get("VITKIT_FAULT_SCALE", "1"))
    return max(1, round((by_night if at_night else every_run) * scale))
