"""Whether something is a plugin at all, and why one failed, on one line."""

from __future__ import annotations

import difflib
from pathlib import Path

from vitkit.plugins import hookspecs
from vitkit.plugins.registries import HOOKS
from vitkit.registry import PluginError


def check_api(plugin: object) -> None:
    """Raise a PluginError if a plugin is written for other hooks than these."""
    written_for = getattr(plugin, "VITKIT_API", 1)
    if written_for != hookspecs.API:
        newer = isinstance(written_for, int) and written_for > hookspecs.API
        cure = "upgrade vitkit" if newer else "upgrade the plugin"
        raise PluginError(
            f"it is written for version {written_for!r} of the plugin hooks, and this vitkit has "
            f"version {hookspecs.API}: {cure}"
        )


def check_marks(plugin: object) -> None:
    """Raise a PluginError for what looks like a hook and is none: pluggy would be silent."""
    marked = 0
    for name in dir(plugin):
        function = getattr(plugin, name, None)
        options = getattr(function, "vitkit_impl", None)
        if not isinstance(options, dict):
            if name in HOOKS and callable(function):
                raise PluginError(f"{name} is not marked: write @vitkit.hookimpl above it")
            continue
        marked += 1
        name = options.get("specname") or name
        if name not in HOOKS:
            near = difflib.get_close_matches(name, HOOKS, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f". Known: {', '.join(HOOKS)}"
            raise PluginError(f"there is no hook {name!r}{hint}")
        code = getattr(function, "__code__", None)
        names = code.co_varnames[: code.co_argcount] if code else ("register",)
        if tuple(n for n in names if n != "self") != ("register",):
            raise PluginError(f"{name}({', '.join(names)}) must take one argument, 'register'")
    if not marked:
        raise PluginError(
            f"it implements no hook. Write a function such as {HOOKS[0]}(register) and mark it "
            "with @vitkit.hookimpl"
        )


def reason(error: BaseException, module: str = "") -> str:
    """Return on one line why a plugin, whose code is in ``module``, failed."""
    if isinstance(error, PluginError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and error.name:
        if module == error.name or module.startswith(f"{error.name}."):
            return f"its module {error.name!r} is not there; install it anew, or uninstall it"
        return f"it needs {error.name!r}, which is not installed"
    if isinstance(error, SyntaxError):
        return f"line {error.lineno} of {Path(error.filename or '?').name}: {error.msg}"
    if isinstance(error, SystemExit):
        return f"it tried to end the program (SystemExit: {error.code})"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
