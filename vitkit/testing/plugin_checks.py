"""The checks of all that a plugin registers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from vitkit.nn import ACTIVATIONS
from vitkit.plugins import Plugin, Registries
from vitkit.registry import Entry
from vitkit.testing.activations import activation_checks
from vitkit.testing.callbacks import callback_checks
from vitkit.testing.check import Check, Skip
from vitkit.testing.commands import command_checks
from vitkit.testing.datasets import dataset_checks
from vitkit.testing.kernels import kernel_checks
from vitkit.testing.layers import layer_checks
from vitkit.testing.losses import loss_checks
from vitkit.testing.models import model_checks
from vitkit.testing.optimizers import optimizer_checks
from vitkit.testing.schedules import schedule_checks
from vitkit.testing.transforms import transform_checks


def plugin_checks(plugin: Plugin, registries: Registries) -> Iterator[tuple[str, list[Check]]]:
    """Yield what a plugin registers, as ``"activation mish"``, each with its checks.

    Parameters
    ----------
    plugin : Plugin
        A plugin that is loaded.
    registries : Registries
        Where it registered.

    Yields
    ------
    what : str
        The kind and the name.
    checks : list of Check
        Not run yet.
    """
    for kind, registry in registries:
        for entry in registry.entries():
            if entry.plugin == plugin.label:
                yield f"{registry.kind} {entry.name}", _checks(kind, entry)


def _checks(kind: str, entry: Entry) -> list[Check]:
    """Return the checks of an entry, or one that fails where they cannot even be listed."""
    try:
        return CHECKS[kind](entry)
    except Exception as error:
        return [Check("can be checked", partial(_raise, error))]


def _raise(error: Exception) -> None:
    raise error


def _made(entry: Entry) -> Callable[..., Any]:
    """Return what makes one, with the arguments that the plugin gave as an example."""
    return partial(entry.value, **(entry.details.get("example") or {}))


def _activation(entry: Entry) -> list[Check]:
    return activation_checks(*entry.value, torch=entry.details.get("torch"))


def _optimizer(entry: Entry) -> list[Check]:
    details = entry.details
    return optimizer_checks(
        _made(entry), reference=details.get("reference"), torch=details.get("torch")
    )


def _loss(entry: Entry) -> list[Check]:
    details = entry.details
    labels = details.get("labels", "classes")
    return loss_checks(entry.value, torch=details.get("torch"), labels=labels)


def _kernel(entry: Entry) -> list[Check]:
    details = entry.details
    return kernel_checks(
        details["op"], entry.value, backend=details["backend"], inputs=details.get("inputs")
    )


def _layer(entry: Entry) -> list[Check]:
    details = entry.details
    shape, make = details.get("shape"), _made(entry)
    if details.get("part") is not None and not details.get("example"):
        shape, make = (TOKENS, DIM), partial(entry.value, *PLACES[details["part"]])
    if shape is None:
        return [Check("all checks of layers", _untold)]
    batched = details.get("batched", True)
    return layer_checks(make, shape, torch=details.get("torch"), batched=batched)


def _untold() -> None:
    raise Skip(
        "it is not said how to make one: register it with part=, or with example={...}, its "
        "arguments, and shape=(...), that of one sample of its input"
    )


TOKENS, DIM, MLP_DIM, HEADS = 5, 8, 12, 2
PLACES: dict[str, tuple[Any, ...]] = {
    "mlp": (DIM, MLP_DIM, ACTIVATIONS["gelu"]),
    "norm": (DIM, 1e-6),
    "attention": (DIM, HEADS),
}
"""What a block makes its parts with."""
CHECKS: dict[str, Callable[[Entry], list[Check]]] = {
    "activations": _activation,
    "optimizers": _optimizer,
    "schedules": lambda entry: schedule_checks(_made(entry)),
    "losses": _loss,
    "datasets": lambda entry: dataset_checks(_made(entry)),
    "layers": _layer,
    "transforms": lambda entry: transform_checks(_made(entry)),
    "callbacks": lambda entry: callback_checks(_made(entry)),
    "models": lambda entry: model_checks(entry.name, entry.value),
    "kernels": _kernel,
    "commands": lambda entry: command_checks(entry.name, entry.value),
}
