"""Plugins and what they bring: loaded whole or not at all, one by one."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any

import pluggy

from vitkit.plugins import builtin, hookspecs
from vitkit.plugins.guard import guarded
from vitkit.plugins.judge import check_api, check_hooks, reason, switched_on
from vitkit.plugins.record import Failure, Plugin
from vitkit.plugins.registries import HOOKS, KINDS, Registries
from vitkit.plugins.staging import Staging
from vitkit.registry import BUILTIN, NameTaken, PluginError, did_you_mean
from vitkit.signals import Terminated

SLOW = 1.0
"""Seconds after which it is said that a plugin took long to load."""


class Plugins:
    """The plugins of a process: what is loaded, what failed, and what names stand for.

    Parameters
    ----------
    registries : Registries
        What to fill.

    Attributes
    ----------
    loaded : dict of str to Plugin
        By name, in order of loading; vitkit's own comes first.
    failed : list of Failure
        What could not be loaded, and why.
    notes : list of str
        What is worth saying besides, a line each.
    """

    def __init__(self, registries: Registries) -> None:
        self.registries = registries
        self.loaded: dict[str, Plugin] = {}
        self.failed: list[Failure] = []
        self.notes: list[str] = []
        self._busy = ""
        self._manager = pluggy.PluginManager("vitkit")
        self._manager.add_hookspecs(hookspecs)
        if switched_on("VITKIT_TRACE_PLUGINS"):
            self._manager.add_hookcall_monitoring(_before, _after)
        self.load(builtin, Plugin(BUILTIN, source="built in", origin="vitkit"))

    def load(self, plugin: object, record: Plugin) -> Plugin:
        """Take up all that a plugin registers, or nothing.

        Parameters
        ----------
        plugin : module or object
            What has functions marked ``@vitkit.hookimpl``.
        record : Plugin
            What to call it; what was loaded from the same place before is replaced.

        Returns
        -------
        Plugin
            The record, with what it provides.

        Raises
        ------
        PluginError
            If it cannot be used; the message names it and says why, and nothing has changed.
        """
        before = self.check_name(record)
        for other in self.loaded.values():
            if other.plugin is plugin and other is not before:
                raise PluginError(_cannot(record, f"it is loaded already, as {other.label!r}"))
        if before is not None:
            self._remove(before)
        try:
            with self.alone(record):
                staged = self._registrations(plugin, record)
        except BaseException:
            if before is not None:
                self.load(before.plugin, before)
            raise
        record.plugin, record.provides = plugin, {}
        for kind, name, objects, details in staged.entries:
            getattr(self.registries, kind).add(name, *objects, plugin=record.label, **details)
            record.provides.setdefault(kind, []).append(name)
            if kind == "kernels":
                details["op"].overrides[details["backend"]] = objects[0]
        self.loaded[record.name] = record
        return record

    def check_name(self, record: Plugin) -> Plugin | None:
        """Return the plugin that ``record`` would replace, or None.

        Raises
        ------
        PluginError
            If another plugin has its name.
        """
        other = self.loaded.get(record.name)
        if other is not None and not other.is_replaced_by(record):
            cure = {"file": "rename the file", "object": "give it a name, load(plugin, name)"}
            raise PluginError(
                _cannot(
                    record,
                    f"its name is that of plugin {other.label!r}; "
                    f"{cure.get(record.source, 'uninstall one of the two')}",
                )
            )
        return other

    @contextmanager
    def alone(self, record: Plugin) -> Iterator[None]:
        """Let nothing else be loaded inside the block, in which a plugin's code runs.

        Raises
        ------
        PluginError
            If another plugin's code is running: what it loads would stay where it itself fails.
        """
        if self._busy:
            raise PluginError(
                _cannot(record, f"plugin {self._busy!r} tries to load it while being loaded itself")
            )
        self._busy = record.label
        try:
            yield
        finally:
            self._busy = ""

    def unload(self, name: str) -> None:
        """Forget a plugin and all that it registered.

        Raises
        ------
        PluginError
            If no plugin of that name is loaded, or it comes with vitkit.
        """
        record = self.find(name)
        if record.source == "built in":
            raise PluginError(f"Plugin {record.label!r} comes with vitkit and cannot be unloaded")
        self._remove(record)

    def unload_all(self) -> None:
        """Forget every plugin but vitkit's own."""
        for record in reversed(list(self.loaded.values())[1:]):
            self._remove(record)

    def _remove(self, record: Plugin) -> None:
        for entry in self.registries.kernels.entries():
            if entry.plugin == record.label:
                entry.details["op"].overrides.pop(entry.details["backend"], None)
        for _, registry in self.registries:
            registry.remove(record.label)
        self._manager.unregister(name=record.label)
        del self.loaded[record.name]

    def find(self, name: str) -> Plugin:
        """Return the plugin of a name, of a distribution, of a module or of a file.

        Raises
        ------
        PluginError
            If none is loaded; the message says whether it failed, or lists those that are.
        """
        if name in self.loaded:
            return self.loaded[name]
        for record in self.loaded.values():
            if record.answers_to(name):
                return record
        for failure in self.failed:
            if failure.answers_to(name):
                raise PluginError(str(failure))
        raise PluginError(
            f"no plugin is named {name!r}{did_you_mean(name, self.loaded)} "
            f"Loaded: {', '.join(self.loaded)}."
        )

    def who(self, error: BaseException) -> Plugin | None:
        """Return the plugin whose code an error comes from, the innermost, or None.

        Vitkit's own error about what a plugin's object returned has the object's module as its
        ``culprit``, see ``vitkit.errors.blaming``.
        """
        found = self._owner(getattr(error, "culprit", ""))
        trace = error.__traceback__
        while trace is not None:
            found = self._owner(trace.tb_frame.f_globals.get("__name__", "")) or found
            trace = trace.tb_next
        if found is None and error.__cause__ is not None:
            return self.who(error.__cause__)
        return found

    def _owner(self, module: str) -> Plugin | None:
        """Return the plugin that a module is part of."""
        for record in self.loaded.values():
            if record.source != "built in" and record.owns(module):
                return record
        return None

    def _registrations(self, plugin: object, record: Plugin) -> Staging:
        """Call the hooks of one plugin only, and return what it registers, checked."""
        staged = Staging(self.registries, record.label)
        try:
            check_api(plugin)
            check_hooks(plugin)
            with guarded():
                self._manager.register(plugin, name=record.label)
                self._manager.check_pending()
                others = [p for p in self._manager.get_plugins() if p is not plugin]
                for kind, hook in zip(KINDS, HOOKS, strict=True):
                    caller = self._manager.subset_hook_caller(hook, remove_plugins=others)
                    caller(register=partial(staged.add, kind))
            staged.close()
        except BaseException as error:
            if self._manager.has_plugin(record.label):
                self._manager.unregister(name=record.label)
            if isinstance(error, (KeyboardInterrupt, Terminated, NameTaken)):
                raise
            raise PluginError(_cannot(record, reason(error))) from error
        return staged


