"""``--plugin FILE``, and the plugins of a command line."""

from __future__ import annotations

import sys
from collections.abc import Collection
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from vitkit.config.run import RunConfig
    from vitkit.plugins import Plugins

COMMANDS: dict[str, Any] = {}
"""The commands that ship, by name; :mod:`vitkit.cli.main` fills it in."""
plugin_files: list[Path] = []
"""Those that ``--plugin`` has loaded."""


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
    return loaded() if plugin_files or entry_points(group="vitkit") else None


def plugin_commands() -> dict[str, Any]:
    """Return the commands that plugins bring."""
    plugins = wanted()
    registry = plugins.registries.commands if plugins else {}
    return {name: command for name, command in registry.items() if name not in COMMANDS}


def culprit(error: BaseException) -> str:
    """Return the label of the plugin whose code an error comes from, or nothing."""
    discovery = sys.modules.get("vitkit.plugins.discovery")
    found = discovery.who(error) if discovery else None  # without it, no plugin is loaded
    return found.label if found else ""


def compare(
    document: dict[str, Any],
    config: RunConfig | None = None,
    kinds: Collection[str] | None = None,
) -> None:
    """Compare the plugins that a checkpoint was made with to those that are here.

    One of another version is a line on stderr. One that is missing is an error where ``config``,
    or what it has of ``kinds``, names what it brought.
    """
    from vitkit.config.plugin_record import changes, refuse_missing
    from vitkit.train.needed import needed

    recorded = needed(document)
    if not recorded:
        return
    plugins = loaded()
    if config is not None:
        refuse_missing(config, recorded, plugins, kinds)
    for line in changes(recorded, plugins):
        typer.echo(f"vitkit: {line}", err=True)


def _load(context: typer.Context, files: list[Path] | None) -> list[Path] | None:
    if files and not context.resilient_parsing:
        from vitkit.plugins import load

        loaded()
        for file in files:
            load(file)
            plugin_files.append(file)
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
