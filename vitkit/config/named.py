"""What a spec names, and whether its arguments are those that it takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Set
from functools import partial
from typing import Any

from vitkit.config.spec import Spec
from vitkit.errors import ConfigError, nearest
from vitkit.registry import Registry, did_you_mean

SET_ELSEWHERE = {
    "folder": "the run",
    "label_smoothing": "train.label_smoothing",
    "lr": "train.lr",
    "model": "the run",
    "optimizer": "the run",
    "total_steps": "train.epochs",
    "warmup_steps": "train.warmup_epochs",
    "weight_decay": "train.weight_decay",
}
"""Arguments of components that are settings of their own, or come from the run."""
OPEN = ("lr", "weight_decay")
"""Those that a configuration may leave to the component's own default."""


def made_by_name(where: str, registry: Registry, spec: Spec, settings: Mapping[str, Any]) -> Any:
    """Call what a spec names with its arguments and the settings that it takes.

    A loss is called later, with the logits, so it is only given its arguments.
    """
    entry = entry_of(where, registry, spec.name)
    later = {"logits", "labels", "xp"} if registry.kind == "loss" else set()
    parameters = check_arguments(where, entry, spec, settings, later)
    given = {
        name: value
        for name, value in settings.items()
        if value is not None and (parameters is None or name in parameters)
    }
    bound = partial(entry, **given, **spec.kwargs)
    try:
        return bound if later else bound()
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {spec.name}: {' '.join(str(error).split())}") from error


def check_arguments(
    where: str,
    entry: Callable[..., Any],
    spec: Spec,
    settings: Mapping[str, Any],
    later: Set[str] = frozenset(),
) -> Mapping[str, inspect.Parameter] | None:
    """Return what a component takes; raise if its spec names others, or leaves some out."""
    parameters = parameters_of(entry)
    taken = {*spec.kwargs, *settings} if parameters is None else set(parameters)
    problems = _misnamed(where, spec, taken - later, settings)
    own = sorted(taken - later - set(settings))
    misspelt = {nearest(name, own) for name in spec.kwargs if name not in taken}
    problems += [
        f"{where}: {spec.name} needs {name}; {_where_to_set(spec, name)}."
        for name, parameter in (parameters or {}).items()
        if parameter.default is parameter.empty
        and parameter.kind is not parameter.VAR_POSITIONAL
        and name not in {*spec.kwargs, *later, *misspelt}
        and (name not in settings or (name in OPEN and settings[name] is None))
    ]
    if problems:
        raise ConfigError(problems)
    return parameters


def _where_to_set(spec: Spec, name: str) -> str:
    return f"set {SET_ELSEWHERE[name]}" if name in OPEN else f"write {spec.name}({name}=...)"


def _misnamed(where: str, spec: Spec, taken: set[str], settings: Mapping[str, Any]) -> list[str]:
    """Return a line for each argument of a spec that its component does not take from there."""
    own = sorted(taken - set(settings))
    problems = []
    for name in spec.kwargs:
        if name in settings:
            problems.append(f"{where}: {name} of {spec.name} is set by {SET_ELSEWHERE[name]}.")
        elif name not in taken:
            problems.append(
                f"{where}: {spec.name} has no argument {name!r}{did_you_mean(name, own)} "
                f"It takes: {', '.join(own) or 'none'}."
            )
    smoothing = settings.get("label_smoothing")
    if smoothing and "label_smoothing" not in taken:
        problems.append(
            f"train.label_smoothing: got {smoothing}, expected 0, since {spec.name} takes none."
        )
    return problems


def entry_of(where: str, registry: Registry, name: str) -> Any:
    """Return what ``name`` stands for; that it stands for nothing is a problem of ``where``."""
    try:
        return registry[name]
    except ConfigError as error:
        raise ConfigError([f"{where}: {problem}" for problem in error.problems]) from None


def parameters_of(entry: Callable[..., Any]) -> Mapping[str, inspect.Parameter] | None:
    """Return what a component takes, or None where it takes anything or does not say."""
    try:
        parameters = inspect.signature(entry).parameters
    except (TypeError, ValueError):
        return None
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    return None if takes_any else parameters
