"""``vitkit train``."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated, Any

import typer

from vitkit.cli.plugin_option import PluginFiles, loaded
from vitkit.cli.plugin_use import as_word, compare, plugin_options, prints_aside
from vitkit.cli.run_options import (
    Backend,
    BatchSize,
    ConfigFiles,
    DataDir,
    Dataset,
    Epochs,
    LearningRate,
    Model,
    Precision,
    Seed,
    Settings,
    flags,
)
from vitkit.cli.streams import on_a_line, show_json
from vitkit.signals import STOPPED

CODES = {reason: 128 + number for number, reason in STOPPED.items()}
"""The exit code of a run that a signal has stopped, by what it is called."""


def train(
    dataset: Dataset = None,
    data_dir: DataDir = None,
    model: Model = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: LearningRate = None,
    backend: Backend = None,
    precision: Precision = None,
    seed: Seed = None,
    max_time: Annotated[
        str | None, typer.Option("--max-time", help="End after this time, such as 90s or 2h.")
    ] = None,
    config: ConfigFiles = None,
    settings: Settings = None,
    plugin: PluginFiles = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Last part of the run folder's name.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Where run folders are made.")] = Path("runs"),
    resume: Annotated[
        str | None,
        typer.Option(
            "--resume",
            metavar="RUN",
            help="Go on with a run folder, or 'auto': the latest under --out.",
        ),
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Show the time of a step by operation.")
    ] = False,
    profile_steps: Annotated[
        int, typer.Option("--profile-steps", min=1, help="How many steps --profile measures.")
    ] = 10,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the configuration and do nothing.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Train a ViT; without options, on digits that ship with vitkit."""
    from vitkit.checkpoint import latest
    from vitkit.checkpoint.files import load_document
    from vitkit.cli.display import Console
    from vitkit.config.load import dumps, load
    from vitkit.config.preflight import preflight
    from vitkit.config.prepare import further_problems, refuse
    from vitkit.config.runner import folder_name, run
    from vitkit.plugins import registries

    loaded()
    given = flags(
        dataset=dataset,
        data_dir=data_dir,
        model=model,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        backend=backend,
        precision=precision,
        seed=seed,
    )
    given |= {"train.max_time": max_time, "name": name}
    files = list(config or [])
    folder = None
    if resume is not None:
        folder = _folder_to_resume(resume, out)
        files.insert(0, folder / "config.toml")
    with prints_aside():
        chosen = load(files, settings or (), given, check=further_problems)
        if folder is not None:
            compare(load_document(latest(folder), "trainer"), chosen)
        if print_config:
            refuse(preflight(chosen, None, None, registries()))
    if print_config:
        typer.echo(dumps(chosen), nl=False)
        return
    folder = folder or _new(out / folder_name(chosen))
    console = Console(quiet=quiet)
    with prints_aside():
        summary = run(
            chosen,
            folder,
            console,
            resume=resume is not None,
            profile_steps=profile_steps if profile else 0,
        )
    _report(summary, folder, as_json)
    raise typer.Exit(CODES.get(summary["stopped"], 0))


def _new(folder: Path) -> Path:
    """Return a folder that is not there yet, for runs that start in the same second."""
    numbers = itertools.count(2)
    new = folder
    while new.exists():
        new = folder.with_name(f"{folder.name}-{next(numbers)}")
    return new


def _folder_to_resume(resume: str, out: Path) -> Path:
    from vitkit.checkpoint import entries
    from vitkit.errors import CheckpointError

    if resume != "auto":
        folder = Path(resume)
        if not (folder / "config.toml").is_file():
            raise CheckpointError(
                f"{folder} is no run folder: it has no config.toml. Give a folder that "
                "'vitkit train' has written, or --resume auto for the latest."
            )
        return folder
    # Not by last.json, which is written after the first checkpoint, nor by folders' times, which
    # pruning changes.
    found = [
        (entry.path.stat().st_mtime_ns, config.parent)
        for config in out.glob("*/config.toml")
        for entry in entries(config.parent)
    ]
    if not found:
        raise CheckpointError(f"There is nothing to resume under {out}.")
    return max(found)[1]


def _report(summary: dict[str, Any], folder: Path, as_json: bool) -> None:
    """Print the results and what to try next."""
    if as_json:
        show_json({**summary, "folder": str(folder)})
        return
    if summary["test_accuracy"] is not None:
        note = f" ({summary['note']})" if summary["note"] else ""
        typer.echo(
            f"test accuracy {summary['test_accuracy']:.2%} on {summary['test_images']} "
            f"images{note}, trained in {summary['seconds']:.1f} s"
        )
    if summary["train_note"]:
        typer.echo(f"training data {summary['train_note']}")
    typer.echo(f"run folder    {on_a_line(folder)}")
    if (folder / "profile.json").exists():
        typer.echo(f"profile       {on_a_line(folder / 'profile.json')}")
    for picture in summary["plots"]:
        typer.echo(f"picture       {on_a_line(folder / picture)}")
    typer.echo("\nNext, try:")
    if summary["stopped"] in CODES:
        typer.echo(f"  vitkit train {plugin_options()}--resume {as_word(folder)}")
        return
    typer.echo(f"  vitkit evaluate {plugin_options()}{as_word(folder)}")
    typer.echo(f"  vitkit predict {plugin_options()}{as_word(folder)} IMAGE.png")
    if summary["dataset"] == "digits":
        typer.echo("  vitkit data prepare mnist && vitkit train --dataset mnist")
