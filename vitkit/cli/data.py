"""``vitkit data``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitkit.cli.plugin_option import PluginFiles, loaded

if TYPE_CHECKING:
    from vitkit.registry import Entry

app = typer.Typer(
    help="List, prepare and verify data sets.", no_args_is_help=True, rich_markup_mode=None
)
Name = Annotated[
    str, typer.Argument(help="mnist, fashion_mnist, cifar10, cifar100, or a plugin's data set.")
]
Folder = Annotated[
    Path | None, typer.Option("--data-dir", help="Where the files are, or are to be.")
]


@app.command("list")
def list_(plugin: PluginFiles = None) -> None:
    """Show the data sets, and which of them are here."""
    from vitkit.data import SOURCES, data_dir

    typer.echo(f"data folder: {data_dir()}\n")
    typer.echo("digits         here       UCI handwritten digits, 8x8 (CC BY 4.0), in the package")
    for name, source in SOURCES.items():
        typer.echo(f"{name:<14} {_state(name):<10} {source.title} ({source.licence})")
    typer.echo("folder         --data-dir your images, one folder a class")
    typer.echo("npz            --data-dir arrays: x_train, y_train, x_test, y_test")
    for entry in _of_plugins():
        title = entry.details.get("title")
        about = f"{title}; " if title else ""
        typer.echo(f"{entry.name:<14} {_state_of(entry):<10} {about}plugin {entry.plugin}")


def _state(name: str) -> str:
    from vitkit.data import verify
    from vitkit.errors import DataError

    try:
        return "damaged" if verify(name) else "here"
    except DataError:
        return "not here"


def _of_plugins() -> list[Entry]:
    """Return the data sets of plugins."""
    from vitkit.registry import BUILTIN

    return [e for e in loaded().registries.datasets.entries() if e.plugin != BUILTIN]


def _state_of(entry: Entry) -> str:
    """Return whether the files of a plugin's data set are here, without reading them."""
    from vitkit.data import data_dir

    if not entry.details.get("prepare"):
        return "as it is"  # nothing is known of its files, if it has any
    place = data_dir() / entry.name
    filled = place.is_dir() and any(not path.name.startswith(".") for path in place.iterdir())
    return "here" if filled else "not here"


def _of_a_plugin(name: str, done: str) -> Entry | None:
    """Return the data set of a plugin, or None where it is one that ships."""
    from vitkit.data import SOURCES
    from vitkit.errors import DataError
    from vitkit.registry import did_you_mean

    if name in (*SOURCES, "digits"):
        return None  # without loading any plugin
    known = {e.name: e for e in _of_plugins() if done == "verified" or e.details.get("prepare")}
    if name in known:
        return known[name]
    if any(name == entry.name for entry in _of_plugins()):
        raise DataError(f"{name}: its plugin has no step to prepare it; use it as it is.")
    names = (*SOURCES, *known)
    raise DataError(
        f"No dataset {name!r} can be {done}{did_you_mean(name, names)} Known: {', '.join(names)}."
    )


@app.command("prepare")
def prepare(name: Name, folder: Folder = None, plugin: PluginFiles = None) -> None:
    """Download or make the files of a data set, and check them.

    No other command does. A file that was copied to the folder, as its authors publish it, is not
    downloaded.
    """
    from vitkit.cli.display import Console
    from vitkit.data import data_dir
    from vitkit.data import prepare as download

    entry = _of_a_plugin(name, "prepared")
    if entry is None:
        with Console().downloading() as progress:
            place = download(name, folder, progress=progress)
    else:
        place = data_dir() / name if folder is None else folder
        with Console().downloading("preparing") as progress:
            place = entry.details["prepare"](place, progress) or place
    typer.echo(f"{name} is in {place}")


@app.command("verify")
def verify(name: Name, folder: Folder = None, plugin: PluginFiles = None) -> None:
    """Check every file of a data set; exit 1 if something is wrong.

    The files of a plugin's data set are read, as for training.
    """
    from vitkit.data import verify as check

    entry = _of_a_plugin(name, "verified")
    if entry is None:
        problems = check(name, folder)
        for problem in problems:
            typer.echo(problem)
        if problems:
            raise typer.Exit(1)
        typer.echo(f"{name}: every file is as published")
        return
    from vitkit.config.build import load_data
    from vitkit.config.run import DataConfig, RunConfig

    data = DataConfig(name=name, path=None if folder is None else str(folder))
    splits = load_data(RunConfig(data=data), loaded().registries)
    typer.echo(f"{name}: {len(splits.train)} training and {len(splits.test)} test images are read")
