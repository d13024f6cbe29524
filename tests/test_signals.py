"""A signal that comes while LLVM's objects are made ends the program, and nobody says a word."""

from __future__ import annotations

import signal
import sys
from types import CodeType, FrameType
from typing import Any

import pytest

from vitkit.signals import Terminated, leaving

numba = pytest.importorskip("numba", reason="Numba is not installed: nothing compiles here")


class Sender:
    """Sends a signal as the ``at``-th function of LLVM's bindings is called for the first time."""

    def __init__(self, number: int, at: int) -> None:
        self.number, self.at = number, at
        self.called: dict[CodeType, None] = {}

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        bindings = frame.f_globals.get("__name__", "").startswith("llvmlite.binding")
        if event == "call" and bindings and code not in self.called:
            self.called[code] = None
            if len(self.called) == self.at:
                sys.setprofile(None)
                signal.raise_signal(self.number)


@pytest.fixture
def dropped(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return what Python could only say, since nobody was there to be told."""
    said: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda dropped: said.append(dropped.exc_value))
    return said


def compiled(sender: Sender) -> None:
    """Compile a function, which LLVM has not seen."""
    function = numba.njit(lambda x: x + 1.5)
    sys.setprofile(sender)
    try:
        function(1.0)
        while len(sender.called) >= sender.at > 0:  # it comes again, until it may
            sum(range(100))
    finally:
        sys.setprofile(None)


@pytest.fixture(scope="module")
def functions() -> int:
    """Return how many functions of LLVM's bindings a compilation calls that is not the first."""
    compiled(Sender(0, 0))
    compiled(watching := Sender(0, 0))
    return len(watching.called)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_wherever_it_comes_while_llvm_works(
    number: int, functions: int, dropped: list[Any]
) -> None:
    for at in range(1, functions + 1):
        with leaving(), pytest.raises((Terminated, KeyboardInterrupt)):
            compiled(sender := Sender(number, at))
        assert len(sender.called) == at
        assert not dropped, f"{dropped} at {list(sender.called)[-1]}"
    assert functions > 30
