"""``vitkit doctor``: what is wrong with a step that was not finite, or with a run to come."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vitkit.cli.plugin_option import PluginFiles, loaded
from vitkit.cli.plugin_use import compare, prints_aside
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
from vitkit.cli.streams import show_json


def doctor(
    path: Annotated[
        Path | None,
        typer.Argument(metavar="[PATH]", help="Run folder, or a folder bad-step-NNNNNNNN in it."),
    ] = None,
    dataset: Dataset = None,
    data_dir: DataDir = None,
    model: Model = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: LearningRate = None,
    backend: Backend = None,
    precision: Precision = None,
    seed: Seed = None,
    config: ConfigFiles = None,
    settings: Settings = None,
    plugin: PluginFiles = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Find what is wrong with a refused step, or with settings.

    With PATH, a step that ended or was skipped for a number that is not finite is made again, and
    the first such number is named. Without, a run is looked at before it is trained, as the same
    options of 'vitkit train' would make it. Exits with 1 where something is wrong.
    """
    from vitkit.errors import ConfigError

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
    if path is None:
        sound = _run_to_come(list(config or []), list(settings or []), given, as_json)
    elif config or settings or any(value is not None for value in given.values()):
        raise ConfigError(
            f"PATH: got {str(path)!r} and settings, expected one of the two: a step is made again "
            "with its own."
        )
    else:
        sound = _bad_step(path, as_json)
    raise typer.Exit(0 if sound else 1)


def _run_to_come(
    files: list[Path], settings: list[str], given: dict[str, Any], as_json: bool
) -> bool:
    """Look at a run before it is trained; return whether it is sound."""
    from vitkit.config.checkup import Checkup, checkup, remarks_of
    from vitkit.config.load import load
    from vitkit.config.prepare import further_problems
    from vitkit.errors import ConfigError
    from vitkit.plugins import registries

    with prints_aside():
        try:
            found = checkup(load(files, settings, given, check=further_problems), registries())
        except ConfigError as error:
            found = Checkup(remarks_of(error))
    if as_json:
        show_json(found.to_dict())
        return not found.remarks
    for name, fact in found.facts.items():
        typer.echo(f"{name:<20} {fact}")
    for remark in found.remarks:
        typer.echo(f"wrong: {remark}")
    if not found.remarks:
        typer.echo("Nothing looks wrong.")
    return not found.remarks


def _bad_step(path: Path, as_json: bool) -> bool:
    """Make a step again; return whether it is sound."""
    from vitkit.checkpoint.files import load_document
    from vitkit.config.bad_step import latest_bad_step, open_bad_step
    from vitkit.plugins import registries
    from vitkit.train.bad_steps import cure_of

    place = latest_bad_step(path)
    if place is None:
        if as_json:
            show_json({"bad_step": None, "sound": True, "found": None})
        else:
            typer.echo(f"{path} has no bad step: none of its steps was refused.")
        return True
    with prints_aside():
        compare(load_document(place, "trainer"))
        step = open_bad_step(place, registries())
        finding = step.find() or step.find_in_update()
    if as_json:
        found = finding.to_dict() if finding else None
        show_json({"bad_step": str(place), "sound": finding is None, "found": found})
    elif finding is None:
        typer.echo(f"{place}: step {step.step + 1}, made again on this machine, is finite.")
    else:
        typer.echo(f"{place}: step {step.step + 1}")
        typer.echo(str(finding))
        typer.echo(cure_of(finding))
    return finding is None
