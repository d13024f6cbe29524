"""``vitkit``: the commands, and how errors end."""

from __future__ import annotations

import sys
import traceback
from typing import Annotated

import typer

from vitkit._version import __version__
from vitkit.cli import bench, data, evaluate, info, predict, train
from vitkit.errors import ConfigError, VitkitError

EPILOG = (
    "Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted, 143 terminated."
)

app = typer.Typer(
    name="vitkit",
    help="Vision Transformers on NumPy and CuPy, every gradient written by hand.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("train")(train.train)
app.command("evaluate")(evaluate.evaluate)
app.command("predict")(predict.predict)
app.add_typer(data.app, name="data")
app.command("info")(info.info)
app.command("bench")(bench.bench)

_debug = False


def _version(value: bool) -> None:
    if value:
        typer.echo(f"vitkit {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Keep the options that come before the command."""
    global _debug
    _debug = debug


def main() -> None:
    """Run the command line; errors become a line, or one for each problem, and an exit code."""
    try:
        app()
    except Exception as error:
        if _debug:
            traceback.print_exc()
        for line in _lines(error):
            typer.echo(f"vitkit: {line}", err=True)
        sys.exit(2 if isinstance(error, ConfigError) else 1)


def _lines(error: Exception) -> list[str]:
    """Return what to say of an error."""
    if isinstance(error, ConfigError):
        return error.problems
    if isinstance(error, (VitkitError, FloatingPointError, OSError)):
        return [str(error)]
    where = "" if _debug else " (vitkit --debug ... shows where)"
    return [f"{type(error).__name__}: {error}{where}"]
