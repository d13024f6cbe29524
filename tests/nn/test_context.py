"""One pass: a stack with owners, keys by counting, and what is kept."""

from __future__ import annotations

import gc
import re
import weakref

import numpy as np
import pytest

from vitkit import nn
from vitkit.backend import ArrayModule
from vitkit.nn import Context


class Plain(nn.Module):
    """A module to own entries."""


def owner(name: str) -> nn.Module:
    module = Plain()
    module.name = name
    return module


@pytest.mark.parametrize(
    ("settings", "train", "keep"),
    [
        ({}, False, False),
        ({"train": True}, True, True),
        ({"keep": True}, False, True),
        ({"train": True, "keep": False}, True, False),
    ],
)
def test_training_keeps_unless_told_otherwise(
    settings: dict[str, bool], train: bool, keep: bool
) -> None:
    ctx = Context(**settings)
    ctx.push(owner("a"), 1)
    assert (ctx.train, ctx.keep, len(ctx)) == (train, keep, int(keep))


def test_entries_come_back_last_first() -> None:
    ctx, a, b = Context(keep=True), owner("a"), owner("b")
    ctx.push(a, 1, "one")
    ctx.push(b)
    ctx.push(a, 2)
    assert len(ctx) == 3
    assert [ctx.pop(a), ctx.pop(b), ctx.pop(a)] == [(2,), (), (1, "one")]
    assert len(ctx) == 0


def test_out_of_order_names_both_and_loses_nothing() -> None:
    ctx, a, b = Context(keep=True), owner("blocks.0.a"), owner("b")
    ctx.push(a, 1)
    expected = (
        "Backward out of order: Plain 'b' asked for its arrays but those of Plain 'blocks.0.a' "
        "are on top. Run backward in the reverse order of forward."
    )
    with pytest.raises(RuntimeError, match=f"^{re.escape(expected)}$"):
        ctx.pop(b)
    assert ctx.pop(a) == (1,)


@pytest.mark.parametrize("settings", [{}, {"train": True, "keep": False}, {"train": True}])
def test_nothing_left_says_what_to_do(settings: dict[str, bool]) -> None:
    ctx, a = Context(**settings), owner("a")
    ctx.push(a, 1)
    if ctx.keep:
        ctx.pop(a)
    with pytest.raises(RuntimeError, match=r"Plain 'a' ran backward but nothing .*\(keep=True\)"):
        ctx.pop(a)


def test_a_twin_is_not_the_owner() -> None:
    ctx = Context(keep=True)
    ctx.push(owner("a"), 1)
    with pytest.raises(RuntimeError, match="out of order"):
        ctx.pop(owner("a"))


def test_keys_are_counted() -> None:
    ctx = Context(train=True, seed=7, step=3)
    assert [ctx.seeds.next() for _ in range(3)] == [(7, 3, 1), (7, 3, 2), (7, 3, 3)]
    assert ctx.seeds.drawn == 3
    assert Context(seed=7, step=3).seeds.next() == (7, 3, 1)


def test_forgetting_draws_on_and_keeps_nothing() -> None:
    ctx = Context(train=True, seed=7)
    ctx.seeds.next()
    forgetful = ctx.forgetting()
    assert (forgetful.train, forgetful.keep) == (True, False)
    assert forgetful.seeds.next() == (7, 0, 2)
    assert ctx.seeds.next() == (7, 0, 3)  # the pass goes on after it
    forgetful.push(owner("a"), 1)
    assert len(forgetful) == len(ctx) == 0
    assert not Context(keep=True).forgetting().train


def test_replay_draws_again_and_keeps() -> None:
    ctx = Context(train=True, seed=7, step=2)
    keys = [ctx.seeds.next() for _ in range(5)]
    again = ctx.replay(2)
    assert (again.train, again.keep) == (True, True)
    assert [again.seeds.next() for _ in range(3)] == keys[2:]
    assert ctx.seeds.drawn == 5
    assert not Context(keep=True).replay(0).train
    again.push(owner("a"), 1)
    assert (len(again), len(ctx)) == (1, 0)


def test_nbytes_counts_an_array_once(xp: ArrayModule) -> None:
    ctx, a = Context(keep=True), owner("a")
    assert ctx.nbytes == 0
    array = xp.zeros((3, 4), "float32")
    ctx.push(a, array, 5, None, (1, 2, 3))
    assert ctx.nbytes == 48
    ctx.push(a, array, xp.zeros(2, "float64"))
    assert ctx.nbytes == 64
    ctx.pop(a)
    assert ctx.nbytes == 48
    ctx.pop(a)
    assert ctx.nbytes == 0


def test_what_was_popped_is_not_held(xp: ArrayModule) -> None:
    gc.disable()
    try:
        ctx, a = Context(keep=True), owner("a")
        ctx.push(a, xp.asarray(np.ones(3)))
        (array,) = ctx.pop(a)
        seen = weakref.ref(array)
        del array
        assert seen() is None
    finally:
        gc.enable()
