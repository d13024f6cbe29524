"""What a callback must be: one that watches a run, and leaves it and all around it as they are."""

from __future__ import annotations

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from vitkit.checkpoint.contents import PLAIN, unplain
from vitkit.models import ViT
from vitkit.optim import AdamW
from vitkit.testing.check import Check, Skip, run_checks, where
from vitkit.testing.parts.array_modules import DEVICES, device
from vitkit.testing.parts.callback_runs import (
    MODEL,
    Make,
    Planted,
    Run,
    moments_without,
    offered,
    train,
)
from vitkit.testing.parts.isolation import global_generators
from vitkit.testing.parts.making import expect_makeable, made
from vitkit.testing.parts.staged import staged
from vitkit.train import callbacks as shipped
from vitkit.train.callbacks.base import Callback

FROM_THE_RUN = dict.fromkeys(("model", "optimizer", "folder"))


def check_callback(make: Make, *, changes_training: bool = False) -> None:
    """Check a callback in short trainings: what it changes, keeps and leaves behind.

    Parameters
    ----------
    make : callable
        Makes a new callback in each call; it gets those of ``model``, ``optimizer`` and
        ``folder`` (the run folder) that its parameters name, as a run gives them.
    changes_training : bool, default False
        Whether the weights may be others than without it.

    Raises
    ------
    ConformanceError
        Listing what is wrong.
    TypeError
        If ``make`` needs other arguments.
    """
    expect_makeable(make, FROM_THE_RUN)
    run_checks("the callback", callback_checks(make, changes_training=changes_training))


def callback_checks(make: Make, *, changes_training: bool = False) -> list[Check]:
    """Return the checks of :func:`check_callback`, which takes the same arguments."""
    return staged(
        [
            Check("a callback", partial(_is_a_callback, make)),
            Check("two epochs", partial(_runs, make)),
        ],
        [
            Check("training unchanged", partial(_leaves_training_alone, make, changes_training)),
            Check("global generators", partial(_leaves_generators_alone, make)),
            Check("state", partial(_state_is_plain, make)),
            Check("state taken up", partial(_takes_state_up, make)),
            Check("name", partial(_has_a_name, make)),
            Check("after an error", partial(_bears_an_error, make)),
            Check("surroundings", partial(_cleans_up, make)),
            *(Check(f"on {name}", partial(_runs_on, make, name)) for name in DEVICES),
        ],
    )


def _new(make: Make) -> Any:
    """Return a callback that has seen nothing."""
    options: dict[str, Any] = dict(MODEL)
    model = ViT("Ti/4", **options)
    optimizer = AdamW(lr=1e-3)
    optimizer.attach(model)
    with tempfile.TemporaryDirectory() as folder:
        return made(make, offered(model, optimizer, Path(folder)))


def _is_a_callback(make: Make) -> None:
    callback = _new(make)
    if not isinstance(callback, Callback):
        raise AssertionError(
            f"make() returned {type(callback).__name__}, expected a Callback: write a subclass of "
            "vitkit.train.callbacks.Callback."
        )
    if callback is _new(make):
        raise AssertionError("make() returned one callback twice: it belongs to one run.")
    if not isinstance(callback.name, str):
        raise AssertionError(f"name is {callback.name!r}; a string is due.")


def _raised(run: Run, where_it_was: str = "") -> None:
    """Raise an AssertionError if the callback, or the training, raised."""
    for event, error in run.raised.items():
        raise AssertionError(
            f"{event} raised {type(error).__name__}{where_it_was}: {error}{where(error)}."
        ) from error
    if run.error is not None and not isinstance(run.error, Planted):
        raise AssertionError(
            f"the training raised {type(run.error).__name__}{where_it_was}: {run.error}"
            f"{where(run.error)}."
        ) from run.error


def _runs(make: Make) -> None:
    _raised(train(make))


