"""What a run is made of, as it may be written in TOML.

Every setting has a default, so an empty file is a whole run. None, which TOML cannot write, is
written ``"none"``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PlainSerializer,
    PlainValidator,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticSerializationError

from vitkit.config.spec import Spec, as_spec, shown, storable
from vitkit.errors import ConfigError

NONE = "none"
"""How a setting without a value is written."""


def _size(value: Any) -> int | tuple[int, int]:
    """Read a side, or height and width."""
    sides = value if isinstance(value, (list, tuple)) and len(value) == 2 else [value]
    if any(type(side) is not int or side < 1 or not storable(side) for side in sides):
        raise ConfigError(
            f"got {shown(value)}, expected a whole number above 0 or [height, width]."
        )
    return (sides[0], sides[1]) if len(sides) == 2 else int(sides[0])


def _specs(value: object) -> tuple[Spec, ...]:
    """Read a list of specs."""
    if not isinstance(value, (list, tuple)):
        raise ConfigError(
            f"got {shown(value)}, expected a list, such as ['crop(padding=4)', 'flip']."
        )
    return tuple(as_spec(item) for item in value)


def _seconds(value: object) -> object:
    """Read ``"1h30m"``, ``"90s"`` and their like as seconds; leave the rest to the field."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s)?", value, re.ASCII)
    if match is None or not any(match.groups()):
        raise ConfigError(
            f"got {shown(value)}, expected seconds, or a time such as '2h', '1h30m' or '90s'."
        )
    hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(3600 * hours + 60 * minutes + seconds)


SpecField: TypeAlias = Annotated[Spec, PlainValidator(as_spec), PlainSerializer(str)]
SpecList: TypeAlias = Annotated[
    tuple[Spec, ...],
    PlainValidator(_specs),
    PlainSerializer(lambda specs: [str(spec) for spec in specs]),
]
Size: TypeAlias = Annotated[
    int | tuple[int, int],
    PlainValidator(_size),
    PlainSerializer(lambda size: size if isinstance(size, int) else list(size)),
]
Seconds: TypeAlias = Annotated[PositiveFloat, BeforeValidator(_seconds)]
Fraction: TypeAlias = Annotated[float, Field(ge=0, lt=1)]


