"""``vitkit checkpoint``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitkit.cli.streams import show_json

app = typer.Typer(
    help="List, verify and prune a run's checkpoints.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Run = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print everything as JSON.")]


@app.command("list")
def list_(run: Run, as_json: AsJson = False) -> None:
    """Show the checkpoints of a run, the latest first."""
    from vitkit.checkpoint.runs import overview

    rows = overview(run)
    if as_json:
        show_json(rows)
        return
    width = max(len("checkpoint"), *(len(row["name"]) for row in rows))
    typer.echo(f"{'checkpoint':<{width}}      step   epoch         MB  remarks")
    for row in rows:
        epoch = "" if row["epoch"] is None else row["epoch"]
        remarks = ", ".join(row["remarks"])
        typer.echo(
            f"{row['name']:<{width}}  {row['step']:8d}  {epoch:>6}  {row['bytes'] / 1e6:9.2f}"
            f"  {remarks}".rstrip()
        )


@app.command()
def verify(
    path: Annotated[
        Path, typer.Argument(metavar="RUN", help="Run folder, or a folder under its checkpoints/.")
    ],
    as_json: AsJson = False,
) -> None:
    """Compare checkpoints with their manifests.

    Every byte is read. Exit code 1 where one is damaged.
    """
    from vitkit.checkpoint.runs import inspect

    found = inspect(path)
    if as_json:
        show_json([{"checkpoint": str(place), "problem": problem} for place, problem in found])
    else:
        for place, problem in found:
            typer.echo(problem or f"{place}: whole, every hash is right.")
    raise typer.Exit(1 if any(problem for _, problem in found) else 0)


@app.command()
def prune(
    run: Run,
    keep: Annotated[
        int, typer.Option("--keep", min=1, help="How many of the latest to keep, beside the best.")
    ] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove all but the latest and the best.

    What is kept is verified first, and nothing goes where nothing whole would stay.
    """
    from vitkit.checkpoint.runs import FOLDER, prunable, remove
    from vitkit.config.lock import locked

    if not (run / FOLDER).is_dir():
        from vitkit.errors import CheckpointError

        raise CheckpointError(f"{run} is no run folder: it has no {FOLDER}/.")
    if dry_run:
        paths = prunable(run, keep)
    else:
        with locked(run):
            paths = prunable(run, keep)
            remove(paths)
    left = [] if dry_run else [path for path in paths if path.exists()]
    paths = [path for path in paths if path not in left]
    if as_json:
        show_json({"removed": [str(path) for path in paths], "dry_run": dry_run})
        return
    for path in paths:
        typer.echo(f"{'would remove' if dry_run else 'removed'} {path}")
    for path in left:
        typer.echo(f"vitkit: {path} cannot be removed: see to its permissions.", err=True)
    if left:
        raise typer.Exit(1)
    if not paths:
        typer.echo("nothing to remove")
