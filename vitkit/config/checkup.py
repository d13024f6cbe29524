"""What looks wrong with a run before it is trained: settings, images, learning rate, memory."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from vitkit.backend import array_module, backend_of, memory_left
from vitkit.config.build import components, load_data, model_config, parts_of
from vitkit.config.data_checkup import data_findings
from vitkit.config.preflight import preflight
from vitkit.config.run import RunConfig
from vitkit.data import Splits
from vitkit.errors import ConfigError, VitkitError
from vitkit.optim import Optimizer
from vitkit.plugins import Registries
from vitkit.train.memory import forecast, host_memory_left, shown

USUAL_LR = {
    "adam": (1e-5, 1e-2),
    "adamw": (1e-5, 1e-2),
    "lamb": (1e-4, 5e-2),
    "lion": (1e-6, 3e-3),
    "sgd": (1e-4, 1.0),
}
"""The learning rates that ViTs are trained with, from fine-tuning to small models."""


@dataclass(frozen=True)
class Remark:
    """Something that looks wrong.

    Attributes
    ----------
    about : str
        The setting or the part of the data, such as ``"train.lr"``.
    what : str
        What is wrong, and what to do.
    """

    about: str
    what: str

    def __str__(self) -> str:
        return f"{self.about}: {self.what}"


@dataclass
class Checkup:
    """What was found.

    Attributes
    ----------
    remarks : list of Remark
        What looks wrong; empty where the run is sound as far as can be told.
    facts : dict of str to str
        What was looked at and is no fault, such as the memory that is needed.
    """

    remarks: list[Remark] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the findings as plain values."""
        return {
            "sound": not self.remarks,
            "findings": [asdict(remark) for remark in self.remarks],
            "facts": self.facts,
        }


def remarks_of(error: VitkitError, about: str = "") -> list[Remark]:
    """Return the lines of an error as remarks."""
    lines = error.problems if isinstance(error, ConfigError) else str(error).splitlines()
    parts = (line.partition(": ") if not about else (about, "", line) for line in lines)
    return [Remark(head, rest) if rest else Remark("settings", head) for head, _, rest in parts]


def checkup(config: RunConfig, registries: Registries) -> Checkup:
    """Look at a run without training it.

    Parameters
    ----------
    config : RunConfig
        The run; each setting on its own has been checked.
    registries : Registries
        What names stand for.
    """
    found = Checkup()
    try:
        data = load_data(config, registries)
    except VitkitError as error:
        lines = preflight(config, None, None, registries)
        problems = remarks_of(ConfigError(lines)) if lines else []
        own = remarks_of(error, "" if isinstance(error, ConfigError) else "data")
        found.remarks += list(dict.fromkeys([*problems, *own]))
        return found
    train = data.train
    lines = preflight(
        config, train.image_shape, len(train.classes), registries, num_images=len(train)
    )
    if lines:
        found.remarks += remarks_of(ConfigError(lines))
        return found
    parts = parts_of(config, data)
    remarks, found.facts = data_findings(parts)
    found.remarks += [Remark(about, what) for about, what in remarks]
    optimizer, *_ = components(config, registries, len(parts["train"]))
    _learning_rate(found, config, optimizer)
    try:
        _memory(found, config, data, optimizer)
    except VitkitError as error:  # a GPU that is asked for and cannot compute
        found.remarks += remarks_of(error, "backend")
    return found


def _learning_rate(found: Checkup, config: RunConfig, optimizer: Optimizer) -> None:
    name, lr = config.optimizer.name, optimizer.lr
    low, high = USUAL_LR.get(name, (0.0, float("inf")))
    usual = f"{low:g} to {high:g}" if name in USUAL_LR else "not known"
    found.facts["learning rate"] = f"{lr:g} ({name}, usual {usual})"
    if not low <= lr <= high:
        side = "above" if lr > high else "below"
        found.remarks.append(
            Remark("train.lr", f"{lr:g} is {side} what {name} usually takes, {usual}; change it.")
        )


def _memory(found: Checkup, config: RunConfig, data: Splits, optimizer: Optimizer) -> None:
    """Compare what training is about to hold with what is free."""
    sizes = model_config(config, data.train.image_shape, len(data.train.classes))
    needs = forecast(sizes, optimizer, config.train.batch_size, dtype=config.dtype)
    if config.train.ema_decay is not None:
        needs["average"] = needs["weights"]
    xp = array_module(config.backend)
    on_host = backend_of(xp).on_host
    free = host_memory_left() if on_host else (memory_left(xp) or (None,))[0]
    total = sum(needs.values())
    listed = ", ".join(f"{what} {shown(size)}" for what, size in needs.items())
    room = "unknown" if free is None else shown(free)
    found.facts["memory"] = f"{shown(total)} at least ({listed}); free: {room}"
    if free is not None and total > free:
        found.remarks.append(
            Remark(
                "train.batch_size",
                f"training needs {shown(total)} at least, of which activations of "
                f"{config.train.batch_size} images are {shown(needs['activations'])}, and {room} "
                "are free; take a smaller batch and more train.grad_accum, which teach the same, "
                "or model.gradient_checkpointing=true.",
            )
        )
