"""A signal ends a block, wherever it comes, and nobody says a word of it."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vitkit.signals import Terminated, leaving

NUMBERS = {signal.SIGTERM: Terminated, signal.SIGINT: KeyboardInterrupt}


def finalized(send: Callable[..., Any]) -> None:
    class Finalized:
        def __del__(self) -> None:
            send()

    Finalized()


def of_a_weak_reference(send: Callable[..., Any]) -> None:
    thing = type("Thing", (), {})()
    reference = weakref.ref(thing, send)
    del thing
    assert reference() is None


def of_weakref_finalize(send: Callable[..., Any]) -> None:
    thing = type("Thing", (), {})()
    weakref.finalize(thing, send)
    del thing


def in_a_generator(send: Callable[..., Any]) -> None:
    def numbers() -> Iterator[int]:
        try:
            yield 1
        finally:
            send()

    next(numbers())


def called_by_c(send: Callable[..., Any]) -> None:
    ctypes.CFUNCTYPE(None)(send)()


WAYS = [finalized, of_a_weak_reference, of_weakref_finalize, in_a_generator, called_by_c]


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("way", WAYS)
def test_where_python_drops_what_is_raised(
    way: Callable[..., None], number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: said.append(what.exc_value))
    before = sys.unraisablehook, signal.getsignal(number)

    def work() -> None:
        with leaving():
            way(lambda *given: signal.raise_signal(number))
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                sum(range(100))

    with pytest.raises(NUMBERS[number]):
        work()
    assert (sys.unraisablehook, signal.getsignal(number)) == before
    assert not said


def test_what_others_drop_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: said.append(what.exc_value))

    def fail(*given: Any) -> None:
        raise ValueError("said")

    with leaving():
        finalized(fail)
    assert [str(error) for error in said] == ["said"]


def test_while_kernels_are_compiled() -> None:
    """Numba has generators and weak references, and LLVM's objects must not be left half made."""
    pytest.importorskip("numba", reason="Numba is not installed: nothing compiles here")
    if not hasattr(os, "fork"):
        pytest.skip("processes are made by fork")
    program = Path(__file__).with_name("signals_while_compiling.py")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("COV_")}
    end = subprocess.run(
        [sys.executable, program, "150"],
        capture_output=True,
        check=True,
        encoding="utf-8",
        env=environment,
        timeout=280,
    )
    counted = dict(line.split(" ") for line in end.stdout.splitlines())
    assert end.stderr == ""
    assert counted.keys() <= {"bindings", "anywhere", "lost"}
    assert int(counted["bindings"]) > 60, "functions of LLVM's bindings"
    assert int(counted["anywhere"]) >= 100, "functions of anybody"
    assert "lost" not in counted