def _cannot(record: Plugin, why: str) -> str:
    return f"Plugin {record.label!r} cannot be used: {why}"


def _before(hook: str, implementations: Any, arguments: Mapping[str, Any]) -> None:
    for implementation in implementations:
        print(f"vitkit: {hook} of {implementation.plugin_name}", file=sys.stderr)


def _after(outcome: Any, hook: str, implementations: Any, arguments: Mapping[str, Any]) -> None:
    if outcome.exception is not None:
        print(f"vitkit: {hook} raised {outcome.exception!r}", file=sys.stderr)


def timed_load(plugins: Plugins, record: Plugin, get: Callable[[], object]) -> Plugin:
    """Import a plugin and load it, noting if that takes long.

    Raises
    ------
    PluginError
        If it cannot be imported or used; the message names it and says why.
    """
    plugins.check_name(record)
    start = time.perf_counter()
    try:
        with plugins.alone(record), guarded():
            plugin = get()
    except (KeyboardInterrupt, Terminated):
        raise
    except BaseException as error:
        raise PluginError(_cannot(record, reason(error, record.module))) from error
    plugins.load(plugin, record)
    record.seconds = time.perf_counter() - start
    if record.seconds > SLOW:
        plugins.notes.append(f"Plugin {record.label!r} took {record.seconds:.1f} s to load")
    return record


def module_of(plugin: object) -> str:
    """Return the module that a plugin's code is in."""
    if isinstance(plugin, ModuleType):
        return plugin.__name__
    return plugin.__module__ if isinstance(plugin, type) else type(plugin).__module__
