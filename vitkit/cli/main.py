"""``vitkit``: the commands, and how errors end."""

from __future__ import annotations

import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from vitkit._version import __version__
from vitkit.cli import (
    bench,
    checkpoint,
    data,
    doctor,
    evaluate,
    info,
    kernels,
    plugin_option,
    plugins,
    predict,
    streams,
    train,
    verify,
)
from vitkit.errors import ConfigError, VitkitError
from vitkit.registry import on_missing_name
from vitkit.signals import Terminated, leaving

EPILOG = (
    "Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted, 143 terminated."
)


class Commands(TyperGroup):
    """The commands that ship, then those of plugins."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all commands."""
        theirs = (name.replace("_", "-") for name in plugin_option.plugin_commands())
        return [*super().list_commands(ctx), *theirs]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command of a name; plugins are loaded only for a name that does not ship."""
        found = super().get_command(ctx, cmd_name)
        if found is None:
            command = plugin_option.plugin_commands().get(cmd_name.replace("-", "_"))
            found = None if command is None else as_command(command, cmd_name)
        return found


def as_command(command: Any, name: str) -> Any:
    """Return a plugin's function, or its Typer app, as the command that typer makes of it."""
    app = command
    if not isinstance(command, typer.Typer):
        app = typer.Typer(rich_markup_mode=None, add_completion=False)
        app.command(name)(command)
    made = get_command(app)
    made.name = name
    return made


app = typer.Typer(
    name="vitkit",
    cls=Commands,
    help="Vision Transformers on NumPy and CuPy, every gradient written by hand.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
plugin_option.COMMANDS.update(
    {
        "train": train.train,
        "evaluate": evaluate.evaluate,
        "predict": predict.predict,
        "doctor": doctor.doctor,
        "data": data.app,
        "checkpoint": checkpoint.app,
        "verify": verify.verify,
        "plugins": plugins.app,
        "info": info.info,
        "kernels": kernels.app,
        "bench": bench.bench,
    }
)
for _name, _command in plugin_option.COMMANDS.items():
    if isinstance(_command, typer.Typer):
        app.add_typer(_command, name=_name)
    else:
        app.command(_name)(_command)

# What a model asks for, plugins that fail being named as everywhere on the command line.
on_missing_name(plugin_option.wanted)

_debug = False


def _version(value: bool) -> None:
    if value:
        typer.echo(f"vitkit {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
    plugin: plugin_option.PluginFiles = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Keep the options that come before the command."""
    global _debug
    _debug = debug


def main() -> None:
    """Run the command line; errors become a line, or one for each problem, and an exit code."""
    streams.settle()
    try:
        with leaving():
            app()
    except SystemExit as error:
        if isinstance(error, Terminated):
            _say(error, ["terminated"])
        elif (pressed := _ctrl_c(error)) is not None:
            _say(pressed, ["interrupted"])
        raise
    except KeyboardInterrupt as error:
        _say(error, ["interrupted"])
        sys.exit(130)
    except Exception as error:
        if _debug:
            traceback.print_exc()
        _say(error, _lines(error))
        sys.exit(2 if isinstance(error, ConfigError) else 1)


def _say(error: BaseException, lines: list[str]) -> None:
    for line in [*lines, *getattr(error, "__notes__", ())]:
        typer.echo(f"vitkit: {line}", err=True)


def _ctrl_c(error: SystemExit) -> BaseException | None:
    """Return the KeyboardInterrupt that typer has made an exit of, if it was one."""
    cause = getattr(error.__context__, "__cause__", None)
    return cause if isinstance(cause, KeyboardInterrupt) else None


def _lines(error: Exception) -> list[str]:
    """Return what to say of an error."""
    if isinstance(error, ConfigError):
        return error.problems
    culprit = plugin_option.culprit(error)
    blame = f"plugin {culprit!r}: " if culprit else ""
    if isinstance(error, (VitkitError, FloatingPointError, OSError)):
        return [f"{blame}{line}" for line in str(error).splitlines()]
    where = "" if _debug else " (vitkit --debug ... shows where)"
    return [f"{blame}{type(error).__name__}: {error}{where}"]
