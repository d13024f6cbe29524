"""``--plugin FILE``, and the plugins of a command line."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from vitkit.plugins import Plugins

COMMANDS: dict[str, Any] = {}
"""The commands that ship, by name; :mod:`vitkit.cli.main` fills it in."""
_files: list[Path] = []


def loaded() -> Plugins:
    """Return the plugins of this process; a line on stderr names each that failed."""
    from vitkit.cli import shipped
    from vitkit.plugins import discovery

    if not shipped.COMMANDS:
        shipped.COMMANDS.update(COMMANDS)
        discovery.say_with(lambda line: typer.echo(f"vitkit: {line}", err=True))
        discovery.ships(shipped, "vitkit.cli")
    return discovery.active()


def wanted() -> Plugins | None:
    """Return the plugins if there are any besides vitkit's own; otherwise nothing is imported."""
    return loaded() if _files or entry_points(group="vitkit") else None


def plugin_commands() -> dict[str, Any]:
    """Return the commands that plugins bring."""
    plugins = wanted()
    registry = plugins.registries.commands if plugins else {}
    return {name: command for name, command in registry.items() if name not in COMMANDS}


def culprit(error: BaseException) -> str:
    """Return the label of the plugin whose code an error comes from, or nothing."""
    if "vitkit.plugins.discovery" not in sys.modules:  # then no plugin is loaded
        return ""
    found = loaded().who(error)
    return found.label if found else ""


def _load(context: typer.Context, files: list[Path] | None) -> list[Path] | None:
    if files and not context.resilient_parsing:
        from vitkit.plugins import load

        loaded()
        for file in files:
            load(file)
            _files.append(file)
    return files


PluginFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin",
        metavar="FILE",
        callback=_load,
        is_eager=True,
        help="Load a plugin from a Python file; may be repeated.",
    ),
]
