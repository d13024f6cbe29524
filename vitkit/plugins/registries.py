"""One table of names for each kind of thing that a run is made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import partial

from vitkit import models, nn
from vitkit.registry import Registry


@dataclass(frozen=True)
class Registries:
    """One registry for each kind of thing that is known by name.

    Each field is filled through the hook ``register_<field>``.
    """

    activations: Registry = field(default_factory=partial(Registry, "activation"))
    optimizers: Registry = field(default_factory=partial(Registry, "optimizer"))
    schedules: Registry = field(default_factory=partial(Registry, "schedule"))
    losses: Registry = field(default_factory=partial(Registry, "loss"))
    datasets: Registry = field(default_factory=partial(Registry, "dataset"))
    layers: Registry = field(default_factory=partial(Registry, "layer"))
    transforms: Registry = field(default_factory=partial(Registry, "transform"))
    callbacks: Registry = field(default_factory=partial(Registry, "callback"))
    models: Registry = field(default_factory=partial(Registry, "model"))
    kernels: Registry = field(default_factory=partial(Registry, "kernel"))
    commands: Registry = field(default_factory=partial(Registry, "command"))

    @classmethod
    def shared(cls) -> Registries:
        """Return new registries, but for the tables that models themselves look names up in."""
        return cls(activations=nn.ACTIVATIONS, layers=nn.LAYERS, models=models.MODELS)

    def __iter__(self) -> Iterator[tuple[str, Registry]]:
        """Yield ``(field, registry)``."""
        for each in fields(self):
            yield each.name, getattr(self, each.name)


KINDS = tuple(each.name for each in fields(Registries))
HOOKS = tuple(f"register_{kind}" for kind in KINDS)
