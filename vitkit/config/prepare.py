"""From a configuration to data and objects, or to everything that is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass

from vitkit.config.build import Parts, build, load_data
from vitkit.config.preflight import preflight
from vitkit.config.run import RunConfig
from vitkit.data import Splits
from vitkit.errors import ConfigError, VitkitError
from vitkit.plugins import Registries, registries

JUDGED_BY = {
    "schedule": "train.lr",
    "train.batch_size": "data.val_fraction",
    "train.label_smoothing": "train.loss",
    "train.mode": "train.monitor",
    "train.monitor": "data.val_fraction",
    "train.precision": "dtype",
    "train.warmup_epochs": "train.epochs",
}
"""The setting that decides whether another is right."""


@dataclass
class Prepared:
    """A configuration that was checked, with its data and objects.

    Attributes
    ----------
    config : RunConfig
        The configuration as given.
    registries : Registries
        What its names stand for.
    data : Splits
        The images.
    parts : Parts
        Model, optimizer, loaders.
    """

    config: RunConfig
    registries: Registries
    data: Splits
    parts: Parts


def prepare(config: RunConfig) -> Prepared:
    """Check a configuration, read its data, and build its objects.

    Raises
    ------
    ConfigError
        Listing every problem; no model has been allocated then.
    DataError
        If the data are not what they should be.
    BackendError
        If the backend cannot work here.
    """
    names = registries()
    data = _checked_data(config, names)
    return Prepared(config, names, data, build(config, names, data))


def further_problems(config: RunConfig, dropped: frozenset[str]) -> list[str]:
    """Return what is wrong with the settings that are left where others are wrong already.

    Parameters
    ----------
    config : RunConfig
        The settings that are left.
    dropped : frozenset of str
        The others, dotted; nothing is said of what hangs on them.

    Returns
    -------
    list of str
        A line for each problem.
    """
    names = registries()
    try:
        if dropped & {"data", "data.name", "data.path"}:
            refuse(preflight(config, None, None, names))
        else:
            _checked_data(config, names)
    except ConfigError as error:
        return [line for line in error.problems if not _in_doubt(line.partition(":")[0], dropped)]
    except VitkitError:
        return []  # the files are looked for again when all settings are right
    return []


def _checked_data(config: RunConfig, names: Registries) -> Splits:
    """Read the data of a configuration that has no problem with them, nor any other."""
    try:
        data = load_data(config, names)
    except VitkitError as error:
        unread = error.problems if isinstance(error, ConfigError) else []
        refuse(list(dict.fromkeys([*preflight(config, None, None, names), *unread])))
        raise
    train = data.train
    shape, num_classes = train.image_shape, len(train.classes)
    refuse(preflight(config, shape, num_classes, names, num_images=len(train)))
    return data


def _in_doubt(setting: str, dropped: frozenset[str]) -> bool:
    """Whether a setting was left out, or is judged by one that was."""
    section = setting.partition(".")[0]
    if section == "model":  # sizes are judged by each other
        return any(name.partition(".")[0] == "model" for name in dropped)
    return bool(dropped & {section, setting, JUDGED_BY.get(setting, setting)})


def refuse(problems: list[str]) -> None:
    """Raise a list of problems, unless it is empty."""
    if problems:
        raise ConfigError(problems)