class _Section(BaseModel):
    """Settings that are checked strictly, cannot be changed, and know no others."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def model_dump(self, **how: Any) -> dict[str, Any]:
        """Return the settings as a table; a signal meanwhile is no error of a setting."""
        try:
            return super().model_dump(**how)
        except PydanticSerializationError as error:
            if error.__cause__ is None or isinstance(error.__cause__, Exception):
                raise
            raise error.__cause__ from None

    @field_validator("*", mode="before")
    @classmethod
    def _as_toml_has_it(cls, value: Any) -> Any:
        if isinstance(value, int) and not storable(value):
            raise ConfigError(f"got {shown(value)}, expected an integer of at most 64 bits.")
        return None if isinstance(value, str) and value == NONE else value


class ModelConfig(_Section):
    """The model; None takes a value from the variant or, for what it sees, from the data set."""

    variant: str = "Ti/16"
    image_size: Size | None = None
    patch_size: Size | None = None
    in_channels: PositiveInt | None = None
    num_classes: PositiveInt | None = None
    dim: PositiveInt | None = None
    depth: PositiveInt | None = None
    num_heads: PositiveInt | None = None
    mlp_dim: PositiveInt | None = None
    activation: str | None = None
    mlp: str | None = None
    norm: str | None = None
    attention: str | None = None
    pool: str | None = None
    layer_norm_eps: PositiveFloat | None = None
    dropout: Fraction | None = None
    drop_path: Fraction | None = None
    representation_size: PositiveInt | None = None
    init: str | None = None
    gradient_checkpointing: bool = False
    residual_in_fp32: bool = True


class DataConfig(_Section):
    """The data set, what is held back for validation, and augmentation.

    ``bad_files`` says what is done about files of a folder that cannot be read: all are listed and
    nothing is trained, they are left out and counted, or each is met when it is needed.
    """

    name: str = "digits"
    path: str | None = None
    bad_files: Literal["error", "skip", "later"] = "error"
    val_fraction: Fraction = 0.1
    augment: SpecList = ()
    num_workers: NonNegativeInt = 0


class TrainConfig(_Section):
    """The training: how long, how fast, and when to look.

    Intervals are in epochs (``eval_every``) and steps (``log_every``), ``patience`` in
    evaluations, ``max_time`` in seconds. Checkpoints are written at the end of epochs and, with
    ``save_every``, after every so many steps; ``keep`` says how many of the latest are kept beside
    the best. With None, ``lr`` and ``weight_decay`` are the optimizer's own defaults, and
    ``warmup_epochs`` is a tenth of the epochs. ``callbacks`` are called in their order, after an
    epoch's numbers are known and before its checkpoint is written.
    ``precision`` says what the products of the patch embedding and of blocks are made of: one other
    than float32 is served where it is faster, and float32 elsewhere, which a line then says. With
    ``"float16"`` the loss is scaled for backward, and a step whose gradient is not finite is
    skipped. ``nonfinite`` says what is done about a step whose loss or gradient is not finite
    elsewhere: the run ends with an error, goes on without the step, or ends as if it were done.
    ``graph`` says whether steps, and what the model does with batches that are evaluated, are
    recorded and asked of a GPU as one graph; with None, where they can be.
    """

    epochs: PositiveInt = 100
    batch_size: PositiveInt = 128
    lr: NonNegativeFloat | None = None
    weight_decay: NonNegativeFloat | None = None
    warmup_epochs: NonNegativeFloat | None = None
    grad_accum: PositiveInt = 1
    max_grad_norm: PositiveFloat | None = 1.0
    label_smoothing: Fraction = 0.0
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    precision: Literal["float32", "tf32", "bfloat16", "float16"] = "float32"
    graph: bool | None = None
    nonfinite: Literal["raise", "skip", "stop"] = "raise"
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    loss: SpecField = Spec("softmax_cross_entropy")
    eval_every: PositiveInt = 1
    log_every: PositiveInt = 50
    save_every: PositiveInt | None = None
    keep: PositiveInt = 2
    patience: PositiveInt | None = None
    monitor: Literal["val_loss", "val_accuracy", "train_loss"] = "val_loss"
    mode: Literal["min", "max"] = "min"
    max_time: Seconds | None = None
    callbacks: SpecList = ()


class RunConfig(_Section):
    """One run, whole: what ``config.toml`` in its folder holds.

    ``optimizer`` and ``schedule`` may be written with ``lr``, ``weight_decay`` and
    ``warmup_epochs``; these are kept in ``train``, so that there is one place to read them.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")] | None = None
    seed: NonNegativeInt = 0
    backend: str = "auto"
    dtype: Literal["float32", "float64"] = "float32"
    optimizer: SpecField = Spec("adamw")
    schedule: SpecField = Spec("cosine")
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="before")
    @classmethod
    def _settled(cls, table: Any) -> Any:
        return settle(table) if isinstance(table, Mapping) else table


KEPT_IN_TRAIN = {"optimizer": ("lr", "weight_decay"), "schedule": ("warmup_epochs",)}
"""The arguments of a spec that are settings of ``train``."""


def settle(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration's table with ``optimizer.lr`` and its like moved to ``train``.

    Raises
    ------
    ConfigError
        If a value is given in both places.
    """
    settled = dict(table)
    train = table.get("train", {})
    if isinstance(train, TrainConfig):
        train = train.model_dump(exclude_unset=True)
    for key, arguments in KEPT_IN_TRAIN.items():
        try:
            spec = as_spec(table[key])
        except (KeyError, ConfigError):  # absent, or about to be reported by its field
            continue
        moved = {name: spec.kwargs[name] for name in arguments if name in spec.kwargs}
        if not moved:
            continue
        settled[key] = Spec(spec.name, {k: v for k, v in spec.kwargs.items() if k not in moved})
        if not isinstance(train, Mapping):  # about to be reported
            continue
        problems = [
            f"train.{name}: got {shown(train[name])} and {key} {shown(str(spec))}, expected one "
            "of the two."
            for name in moved
            if name in train
        ]
        if problems:
            raise ConfigError(problems)
        train = settled["train"] = {**train, **moved}
    return settled
