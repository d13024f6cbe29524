"""From plugins to registries of what they bring."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import partial
from types import ModuleType

import pluggy

from vitkit.plugins import builtin, hookspecs
from vitkit.plugins.registry import PluginError, Registry

BUILTIN = "vitkit"
"""The name under which vitkit's own plugin registers."""


@dataclass(frozen=True)
class Registries:
    """One registry for each kind of thing that a configuration names.

    Each field is filled through the hook ``register_<field>``.
    """

    activations: Registry = field(default_factory=partial(Registry, "activation"))
    optimizers: Registry = field(default_factory=partial(Registry, "optimizer"))
    schedules: Registry = field(default_factory=partial(Registry, "schedule"))
    losses: Registry = field(default_factory=partial(Registry, "loss"))
    datasets: Registry = field(default_factory=partial(Registry, "dataset"))
    transforms: Registry = field(default_factory=partial(Registry, "transform"))


def registries(*plugins: object) -> Registries:
    """Return registries filled by vitkit's own plugin first, then by those given, in order.

    Parameters
    ----------
    *plugins : object
        Modules or objects with functions marked ``@vitkit.plugins.hookimpl``.

    Returns
    -------
    Registries
        New registries; nothing is kept between calls.

    Raises
    ------
    PluginError
        If a plugin implements an unknown hook, or registers a name that is taken.
    """
    manager = pluggy.PluginManager("vitkit")
    manager.add_hookspecs(hookspecs)
    filled = Registries()
    for plugin, name in [(builtin, BUILTIN), *((plugin, _name(plugin)) for plugin in plugins)]:
        try:
            manager.register(plugin, name=name)
            manager.check_pending()
        except (pluggy.PluginValidationError, ValueError) as error:
            raise PluginError(f"Plugin {name!r} cannot be used: {error}") from error
        _fill(filled, manager, plugin, name)
    return filled


def _fill(filled: Registries, manager: pluggy.PluginManager, plugin: object, name: str) -> None:
    """Call the hooks of one plugin only, so that a clash can name both sides."""
    others = [other for other in manager.get_plugins() if other is not plugin]
    for kind in fields(filled):
        registry: Registry = getattr(filled, kind.name)
        hook = manager.subset_hook_caller(f"register_{kind.name}", remove_plugins=others)
        hook(register=partial(registry.add, plugin=name))


def _name(plugin: object) -> str:
    """Return what messages call a plugin: its module, or the class it is or is made from."""
    if isinstance(plugin, (ModuleType, type)):
        return plugin.__name__
    return type(plugin).__name__
