"""The callbacks that a configuration names, among those that every run has."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vitkit.config.named import check_arguments, entry_of, made_by_name
from vitkit.config.run import RunConfig
from vitkit.errors import ConfigError
from vitkit.models import ViT
from vitkit.optim import Optimizer
from vitkit.plugins import Registries
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

FROM_THE_RUN = ("model", "optimizer", "folder")
"""What a callback is given, where its parameters name it: the model, placed; the optimizer,
attached to it; the run folder, a Path. The rest of its arguments are the configuration's, and how
far the run has come is in the ``state`` that its methods get."""


OF_EVERY_RUN = tuple(
    each.name for each in (Average, Validation, Recorder, Checkpointing, StopOnSignal, Profiling)
)
"""The names of the callbacks that a run has, or can have, whatever its configuration names."""


def callback_problems(config: RunConfig, registries: Registries) -> list[str]:
    """Return what is wrong with the names and arguments of ``train.callbacks``; make none.

    Parameters
    ----------
    config : RunConfig
        The run.
    registries : Registries
        What names stand for.

    Returns
    -------
    list of str
        One line for each problem.
    """
    problems: list[str] = []
    names = [*OF_EVERY_RUN]
    names += [EarlyStopping.name] if config.train.patience is not None else []
    names += [TimeLimit.name] if config.train.max_time is not None else []
    for index, spec in enumerate(config.train.callbacks):
        where = f"train.callbacks[{index}]"
        try:
            entry = entry_of(where, registries.callbacks, spec.name)
            check_arguments(where, entry, spec, dict.fromkeys(_from_the_run(entry)))
        except ConfigError as error:
            problems += error.problems
            continue
        name = getattr(entry, "name", "")
        names.append(name if isinstance(name, str) and name else spec.name)
        if names.count(names[-1]) == 2:
            problems.append(f"{where}: {_TWICE.format(name=names[-1])}")
    return problems


def callbacks(
    config: RunConfig,
    registries: Registries,
    *,
    model: ViT,
    optimizer: Optimizer,
    folder: Path,
) -> list[Callback]:
    """Make the callbacks that a configuration names.

    Each gets its arguments, and those of :data:`FROM_THE_RUN` that its parameters name. One
    without a name is given that which it is registered under, so that its state is kept.

    Parameters
    ----------
    config : RunConfig
        What :func:`callback_problems` found no problem with.
    registries : Registries
        What names stand for.
    model : ViT
        The model, placed.
    optimizer : Optimizer
        The optimizer, attached.
    folder : Path
        The run folder.

    Returns
    -------
    list of Callback
        In the order of the configuration.

    Raises
    ------
    ConfigError
        If one cannot be made; every problem is listed.
    """
    problems = callback_problems(config, registries)
    run = {"model": model, "optimizer": optimizer, "folder": folder}
    made: list[Callback] = []
    for index, spec in enumerate(() if problems else config.train.callbacks):
        where = f"train.callbacks[{index}]"
        offered = {name: run[name] for name in _from_the_run(registries.callbacks[spec.name])}
        try:
            callback = made_by_name(where, registries.callbacks, spec, offered)
        except ConfigError as error:
            problems += error.problems
            continue
        if isinstance(callback, Callback):
            callback.name = callback.name or spec.name
            made.append(callback)
        else:
            problems.append(
                f"{where}: {spec.name} makes an object of type {type(callback).__name__}, expected "
                "a vitkit.train.callbacks.Callback."
            )
    if problems:
        raise ConfigError(problems)
    return made


_TWICE = (
    "a second callback of this run is named {name!r}, under which the state of the first is kept; "
    "leave one of them out."
)


def refuse_same_names(callbacks: Sequence[Callback]) -> None:
    """Raise a ConfigError if two callbacks of a run would keep their state under one name."""
    names = [callback.name for callback in callbacks if callback.name]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise ConfigError([f"train.callbacks: {_TWICE.format(name=name)}" for name in twice])


def _from_the_run(entry: Callable[..., Any]) -> list[str]:
    """Return the names of :data:`FROM_THE_RUN` that are parameters of a callback."""
    try:
        named = inspect.signature(entry).parameters
    except (TypeError, ValueError):
        return []
    return [name for name in FROM_THE_RUN if name in named]
