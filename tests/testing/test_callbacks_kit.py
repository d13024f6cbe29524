"""The callbacks that ship pass, and each planted fault fails the checks it should."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from faults_callbacks import FAULTS, FAULTY, Shrinks, Worst

from vitkit.data import Loader, digits
from vitkit.nn import Module
from vitkit.ops import softmax_cross_entropy
from vitkit.optim import EMA, Optimizer
from vitkit.testing.callbacks import callback_checks, check_callback
from vitkit.testing.check import ConformanceError, Outcome, outcome_of
from vitkit.train import callbacks as shipped
from vitkit.train.callbacks import (
    Average,
    Callback,
    Checkpointing,
    EarlyStopping,
    Profiling,
    Recorder,
    StopOnSignal,
    TimeLimit,
    Validation,
)
from vitkit.train.preprocess import Preprocess


def validation(model: Module) -> Validation:
    test = digits().test
    return Validation(model, Loader(test, 200), softmax_cross_entropy, Preprocess.of(test))


def validation_of_an_average(model: Module) -> Validation:
    made = validation(model)
    made.ema = EMA(model)
    return made


def checkpointing(folder: Path, model: Module, optimizer: Optimizer) -> Checkpointing:
    return Checkpointing(folder, model, optimizer, [], {})


SHIPPED: dict[str, Callable[..., Callback]] = {
    "Average": lambda model: Average(EMA(model)),
    "Callback": Callback,
    "Checkpointing": checkpointing,
    "EarlyStopping": EarlyStopping,
    "EarlyStopping, of the training loss": partial(EarlyStopping, "train_loss", 1),
    "Profiling": partial(Profiling, [].append, steps=1, warmup=1),
    "Recorder": partial(Recorder, [], every=2),
    "StopOnSignal": StopOnSignal,
    "TimeLimit": partial(TimeLimit, 1000),
    "TimeLimit, at once": partial(TimeLimit, 0),
    "Validation": validation,
    "Validation, of an average": validation_of_an_average,
}


def outcomes(make: Callable[..., Any], **options: Any) -> dict[str, Outcome]:
    found = [outcome_of(check) for check in callback_checks(make, **options)]
    return {outcome.name: outcome for outcome in found}


def failed(make: Callable[..., Any], **options: Any) -> set[str]:
    return {name for name, one in outcomes(make, **options).items() if one.passed is False}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_by_the_checks_it_concerns(fault: str) -> None:
    make, names, _ = FAULTY[fault]
    check, message = FAULTS[fault]
    assert failed(make) == names
    with pytest.raises(ConformanceError, match=message):
        check()


@pytest.mark.parametrize("name", SHIPPED)
def test_what_ships_passes(name: str) -> None:
    found = outcomes(SHIPPED[name])
    needs_gpu = found.pop("on cupy")
    assert needs_gpu.passed is not False
    assert all(one.passed for one in found.values())


def test_everything_that_ships_is_tried() -> None:
    kinds = {
        name
        for name, each in vars(shipped).items()
        if isinstance(each, type) and issubclass(each, Callback)
    }
    assert kinds <= set(SHIPPED)


def test_a_right_one_passes() -> None:
    check_callback(Worst)


def test_one_that_is_to_change_the_training_may() -> None:
    assert failed(Shrinks) == {"training unchanged"}
    assert failed(Shrinks, changes_training=True) == set()


def test_a_signal_that_was_taken_is_given_back_by_the_kit_itself() -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert failed(FAULTY["keeps a signal"][0]) == {"surroundings"}
    assert signal.getsignal(signal.SIGTERM) is before


def test_arguments_that_no_run_gives_are_asked_for() -> None:
    assert all("needs seconds" in one.message for one in outcomes(TimeLimit).values())
    with pytest.raises(TypeError, match="making one needs seconds"):
        check_callback(TimeLimit)
