"""What can be found wrong with a run before anything is allocated."""

from __future__ import annotations

import math

from vitkit.backend.modules import ALIASES, NAMES
from vitkit.config.build import components, model_config
from vitkit.config.callbacks import callback_problems
from vitkit.config.run import RunConfig
from vitkit.config.spec import shown
from vitkit.errors import ConfigError
from vitkit.plugins import Registries
from vitkit.registry import did_you_mean

ANY_SHAPE = (3, 224, 224)
"""What stands for a data set that has not been read; no patch size is judged by it."""
HIGHEST_LR = 10.0
"""Above this every known optimizer diverges; such a rate is a slip of the keyboard."""


def preflight(
    config: RunConfig,
    dataset_shape: tuple[int, int, int] | None,
    num_classes_in_data: int | None,
    registries: Registries,
    *,
    num_images: int | None = None,
) -> list[str]:
    """Return every problem that settings have with each other, with the data and with names.

    Parameters
    ----------
    config : RunConfig
        The run; each setting on its own has been checked.
    dataset_shape : tuple of 3 int or None
        ``(C, H, W)`` of the data set; None, before it is read, leaves out what depends on it.
    num_classes_in_data : int or None
        How many classes it has.
    registries : Registries
        What names stand for.
    num_images : int, optional
        How many images it has to train on, those for validation included.

    Returns
    -------
    list of str
        One line for each problem; empty where the run can be built.
    """
    problems = _settings(config, registries)
    if dataset_shape is not None:
        problems += _data(config, dataset_shape, num_classes_in_data)
    try:
        model_config(config, dataset_shape or ANY_SHAPE, num_classes_in_data)
    except ConfigError as error:
        guessed = dataset_shape is None and config.model.image_size is None
        problems += [
            problem
            for problem in error.problems
            if not (guessed and problem.startswith("model.patch_size:"))
        ]
    num_train = None
    if num_images is not None:
        num_train = num_images - math.ceil(config.data.val_fraction * num_images)
        problems += _sizes(config, num_train)
    try:
        components(config, registries, num_train or None)
    except ConfigError as error:
        problems += error.problems
    return problems + callback_problems(config, registries)


def _settings(config: RunConfig, registries: Registries) -> list[str]:
    """Compare settings with each other and with what is known by name."""
    problems = []
    train = config.train
    if config.data.name not in registries.datasets:
        known = registries.datasets.names()
        problems.append(
            f"data.name: no dataset is named {shown(config.data.name)}"
            f"{did_you_mean(config.data.name, known)} Known: {', '.join(known)}."
        )
    if config.backend not in NAMES:
        problems.append(
            f"backend: got {shown(config.backend)}, expected one of {', '.join(NAMES)}"
            f"{did_you_mean(ALIASES.get(config.backend.lower(), config.backend), NAMES)}"
        )
    if train.lr is not None and not 0 < train.lr <= HIGHEST_LR:
        problems.append(
            f"train.lr: got {train.lr:g}, expected more than 0 and at most {HIGHEST_LR:g}; "
            "AdamW usually takes 1e-4 to 1e-2."
        )
    if train.warmup_epochs is not None and train.warmup_epochs >= train.epochs:
        problems.append(
            f"train.warmup_epochs: got {train.warmup_epochs:g}, expected less than train.epochs "
            f"({train.epochs}); leave it out for a tenth of the epochs."
        )
    if train.monitor.startswith("val_") and not config.data.val_fraction:
        problems.append(
            f"train.monitor: got {train.monitor!r}, but data.val_fraction is 0; monitor "
            "'train_loss', or hold back a part, such as 0.1."
        )
    if train.precision != "float32" and config.dtype != "float32":
        problems.append(
            f"train.precision: got {train.precision!r}, but dtype is {config.dtype!r}; leave one "
            "of them out."
        )
    if not config.model.residual_in_fp32 and train.precision != "bfloat16":
        problems.append(
            f"train.precision: got {train.precision!r}, but model.residual_in_fp32 is false, which "
            "goes with 'bfloat16'. Leave one of them out, or set both."
        )
    better = "max" if train.monitor.endswith("accuracy") else "min"
    if train.mode != better:
        problems.append(f"train.mode: got {train.mode!r}, expected {better!r} for {train.monitor}.")
    return problems


def _data(config: RunConfig, shape: tuple[int, int, int], num_classes: int | None) -> list[str]:
    """Compare what the model would see with what the data set has."""
    problems = []
    model, name = config.model, config.data.name
    channels, *size = shape
    wanted = model.image_size
    if wanted is not None and list(wanted if isinstance(wanted, tuple) else (wanted,) * 2) != size:
        problems.append(
            f"model.image_size: got {shown(wanted)}, but the images of {name} are "
            f"{size[0]} high and {size[1]} wide; leave it out."
        )
    if model.in_channels not in (None, channels):
        problems.append(
            f"model.in_channels: got {model.in_channels}, but the images of {name} have "
            f"{channels}; leave it out."
        )
    if num_classes is not None and model.num_classes not in (None, num_classes):
        problems.append(
            f"model.num_classes: got {model.num_classes}, but {name} has {num_classes}; leave it "
            "out."
        )
    return problems


def _sizes(config: RunConfig, num_train: int) -> list[str]:
    """Compare batches and validation with how many images there are."""
    problems = []
    if num_train < 1:
        problems.append(
            f"data.val_fraction: {config.data.val_fraction:g} of {config.data.name} leaves no "
            "image to train on; use a smaller part."
        )
    elif config.train.batch_size > num_train:
        problems.append(
            f"train.batch_size: got {config.train.batch_size}, expected at most {num_train}, the "
            f"images of {config.data.name} to train on."
        )
    return problems
