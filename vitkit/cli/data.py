"""``vitkit data``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="List, download and verify data sets.", no_args_is_help=True, rich_markup_mode=None
)
Folder = Annotated[
    Path | None, typer.Option("--data-dir", help="Where the files are, or are to be.")
]


@app.command("list")
def list_() -> None:
    """Show the data sets, and which of them are here."""
    from vitkit.data import SOURCES, data_dir

    typer.echo(f"data folder: {data_dir()}\n")
    typer.echo("digits         here       UCI handwritten digits, 8x8 (CC BY 4.0), in the package")
    for name, source in SOURCES.items():
        typer.echo(f"{name:<14} {_state(name):<10} {source.title} ({source.licence})")
    typer.echo("folder         --data-dir your images, one folder a class")
    typer.echo("npz            --data-dir arrays: x_train, y_train, x_test, y_test")


def _state(name: str) -> str:
    from vitkit.data import verify
    from vitkit.errors import DataError

    try:
        return "damaged" if verify(name) else "here"
    except DataError:
        return "not here"


@app.command("prepare")
def prepare(
    name: Annotated[str, typer.Argument(help="mnist, fashion_mnist, cifar10 or cifar100.")],
    folder: Folder = None,
) -> None:
    """Download a data set and check it.

    No other command downloads anything.
    """
    from vitkit.cli.display import Console
    from vitkit.data import prepare as download

    with Console().downloading() as progress:
        place = download(name, folder, progress=progress)
    typer.echo(f"{name} is in {place}")


@app.command("verify")
def verify(
    name: Annotated[str, typer.Argument(help="mnist, fashion_mnist, cifar10 or cifar100.")],
    folder: Folder = None,
) -> None:
    """Check every file of a data set; exit 1 if something is wrong."""
    from vitkit.data import verify as check

    problems = check(name, folder)
    for problem in problems:
        typer.echo(problem)
    if problems:
        raise typer.Exit(1)
    typer.echo(f"{name}: every file is as published")
