"""``vitkit verify``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitkit.cli.plugin_option import PluginFiles, loaded
from vitkit.cli.plugin_use import compare, prints_aside
from vitkit.cli.streams import show_json

if TYPE_CHECKING:
    from vitkit.config.verify import Verified


def verify(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps", min=1, help="How many; by default to the last that is recorded, at most 100."
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option("--from", metavar="NAME", help="The checkpoint to begin at."),
    ] = None,
    plugin: PluginFiles = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Make steps of a run again, and compare their bits.

    They begin at a checkpoint; later checkpoints and metrics.jsonl are what they are compared with.
    The run folder is left as it is. Exit code 1 where something differs.
    """
    from vitkit.checkpoint import entries, latest
    from vitkit.checkpoint.files import load_document
    from vitkit.cli.display import Console
    from vitkit.config.load import load
    from vitkit.config.verify import verify as execute

    loaded()
    with prints_aside():
        if entries(run) and (run / "config.toml").is_file():
            config = load([run / "config.toml"], environ={})
            compare(load_document(latest(run), "trainer"), config)
        found = execute(run, Console(quiet=quiet), steps=steps, start=start)
    if as_json:
        show_json({**asdict(found), "same": found.same})
    else:
        _print(found)
    raise typer.Exit(0 if found.same else 1)


def _print(found: Verified) -> None:
    plural = "" if found.steps == 1 else "s"
    again = ", twice: the run has recorded nothing in reach" if found.twice else ""
    typer.echo(f"{found.steps} step{plural} from {found.start}{again}")
    for line in found.environment:
        typer.echo(line)
    for each in found.compared:
        what = f"{each['rows']} rows" if "rows" in each else ", ".join(each["equal"])
        verdict = f"the same bits: {what}" if each["same"] else "; ".join(each["differs"])
        typer.echo(f"{each['what']:<22} {verdict}")
    typer.echo("the same" if found.same else "NOT the same")
