"""Plugins and what they bring: loaded whole or not at all, one by one."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType
from typing import Any

import pluggy

from vitkit.plugins import builtin, hookspecs
from vitkit.plugins.accept import find_op, op_names, problem
from vitkit.plugins.guard import guarded
from vitkit.plugins.judge import check_api, check_marks, reason
from vitkit.plugins.record import Failure, Plugin
from vitkit.plugins.registries import HOOKS, KINDS, Registries
from vitkit.registry import BUILTIN, NameTaken, PluginError, Registry, did_you_mean

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
        self._manager = pluggy.PluginManager("vitkit")
        self._manager.add_hookspecs(hookspecs)
        if os.environ.get("VITKIT_TRACE_PLUGINS") == "1":
            self._manager.add_hookcall_monitoring(_before, _after)
        self.load(builtin, Plugin(BUILTIN, source="built in", origin="vitkit"))

    def load(self, plugin: object, record: Plugin) -> Plugin:
        """Take up all that a plugin registers, or nothing.

        Parameters
        ----------
        plugin : module or object
            What has functions marked ``@vitkit.hookimpl``.
        record : Plugin
            What to call it; a plugin of that name is replaced.

        Returns
        -------
        Plugin
            The record, with what it provides.

        Raises
        ------
        PluginError
            If it cannot be used; the message names it and says why, and nothing has changed.
        """
        before = self.loaded.get(record.name)
        if before is not None:
            self.unload(record.name)
        try:
            staged = self._registrations(plugin, record)
        except PluginError:
            if before is not None:
                self.load(before.plugin, before)
            raise
        record.plugin, record.provides = plugin, {}
        for kind, name, objects, details in staged:
            getattr(self.registries, kind).add(name, *objects, plugin=record.label, **details)
            record.provides.setdefault(kind, []).append(name)
            if kind == "kernels":
                details["op"].overrides[details["backend"]] = objects[0]
        self.loaded[record.name] = record
        return record

    def unload(self, name: str) -> None:
        """Forget a plugin and all that it registered.

        Raises
        ------
        PluginError
            If no plugin of that name is loaded.
        """
        record = self.find(name)
        for entry in self.registries.kernels.entries():
            if entry.plugin == record.label:
                entry.details["op"].overrides.pop(entry.details["backend"], None)
        for _, registry in self.registries:
            registry.remove(record.label)
        self._manager.unregister(record.plugin)
        del self.loaded[record.name]

    def find(self, name: str) -> Plugin:
        """Return the plugin of a name, of a distribution, of a module or of a file.

        Raises
        ------
        PluginError
            If none is loaded; the message says whether it failed, or lists those that are.
        """
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
        ``culprit``, see :func:`vitkit.errors.blaming`.
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

    def _registrations(self, plugin: object, record: Plugin) -> list[Registration]:
        """Call the hooks of one plugin only, and return what it registers, checked."""
        staged: list[Registration] = []
        try:
            check_api(plugin)
            check_marks(plugin)
            with guarded():
                self._manager.register(plugin, name=record.label)
                self._manager.check_pending()
                others = [p for p in self._manager.get_plugins() if p is not plugin]
                for kind, hook in zip(KINDS, HOOKS, strict=True):
                    caller = self._manager.subset_hook_caller(hook, remove_plugins=others)
                    caller(register=partial(self._stage, staged, kind, record.label))
            if not staged:
                raise PluginError("its hooks register nothing")
        except BaseException as error:
            if self._manager.is_registered(plugin):
                self._manager.unregister(plugin)
            if isinstance(error, (KeyboardInterrupt, NameTaken)):
                raise
            raise PluginError(f"Plugin {record.label!r} cannot be used: {reason(error)}") from error
        return staged

    def _stage(
        self,
        staged: list[Registration],
        kind: str,
        label: str,
        name: str,
        /,
        *objects: Any,
        **details: Any,
    ) -> None:
        """Be the ``register`` that a hook is called with."""
        if kind == "models" and not objects:
            objects, details = (details,), {}
        wrong = problem(kind, objects, details)
        registry: Registry = getattr(self.registries, kind)
        who = f"it registers the {registry.kind} {name!r}"
        if wrong:
            raise PluginError(f"{who}: {wrong}.")
        if kind == "kernels":
            name, details = self._kernel(who, name, objects[0], details, staged)
        registry.check(name, objects, label)
        if any((kind, name) == other[:2] for other in staged):
            raise PluginError(f"{who} twice.")
        staged.append((kind, name, objects, details))

    def _kernel(
        self,
        who: str,
        name: str,
        function: Callable[..., Any],
        details: Mapping[str, Any],
        staged: list[Registration],
    ) -> tuple[str, dict[str, Any]]:
        """Return the name of a kernel's entry, and its details with the operation."""
        activations = Registry("activation")
        for kind, other, objects, _ in staged:
            if kind == "activations":
                activations.add(other, *objects, plugin="")
        op = find_op(name, self.registries.activations) or find_op(name, activations)
        if op is None:
            known = op_names(self.registries.activations)
            raise PluginError(f"{who}: no operation has that name{did_you_mean(name, known)}")
        backend = details.get("backend", "numpy")
        if not isinstance(backend, str):
            raise PluginError(f"{who}: backend must be a name such as 'numpy'; got {backend!r}.")
        try:
            op.check_kernel(function, backend)
        except TypeError as error:
            raise PluginError(f"{who}: {error}") from None
        return f"{name}_{backend}", {**details, "op": op, "backend": backend}


Registration = tuple[str, str, tuple[Any, ...], dict[str, Any]]
"""Kind, name, objects, details."""


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
    start = time.perf_counter()
    try:
        with guarded():
            plugin = get()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        why = reason(error, record.module)
        raise PluginError(f"Plugin {record.label!r} cannot be used: {why}") from error
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