def _leaves_training_alone(make: Make, changes_training: bool) -> None:
    """Compare with a run without it, which may go on for longer."""
    *steps, end = train(make).moments
    pairs = [*zip(steps, moments_without(), strict=False), *((end, last) for last in steps[-1:])]
    for moment, expected in pairs:
        for name, value in expected.place.items():
            if moment.place[name] != value:
                raise AssertionError(
                    f"changes state.{name}, which is {moment.place[name]} instead of {value}: a "
                    "resumed run would go on elsewhere. A callback may set state.stop and "
                    "state.metrics."
                )
        if moment.weights != expected.weights and not changes_training:
            raise AssertionError(
                f"changes the training: after {moment.event} of step {moment.place['step']} the "
                "weights are not those of a run without it. Give back what you borrow, as "
                "vitkit.optim.EMA.applied does, and leave gradients and the optimizer alone. If "
                "changing the weights is its purpose, say changes_training=True."
            )


def _leaves_generators_alone(make: Make) -> None:
    with global_generators(1) as moved:
        train(make)
        if moved():
            raise AssertionError(
                f"draws from the global generator of {moved()}, or seeds it, which changes what "
                "everyone else draws: use vitkit.backend.philox(state.seed, 'my callback', step)."
            )


def _state_is_plain(make: Make) -> None:
    run = train(make)
    for state in run.states:
        if not isinstance(state, dict):
            raise AssertionError(f"state_dict() returned {type(state).__name__}; a dict is due.")
        wrong = unplain(state)
        if wrong:
            raise AssertionError(
                f"its state cannot be written to a checkpoint: state_dict() returned {wrong}; "
                f"expected {PLAIN}."
            )
    wrong = unplain(run.metrics)
    if wrong:
        raise AssertionError(
            f"state.metrics cannot be written to a checkpoint: it holds {wrong}; expected numbers, "
            "as float() makes them."
        )


def _takes_state_up(make: Make) -> None:
    """Write and read the state of each moment, as a resumed run does."""
    for state in train(make).states:
        if not isinstance(state, dict) or unplain(state):
            raise Skip("waits for the check 'state', which fails")
        kept = json.loads(json.dumps(state))
        resumed = _new(make)
        resumed.load_state_dict(json.loads(json.dumps(state)))
        found = json.loads(json.dumps(resumed.state_dict()))
        lost = [name for name in {**kept, **found} if not _same(kept, found, name)]
        if lost:
            name = lost[0]
            raise AssertionError(
                f"load_state_dict does not take up {name!r}: it was {kept.get(name)!r}, and a new "
                f"callback that was given it has {found.get(name)!r}. A resumed run would forget "
                "it."
            )


def _same(one: dict[str, Any], two: dict[str, Any], name: str) -> bool:
    missing = object()
    a, b = one.get(name, missing), two.get(name, missing)
    return a is not missing and b is not missing and json.dumps(a) == json.dumps(b)


def _has_a_name(make: Make) -> None:
    run = train(make)
    name = run.callback.name
    if not name and any(run.states):
        raise AssertionError(
            "has no name, and a state: checkpoints keep states by name. Write name = '...' in the "
            "class."
        )
    for kind in vars(shipped).values():
        if (
            isinstance(kind, type)
            and issubclass(kind, Callback)
            and name
            and kind.name == name
            and not isinstance(run.callback, kind)
        ):
            raise AssertionError(
                f"is named {name!r}, as vitkit's own {kind.__name__}: the state of one would be "
                "taken for the other's. Choose another name."
            )


def _bears_an_error(make: Make) -> None:
    run = train(make, fail=True)
    if "on_error" in run.raised:
        _raised(run, ", when another callback had raised,")
    if not isinstance(run.error, Planted):
        raise AssertionError(
            f"hides what a training raises: {type(run.error).__name__} came instead of the error "
            "that on_error was given."
        )


def _cleans_up(make: Make) -> None:
    for fail, event in ((False, "on_end"), (True, "on_error")):
        left = train(make, fail=fail).left
        if left:
            raise AssertionError(
                f"leaves {left[0]} behind after the run: put back, or end, in {event} what "
                "on_start has taken, as vitkit.train.callbacks.StopOnSignal does."
            )


def _runs_on(make: Make, name: str) -> None:
    try:
        _raised(train(make, xp=device(name)), f" on {name}")
    except AssertionError as error:
        raise AssertionError(
            f"{error} The arrays of log and of the model are on the device: read a number with "
            "float(...), an array with vitkit.backend.to_numpy(...)."
        ) from error
