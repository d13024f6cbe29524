"""From a configuration to the objects of a run; callbacks are made when their run begins.

What allocates nothing (:func:`model_config`, :func:`components`) is called by
:mod:`vitkit.config.preflight` too, so what it lets through can be built.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from vitkit.config.named import entry_of, made_by_name, parameters_of
from vitkit.config.run import RunConfig
from vitkit.config.spec import Spec, shown
from vitkit.data.dataset import Dataset, Splits, split
from vitkit.data.loader import Loader
from vitkit.data.transforms import Transform
from vitkit.errors import ConfigError
from vitkit.models import ViT, ViTConfig
from vitkit.optim import Optimizer
from vitkit.plugins import Registries
from vitkit.registry import Registry
from vitkit.validate import noted

ENDLESS = 10**9
"""Steps of a run whose length is not known yet."""


@dataclass(frozen=True)
class Parts:
    """What a run is made of.

    Attributes
    ----------
    model : ViT
        Placed on its backend.
    optimizer : Optimizer
        Attached to the model.
    schedule : callable
        ``schedule(step) -> lr``.
    loss : callable
        ``loss(logits, labels, xp=xp) -> (loss, dlogits)``.
    train, val, test : Loader
        Batches; ``val`` is None where nothing is held back.
    transforms : tuple of callable
        The augmentation, which ``train`` applies.
    """

    model: ViT
    optimizer: Optimizer
    schedule: Callable[[int], float]
    loss: Callable[..., Any]
    train: Loader
    val: Loader | None
    test: Loader
    transforms: tuple[Transform, ...]


def build(config: RunConfig, registries: Registries, data: Splits) -> Parts:
    """Make the objects of a run.

    Parameters
    ----------
    config : RunConfig
        What :func:`vitkit.config.preflight` found no problem with.
    registries : Registries
        What names stand for.
    data : Splits
        Images to learn from and to test on; see :func:`load_data`.

    Returns
    -------
    Parts
        The model, and all that a trainer needs besides.

    Raises
    ------
    ConfigError
        If a name is unknown, or arguments or sizes do not fit.
    BackendError
        If the backend cannot work here.
    """
    images, seed = parts_of(config, data), config.seed
    train, val = images["train"], images.get("val")
    sizes = model_config(config, data.train.image_shape, len(data.train.classes))
    optimizer, schedule, loss, transforms = components(config, registries, len(train))
    model = ViT(
        sizes,
        backend=config.backend,
        dtype=config.dtype,
        seed=seed,
        precision=config.train.precision,
    )
    optimizer.attach(model, layer_decay=config.train.layer_decay)
    loader = partial(
        Loader, batch_size=config.train.batch_size, num_workers=config.data.num_workers, seed=seed
    )
    return Parts(
        model,
        optimizer,
        schedule,
        loss,
        train=loader(train, shuffle=True, transforms=transforms),
        val=loader(val) if val is not None else None,
        test=loader(images["test"]),
        transforms=transforms,
    )


def parts_of(config: RunConfig, data: Splits) -> dict[str, Dataset]:
    """Return the images of a run by part: train, test and, where some are held back, val.

    Parameters
    ----------
    config : RunConfig
        The run.
    data : Splits
        What :func:`load_data` read.

    Returns
    -------
    dict of str to Dataset
        ``train`` is without what ``val`` has.
    """
    parts: dict[str, Dataset] = {"train": data.train, "test": data.test}
    if config.data.val_fraction:
        parts["train"], parts["val"] = split(data.train, config.data.val_fraction, config.seed)
    return parts


def load_data(config: RunConfig, registries: Registries) -> Splits:
    """Read the data set that a configuration names.

    Its function gets ``data.path``, where given, as its first argument, and those of
    ``model.image_size``, ``model.in_channels``, ``seed`` and ``data.bad_files`` that it takes.

    Parameters
    ----------
    config : RunConfig
        The run.
    registries : Registries
        What names stand for.

    Returns
    -------
    Splits
        Training and test images.

    Raises
    ------
    ConfigError
        If the name is unknown, or a path is missing or not taken.
    DataError
        If the data are not what they should be.
    """
    name, path = config.data.name, config.data.path
    entry = entry_of("data.name", registries.datasets, name)
    settings = {
        "image_size": config.model.image_size,
        "in_channels": config.model.in_channels,
        "seed": config.seed,
        "bad_files": config.data.bad_files,
    }
    place = () if path is None else (path,)
    parameters = parameters_of(entry)
    if parameters is None:
        return cast(Splits, entry(*place))
    takes_path = [each for key, each in parameters.items() if key not in settings][:1]
    if place and not takes_path:
        raise ConfigError(f"data.path: got {shown(path)}, but {name} takes no path; leave it out.")
    if not place and takes_path and takes_path[0].default is inspect.Parameter.empty:
        raise ConfigError(f"data.path: got nothing, expected where the files of {name} are.")
    given = {key: settings[key] for key in parameters if settings.get(key) is not None}
    return cast(Splits, entry(*place, **given))


def model_config(
    config: RunConfig, image_shape: tuple[int, int, int], num_classes: int | None
) -> ViTConfig:
    """Return the model's sizes: the variant's, the overrides, and what the data set decides.

    Parameters
    ----------
    config : RunConfig
        The run.
    image_shape : tuple of 3 int
        ``(C, H, W)`` of the data set.
    num_classes : int or None
        The data set's classes; None, where they are not known, leaves the model's default.

    Returns
    -------
    ViTConfig
        Checked.

    Raises
    ------
    ConfigError
        If sizes do not fit each other; every problem is listed with the setting it is about.
    """
    model = config.model
    options = {name: getattr(model, name) for name in type(model).model_fields if name != "variant"}
    channels, *size = image_shape
    seen = {"in_channels": channels, "image_size": tuple(size), "num_classes": num_classes}
    options |= {name: value for name, value in seen.items() if options[name] is None}
    try:
        return ViTConfig.of(model.variant, **options)
    except ConfigError as error:
        raise ConfigError([f"model.{problem}" for problem in error.problems]) from None


def steps(config: RunConfig, num_train: int) -> tuple[int, int]:
    """Return the updates of the whole run, and how many of them warm up.

    Parameters
    ----------
    config : RunConfig
        The run.
    num_train : int
        Images to train on, those held back for validation not counted.

    Returns
    -------
    total, warmup : int
        With ``train.warmup_epochs`` of None, a tenth of the run warms up; at least one update
        is left to the schedule itself.
    """
    train = config.train
    batches = math.ceil(num_train / train.batch_size)
    epoch = math.ceil(batches / train.grad_accum)
    warmup_epochs = train.epochs / 10 if train.warmup_epochs is None else train.warmup_epochs
    total = train.epochs * epoch
    return total, min(round(warmup_epochs * epoch), total - 1)


def components(
    config: RunConfig, registries: Registries, num_train: int | None
) -> tuple[Optimizer, Callable[[int], float], Callable[..., Any], tuple[Transform, ...]]:
    """Make what a configuration names and what needs no array.

    Parameters
    ----------
    config : RunConfig
        The run.
    registries : Registries
        What names stand for.
    num_train : int or None
        Images to train on, those held back for validation not counted; None, before that is
        known, stands for a run of any length.

    Returns
    -------
    optimizer, schedule, loss, transforms
        As in :class:`Parts`; the optimizer is not attached to a model yet.

    Raises
    ------
    ConfigError
        If names are unknown or arguments wrong; every problem is listed.
    """
    train = config.train
    total, warmup = (ENDLESS, 0) if num_train is None else steps(config, num_train)
    problems: list[str] = []

    def made(where: str, registry: Registry, spec: Spec, **settings: Any) -> Any:
        try:
            return made_by_name(where, registry, spec, settings)
        except ConfigError as error:
            problems.extend(error.problems)

    optimizer = made(
        "optimizer",
        registries.optimizers,
        config.optimizer,
        lr=train.lr,
        weight_decay=train.weight_decay,
    )
    schedule = made(
        "schedule",
        registries.schedules,
        config.schedule,
        lr=getattr(optimizer, "lr", 1.0),
        total_steps=total,
        warmup_steps=warmup,
    )
    with noted(problems):
        loss = loss_of(config, registries)
    transforms = [
        made(f"data.augment[{index}]", registries.transforms, spec)
        for index, spec in enumerate(config.data.augment)
    ]
    if problems:
        raise ConfigError(problems)
    return optimizer, schedule, loss, tuple(transforms)


def loss_of(config: RunConfig, registries: Registries) -> Callable[..., Any]:
    """Return the loss that a configuration names, with its arguments.

    Raises
    ------
    ConfigError
        If the name is unknown or arguments are wrong; every problem is listed.
    """
    settings = {"label_smoothing": config.train.label_smoothing}
    made = made_by_name("train.loss", registries.losses, config.train.loss, settings)
    return cast("Callable[..., Any]", made)
