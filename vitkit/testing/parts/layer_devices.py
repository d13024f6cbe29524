"""Checks that a layer computes the same on every device, and never waits for one."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from vitkit.testing.parts.array_modules import device
from vitkit.testing.parts.blame import close_beside, differences, fail_if
from vitkit.testing.parts.passes import DTYPES, Subject, backward, forward, training
from vitkit.testing.strict_device import count_syncs


def same_on(s: Subject, name: str) -> None:
    """Check that a device gives what NumPy gives, in the same dtypes."""
    theirs, ours = replace(s, xp=device(name)), replace(s, xp=np)
    for dtype in DTYPES:
        with using(name):
            got = theirs.results(dtype)
        expected = ours.results(dtype)
        wrong = [
            f"{what} is {got[what].dtype} instead of {array.dtype}"
            for what, array in expected.items()
            if got[what].dtype != array.dtype
        ]
        fail_if(", ".join(wrong), f"for {dtype} input on {name}")
        if dtype == "float64":  # how far float32 may differ depends on the layer
            problem = differences(got, expected, close_beside(expected))
            fail_if(problem, f"on {name} it computes something else than on NumPy")


def no_host_sync(s: Subject) -> None:
    """Check that neither forward nor backward reads a number from the device."""
    s = replace(s, xp=device("strict_device"))
    layer, x, ctx = s.placed(), s.inputs(), training()
    with using("strict_device"):
        with count_syncs() as in_forward:
            y = forward(layer, x, ctx)
        dy = s.draw(y.shape, seed=1)
        with count_syncs() as in_backward:
            backward(layer, dy, ctx)
        with count_syncs() as in_inference:
            layer(x)
    waits = {"forward": in_forward, "backward": in_backward, "inference": in_inference}
    no_waits(waits)


def no_waits(waits: dict[str, list[str]]) -> None:
    """Raise where ``count_syncs`` has counted something."""
    said = [f"{what} waits for the device ({', '.join(w)})" for what, w in waits.items() if w]
    if said:
        raise AssertionError(
            f"{', '.join(said)}. float(), int(), bool(), 'if array:', .item() and masks read from "
            "a GPU, which then stands still. Compute with 0-d arrays and xp.where instead."
        )


@contextmanager
def using(name: str) -> Iterator[None]:
    """Say of an error in the block that it is raised on this device."""
    try:
        yield
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(
            f"on {name} it raised {type(error).__name__}: {error}{_place(error)}. Compute with "
            "xp, never with numpy, and bring host arrays over with xp.asarray."
        ) from error


def _place(error: BaseException) -> str:
    """Return the line of the layer that led to an error, not that of the stand-in for a GPU."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).parent != Path(__file__).parent]
    return f" ({Path(ours[-1].filename).name}, line {ours[-1].lineno})" if ours else ""
