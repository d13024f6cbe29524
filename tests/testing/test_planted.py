"""Every planted fault is caught by the kit, with a message that names it.

Each ``faults_<kind>.py`` holds a dict ``FAULTS`` from the name of a fault to a function that runs
the kit on an object with that fault, and a pattern for the message.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from vitkit.testing import ConformanceError

Fault = tuple[Callable[[], object], str]
HERE = Path(__file__).parent


def faults() -> dict[str, Fault]:
    """Return every fault by kind and name."""
    found: dict[str, Fault] = {}
    for path in sorted(HERE.glob("faults_*.py")):
        module = importlib.import_module(path.stem)  # conftest.py has the folder on the path
        kind = path.stem.removeprefix("faults_")
        found |= {f"{kind}: {name}": fault for name, fault in module.FAULTS.items()}
    return found


FAULTS = faults()
# Those that the project promises to catch, whatever else is caught.
PROMISED = {
    "a wrong activation backward": "activations: ",
    "an optimizer with a frozen step count": "optimizers: ",
    "a dataset with shuffled labels": "datasets: ",
    "a layer that caches on self": "layers: ",
    "a kernel that reads one element too many": "kernels: ",
    "a kernel that drops a tail": "kernels: ",
    "an op with the softmax over the wrong axis": "ops: ",
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_caught_and_named(name: str) -> None:
    check, expected = FAULTS[name]
    with pytest.raises(ConformanceError) as caught:
        check()
    assert re.search(expected, str(caught.value)), str(caught.value)


def test_there_are_enough_of_every_kind() -> None:
    assert len(FAULTS) >= 12
    for kind in PROMISED.values():
        assert any(name.startswith(kind) for name in FAULTS), kind
