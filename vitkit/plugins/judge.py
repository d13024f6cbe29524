"""Whether something is a plugin at all, and why one failed, on one line."""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitkit.plugins import hookspecs
from vitkit.plugins.registries import HOOKS
from vitkit.registry import PluginError


def check_api(plugin: object) -> None:
    """Raise a PluginError if a plugin is written for other hooks than these."""
    written_for = inspect.getattr_static(plugin, "VITKIT_API", 1)
    if written_for != hookspecs.API:
        newer = isinstance(written_for, int) and written_for > hookspecs.API
        cure = "upgrade vitkit" if newer else "upgrade the plugin"
        raise PluginError(
            f"it is written for version {written_for!r} of the plugin hooks, and this vitkit has "
            f"version {hookspecs.API}: {cure}"
        )


def check_hooks(plugin: object) -> None:
    """Raise a PluginError for what looks like a hook and is none: pluggy would be silent."""
    found = list(_marked(plugin))
    for name, function in found:
        if name not in HOOKS:
            near = difflib.get_close_matches(name, HOOKS, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f". Known: {', '.join(HOOKS)}"
            raise PluginError(f"there is no hook {name!r}{hint}")
        _check_hook(name, function)
    if not found:
        raise PluginError(
            f"it implements no hook. Write a function such as {HOOKS[0]}(register) and mark it "
            "with @vitkit.hookimpl"
        )


def _marked(plugin: object) -> Iterator[tuple[str, Any]]:
    """Yield the functions of a plugin that are marked as hooks, by the names of their hooks."""
    for name in dir(plugin):
        # Objects that are made when first looked at are nobody's hooks.
        if name not in HOOKS and not inspect.isroutine(inspect.getattr_static(plugin, name, None)):
            continue
        function = getattr(plugin, name, None)
        options = getattr(function, "vitkit_impl", None)
        if isinstance(options, dict):
            yield options.get("specname") or name, function
        elif name in HOOKS and callable(function):
            raise PluginError(f"{name} is not marked: write @vitkit.hookimpl above it")


def _check_hook(name: str, function: Any) -> None:
    """Raise a PluginError unless a hook is a plain function of ``register``."""
    if not inspect.isroutine(function):
        raise PluginError(f"{name} must be a function; got an object of {type(function).__name__}")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise PluginError(f"{name} must be a plain function: write def, not async def")
    if inspect.isgeneratorfunction(function):
        raise PluginError(f"{name} must be a plain function, without yield")
    names = tuple(inspect.signature(function).parameters)
    if names != ("register",):
        raise PluginError(f"{name}({', '.join(names)}) must take one argument, 'register'")


SWITCH = {"1": True, "true": True, "yes": True, "on": True}
SWITCH |= {"": False, "0": False, "false": False, "no": False, "off": False}


def switched_on(variable: str) -> bool:
    """Whether a variable of the environment is set to 1, true, yes or on.

    Raises
    ------
    PluginError
        If it is set to what says neither yes nor no.
    """
    value = os.environ.get(variable, "")
    if value.strip().lower() not in SWITCH:
        raise PluginError(f"{variable}: got {value!r}, expected 1 or 0")
    return SWITCH[value.strip().lower()]


def reason(error: BaseException, module: str = "") -> str:
    """Return on one line why a plugin, whose code is in ``module``, failed."""
    if isinstance(error, PluginError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and error.name:
        if module == error.name or module.startswith(f"{error.name}."):
            return f"its module {error.name!r} is not there; install it anew, or uninstall it"
        return f"it needs {error.name!r}, which is not installed"
    if isinstance(error, SyntaxError):
        place = f"line {error.lineno} of " if error.lineno else ""
        return f"{place}{Path(error.filename or 'its source').name}: {error.msg}"
    if isinstance(error, SystemExit):
        return f"it tried to end the program (SystemExit: {error.code})"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
