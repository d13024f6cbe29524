"""From a configuration and what was built from it to one that leaves nothing open."""

from __future__ import annotations

from pathlib import Path

from vitkit.config.build import Parts
from vitkit.config.named import SET_ELSEWHERE, entry_of, parameters_of
from vitkit.config.run import RunConfig
from vitkit.config.spec import Spec, storable
from vitkit.models import ViTConfig
from vitkit.nn.layers import PARTS
from vitkit.plugins import Registries
from vitkit.registry import Registry


def resolved(config: RunConfig, parts: Parts, registries: Registries) -> RunConfig:
    """Return the configuration with nothing left to defaults, this folder or this machine.

    Parameters
    ----------
    config : RunConfig
        What ``parts`` were built from.
    parts : Parts
        The objects of the run.
    registries : Registries
        What names stand for.

    Returns
    -------
    RunConfig
        What builds the same run, whatever recipes and defaults become; its ``model`` describes
        the network without the data set.
    """
    table = spelled_out(config, registries).model_dump()
    table["backend"] = parts.model.xp.__name__
    if config.data.path is not None:
        table["data"]["path"] = str(Path(config.data.path).resolve())
    table["model"] = parts.model.config.to_dict()
    table["train"] |= {"lr": parts.optimizer.lr, "weight_decay": parts.optimizer.weight_decay}
    if config.train.warmup_epochs is None:
        table["train"]["warmup_epochs"] = config.train.epochs / 10
    return RunConfig.model_validate(table)


def spelled_out(config: RunConfig, registries: Registries) -> RunConfig:
    """Return the configuration with every argument of its components, defaults too.

    Parameters
    ----------
    config : RunConfig
        The run.
    registries : Registries
        What names stand for.

    Returns
    -------
    RunConfig
        Without the arguments that are settings of their own.

    Raises
    ------
    ConfigError
        If a name is unknown.
    """

    def whole(where: str, registry: Registry, spec: Spec) -> str:
        parameters = parameters_of(entry_of(where, registry, spec.name)) or {}
        defaults = {
            name: parameter.default
            for name, parameter in parameters.items()
            if name not in SET_ELSEWHERE and storable(parameter.default)
        }
        return str(Spec(spec.name, defaults | dict(spec.kwargs)))

    table = config.model_dump()
    table["optimizer"] = whole("optimizer", registries.optimizers, config.optimizer)
    table["schedule"] = whole("schedule", registries.schedules, config.schedule)
    table["train"]["loss"] = whole("train.loss", registries.losses, config.train.loss)
    table["data"]["augment"] = [
        whole(f"data.augment[{index}]", registries.transforms, spec)
        for index, spec in enumerate(config.data.augment)
    ]
    table["train"]["callbacks"] = [
        whole(f"train.callbacks[{index}]", registries.callbacks, spec)
        for index, spec in enumerate(config.train.callbacks)
    ]
    return RunConfig.model_validate(table)


def with_layers(stored: RunConfig) -> RunConfig:
    """Return a run's stored configuration with the layers that runs had before they had names."""
    table = stored.model_dump()
    for part in PARTS:
        if table["model"][part] is None:
            table["model"][part] = getattr(ViTConfig, part)
    return RunConfig.model_validate(table)
