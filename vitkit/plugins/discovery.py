"""Where plugins come from: installed distributions, files, modules at hand.

``VITKIT_DISABLE_PLUGINS=1`` leaves installed ones alone, ``VITKIT_PLUGINS=name,...`` loads only
those named, and ``VITKIT_STRICT_PLUGINS=1`` makes one that fails fatal.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterable
from importlib.machinery import SourceFileLoader
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import CodeType, ModuleType

from vitkit.plugins.judge import switched_on
from vitkit.plugins.manager import Plugins, module_of, timed_load
from vitkit.plugins.record import Failure, Plugin
from vitkit.plugins.registries import Registries
from vitkit.registry import PluginError, did_you_mean

GROUP = "vitkit"
"""The entry-point group."""

_lock = threading.RLock()
_plugins: list[Plugins] = []  # none before the first use, then one
_said: list[Callable[[str], None]] = []
_shipped: list[tuple[object, str]] = []


class PluginWarning(UserWarning):
    """A plugin could not be loaded; the program goes on without it."""


def say_with(say: Callable[[str], None]) -> None:
    """Have lines about plugins that fail said in this way; by default they are warnings."""
    _said[:] = [say]


def ships(plugin: object, name: str) -> None:
    """Have something that comes with vitkit loaded as plugin ``name``, before any other."""
    _shipped.append((plugin, name))


def active() -> Plugins:
    """Return the plugins of this process; the installed ones are loaded at the first call.

    Returns
    -------
    Plugins
        With what failed, and why.

    Raises
    ------
    PluginError
        With ``VITKIT_STRICT_PLUGINS=1``, if one fails.
    """
    with _lock:
        if not _plugins:
            plugins = Plugins(Registries.shared())
            _plugins.append(plugins)  # before loading: a plugin may make a model when imported
            try:
                for plugin, name in _shipped:
                    plugins.load(plugin, Plugin(name, source="built in", origin=name))
                _load_installed(plugins)
            except BaseException:
                plugins.unload_all()
                _plugins.clear()  # the next call tries again
                raise
        return _plugins[0]


def who(error: BaseException) -> Plugin | None:
    """Return the plugin that an error comes from, or None; loads nothing."""
    return _plugins[0].who(error) if _plugins else None


def registries() -> Registries:
    """Return what names stand for in this process."""
    return active().registries


def load(plugin: ModuleType | object | str | os.PathLike[str], name: str | None = None) -> Plugin:
    """Load a plugin that is no installed distribution: a module, an object, or a file.

    Loading one again, edited, replaces what it registered before.

    Parameters
    ----------
    plugin : module, object, str or path
        What has functions marked ``@vitkit.hookimpl``, or the Python file that has.
    name : str, optional
        What to call it; by default the module's name, the object's class or the file's stem.

    Returns
    -------
    Plugin
        What it provides.

    Raises
    ------
    PluginError
        If it cannot be used; the message says why, and nothing has changed.
    """
    with _lock:
        plugins = active()
        if isinstance(plugin, (str, os.PathLike)):
            return _load_file(plugins, Path(plugin).expanduser(), name)
        given = name or (plugin.__name__ if isinstance(plugin, (ModuleType, type)) else None)
        record = Plugin(given or type(plugin).__name__, module=module_of(plugin))
        return plugins.load(plugin, record)


def unload(name: str) -> None:
    """Forget a plugin and all that it registered.

    Parameters
    ----------
    name : str
        What it is called.

    Raises
    ------
    PluginError
        If no plugin of that name is loaded, or it comes with vitkit.
    """
    with _lock:
        active().unload(name)


class _AsItIsNow(SourceFileLoader):
    """Reads a file anew each time.

    Bytecode that was kept for it would be taken for that of the file once edited, if that has the
    same size and is of the same second.
    """

    def get_code(self, fullname: str) -> CodeType:
        """Compile the source."""
        code: CodeType = self.source_to_code(self.get_data(self.path), self.path)
        return code


def _load_file(plugins: Plugins, path: Path, name: str | None) -> Plugin:
    """Run a Python file as a module of its own and load it."""
    record = Plugin(name or path.stem, source="file", origin=str(path))
    # The place is part of the module's name: files of one name in two folders are two modules.
    place = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    record.module = f"vitkit_plugin_{re.sub(r'[^0-9a-zA-Z_]', '_', path.stem)}_{place}"
    before = sys.modules.get(record.module)

    def get() -> ModuleType:
        if not path.is_file():
            what = "is a folder, no Python file" if path.is_dir() else "is not there"
            raise PluginError(f"{path} {what}")
        record.version = f"sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"
        if path.suffix != ".py":
            raise PluginError(f"{path.name} is no Python file: its name must end in .py")
        loader = _AsItIsNow(record.module, str(path))
        spec = importlib.util.spec_from_file_location(record.module, path, loader=loader)
        if spec is None:
            raise PluginError(f"{path} cannot be imported")
        module = importlib.util.module_from_spec(spec)
        sys.modules[record.module] = module  # dataclasses and pickle look for it there
        loader.exec_module(module)
        return module

    try:
        return timed_load(plugins, record, get)
    except BaseException:
        sys.modules.pop(record.module, None)
        if before is not None:
            sys.modules[record.module] = before
        raise


def _load_installed(plugins: Plugins) -> None:
    """Load entry points one by one; whatever one does, the others and vitkit go on."""
    strict = switched_on("VITKIT_STRICT_PLUGINS")
    if switched_on("VITKIT_DISABLE_PLUGINS"):
        return
    found = sorted(entry_points(group=GROUP), key=lambda point: (point.name, _distribution(point)))
    for point in _selected(plugins, found):
        record = _record(point)
        try:
            timed_load(plugins, record, point.load)
        except PluginError as error:
            plugins.failed.append(Failure(record, str(error), error))
    say = _said[-1] if _said else _warn
    if plugins.failed and strict:
        lines = [str(failure) for failure in plugins.failed]
        raise PluginError("\n".join(lines)) from plugins.failed[0].error
    for line in (*map(str, plugins.failed), *plugins.notes):
        say(line)


def _selected(plugins: Plugins, found: Iterable[EntryPoint]) -> list[EntryPoint]:
    """Return the entry points that ``VITKIT_PLUGINS`` leaves; note the names it has in vain."""
    found = list(found)
    chosen = os.environ.get("VITKIT_PLUGINS")
    if chosen is None:
        return found
    names = [name.strip() for name in chosen.split(",") if name.strip()]
    for name in names:
        if not any(_record(point).answers_to(name) for point in found):
            record = Plugin(name, source="entry point")
            message = (
                f"VITKIT_PLUGINS names {name!r}, which no installed distribution provides"
                f"{did_you_mean(name, [point.name for point in found])}"
            )
            plugins.failed.append(Failure(record, message, PluginError(message)))
    return [p for p in found if any(_record(p).answers_to(name) for name in names)]


def _record(point: EntryPoint) -> Plugin:
    version = point.dist.version if point.dist is not None else ""
    return Plugin(
        point.name,
        source="entry point",
        origin=_distribution(point),
        version=version or "",
        module=point.value.partition(":")[0].strip(),
    )


def _distribution(point: EntryPoint) -> str:
    return (point.dist.name if point.dist is not None else "") or "unknown distribution"


def _warn(line: str) -> None:
    warnings.warn(line, PluginWarning, stacklevel=4)
