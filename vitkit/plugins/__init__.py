"""Names for what a run is made of, brought by vitkit itself and by plugins."""

from vitkit.plugins.hookspecs import hookimpl
from vitkit.plugins.manager import Registries, registries
from vitkit.plugins.registry import PluginError, Registry

__all__ = ["PluginError", "Registries", "Registry", "hookimpl", "registries"]
