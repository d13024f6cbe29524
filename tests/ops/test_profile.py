"""The time of operations: each second is charged once, to what ran on top."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import numpy as np
import pytest

from vitkit import ops
from vitkit.backend import ArrayModule
from vitkit.ops import Op, Profile, _op
from vitkit.ops._op import watch
from vitkit.ops._profile import paused, section
from vitkit.testing import strict_device


@pytest.fixture(scope="module", autouse=True)
def spelling() -> None:
    """Leave kernels as they are: what is called is not what is tested here."""


class Clock:
    """Shows the time that it is told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


clock = Clock()


@Op
def inner(seconds: float, *, xp: ArrayModule) -> float:
    """Take some seconds."""
    clock.now += seconds
    return seconds


@Op
def outer(seconds: float, *, xp: ArrayModule) -> float:
    """Take a second, then let another operation take some, twice, then take two."""
    clock.now += 1
    inner(seconds, xp=xp)
    inner(seconds, xp=xp)
    clock.now += 2
    return seconds


@Op
def broken(*, xp: ArrayModule) -> None:
    """Take three seconds and fail."""
    clock.now += 3
    raise ZeroDivisionError


def rows(profile: Profile) -> dict[str, tuple[int, float]]:
    """Return calls and seconds by name, parts that are no operation in brackets."""
    named = {f"({name})": spent for name, spent in profile.sections.items()}
    every = {**profile.operations, **named}
    return {name: (spent.calls, round(spent.seconds, 9)) for name, spent in every.items()}


def test_an_operation_is_charged_for_what_it_does_itself() -> None:
    with ops.profiled(clock=clock) as profile:
        clock.now += 5
        outer(10, xp=np)
        inner(7, xp=np)
    assert rows(profile) == {"outer": (1, 3), "inner": (3, 27)}
    assert profile.rest.seconds == 5
    assert profile.seconds == 35


def test_after_the_block_nothing_is_recorded() -> None:
    with ops.profiled(clock=clock) as profile:
        inner(1, xp=np)
    inner(1, xp=np)
    clock.now += 50
    assert rows(profile) == {"inner": (1, 1)}
    assert profile.seconds == 1
    assert watch.get() is None


def test_an_error_leaves_the_profile_whole() -> None:
    with ops.profiled(clock=clock) as profile:
        with pytest.raises(ZeroDivisionError):
            broken(xp=np)
        inner(1, xp=np)
        clock.now += 2
    assert rows(profile) == {"broken": (1, 3), "inner": (1, 1)}
    assert profile.rest.seconds == 2
    with pytest.raises(ZeroDivisionError), ops.profiled():
        raise ZeroDivisionError
    assert watch.get() is None


def test_sections_name_what_is_no_operation() -> None:
    with ops.profiled(clock=clock) as profile:
        with section("loading"):
            clock.now += 4
            inner(1, xp=np)
        with section("loading"):
            clock.now += 4
    assert rows(profile) == {"inner": (1, 1), "(loading)": (2, 8)}
    assert profile.rest.seconds == 0
    with section("loading"), paused():  # where nothing is profiled they do nothing
        inner(1, xp=np)
    assert profile.seconds == 9


def test_a_pause_is_left_out() -> None:
    with ops.profiled(clock=clock) as profile, section("step"):
        clock.now += 1
        with paused():
            clock.now += 20
            outer(30, xp=np)
            with section("never"), paused():
                clock.now += 1
        clock.now += 2
        inner(1, xp=np)
    assert rows(profile) == {"(step)": (1, 3), "inner": (1, 1)}


def test_a_section_may_begin_before_the_profile_and_end_after_it() -> None:
    profile = Profile(clock=clock)
    with section("before"):
        token = watch.set(profile)
        profile.start()
        clock.now += 1
    with section("across"):
        clock.now += 2
        profile.stop()
        watch.reset(token)
    clock.now += 5
    assert rows(profile) == {"(across)": (1, 2)}
    assert profile.seconds == 3


def test_an_inner_profile_takes_over() -> None:
    with ops.profiled(clock=clock) as first:
        inner(1, xp=np)
        with ops.profiled(clock=clock) as second:
            inner(2, xp=np)
        inner(4, xp=np)
    assert rows(second) == {"inner": (1, 2)}
    assert rows(first) == {"inner": (2, 5)}
    assert first.rest.seconds == 2


def test_other_threads_are_left_alone() -> None:
    with ops.profiled(clock=clock) as profile:
        thread = threading.Thread(target=lambda: inner(1, xp=np))
        thread.start()
        thread.join()
    assert rows(profile) == {}


def test_kernels_are_charged_as_the_reference_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(seconds: float, *, xp: ArrayModule) -> Any:
        clock.now += 0.5
        return NotImplemented

    monkeypatch.setattr(_op, "_use_kernels", ContextVar("use_kernels", default=True))
    monkeypatch.setitem(inner.kernels, "numpy", refusing)
    with ops.profiled(clock=clock) as profile:
        inner(1, xp=np)
    assert rows(profile) == {"inner": (1, 1.5)}


def test_a_device_is_waited_for_on_both_sides() -> None:
    with strict_device.count_syncs() as syncs, ops.profiled() as profile:
        ops.relu(strict_device.xp.ones(3), xp=strict_device.xp)
    assert syncs == ["synchronize"] * 2
    assert profile.operations["relu"].calls == 1


def test_results_are_the_same_to_the_bit(xp: ArrayModule, bring: Callable[..., Any]) -> None:
    x = bring(np.linspace(-3, 3, 50), "float32")
    plain = ops.gelu(x, xp=xp)
    with ops.profiled() as profile:
        watched = ops.gelu(x, xp=xp)
    assert bool((plain == watched).all())
    assert profile.operations["gelu"].calls == 1
    assert 0 < profile.operations["gelu"].seconds <= profile.seconds
