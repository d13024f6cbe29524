"""What plugins bring: found, loaded one by one, and known by name."""

from vitkit.plugins.discovery import PluginWarning as PluginWarning
from vitkit.plugins.discovery import active as active
from vitkit.plugins.discovery import load as load
from vitkit.plugins.discovery import registries as registries
from vitkit.plugins.discovery import unload as unload
from vitkit.plugins.hookspecs import API as API
from vitkit.plugins.hookspecs import hookimpl as hookimpl
from vitkit.plugins.manager import Plugins as Plugins
from vitkit.plugins.record import Failure as Failure
from vitkit.plugins.record import Plugin as Plugin
from vitkit.plugins.registries import Registries as Registries
from vitkit.registry import PluginError as PluginError
from vitkit.registry import Registry as Registry
