"""What commands do about the plugins of a run: compare them, and keep their prints aside."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Collection
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vitkit.cli.plugin_option import loaded, plugin_files

if TYPE_CHECKING:
    from vitkit.config.run import RunConfig


def compare(
    trainer: dict[str, Any], config: RunConfig | None = None, kinds: Collection[str] | None = None
) -> None:
    """Compare the plugins of a run, as its checkpoint knows them, with those that are here.

    One that is another, or of another version, is said on stderr; one that brought a name of the
    configuration, of these kinds, and is missing is an error.
    """
    from vitkit.train.needed import needed

    recorded = [plugin for plugin in needed(trainer) if plugin.uses]
    if not recorded:
        return
    from vitkit.config.plugin_record import changes, refuse_missing

    if config is not None:
        refuse_missing(config, recorded, loaded(), kinds)
    for line in changes(recorded, loaded()):
        typer.echo(f"vitkit: {line}", err=True)


def prints_aside() -> AbstractContextManager[Any]:
    """Send what plugins print to stderr, since stdout is for results, which may be JSON."""
    return contextlib.redirect_stdout(sys.stderr)


def plugin_options() -> str:
    """Return the options that load the same files as this command line, to be shown in others."""
    return "".join(f"--plugin {as_word(file)} " for file in plugin_files)


def as_word(path: Path) -> str:
    """Return a path as it is given to a command in a shell, where it is no option."""
    return shlex.quote(f"./{path}" if str(path).startswith("-") else str(path))
