"""``vitkit doctor``: what is wrong with a step that was not finite, or with a run to come."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vitkit.cli.plugin_option import PluginFiles, loaded
from vitkit.cli.plugin_use import compare, prints_aside


def doctor(
    path: Annotated[
        Path | None,
        typer.Argument(metavar="[PATH]", help="Run folder, or a folder bad-step-NNNNNNNN in it."),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="Data set; 'vitkit data list' names them.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="Where its files are.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Size and patch, such as Ti/4 or B/16.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", help="How often every image is seen.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Images at once.")] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Peak learning rate.")] = None,
    backend: Annotated[
        str | None, typer.Option("--backend", help="numpy, cupy, or auto (the default).")
    ] = None,
    precision: Annotated[
        str | None, typer.Option("--precision", help="What products are made of.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Where all random numbers come from.")
    ] = None,
    config: Annotated[
        list[Path] | None,
        typer.Option("--config", metavar="FILE", help="Settings as TOML; may be repeated."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=VALUE", help="One setting; may be repeated."),
    ] = None,
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
    flags: dict[str, Any] = {
        "data.name": dataset,
        "data.path": str(data_dir) if data_dir else None,
        "model.variant": model,
        "train.epochs": epochs,
        "train.batch_size": batch_size,
        "train.lr": lr,
        "train.precision": precision,
        "backend": backend,
        "seed": seed,
    }
    if path is None:
        sound = _run_to_come(list(config or []), list(settings or []), flags, as_json)
    elif config or settings or any(value is not None for value in flags.values()):
        raise ConfigError(
            f"PATH: got {str(path)!r} and settings, expected one of the two: a step is made again "
            "with its own."
        )
    else:
        sound = _bad_step(path, as_json)
    raise typer.Exit(0 if sound else 1)


def _run_to_come(
    files: list[Path], settings: list[str], flags: dict[str, Any], as_json: bool
) -> bool:
    """Look at a run before it is trained; return whether it is sound."""
    from vitkit.config.checkup import Checkup, checkup, remarks_of
    from vitkit.config.load import load
    from vitkit.config.prepare import further_problems
    from vitkit.errors import ConfigError
    from vitkit.plugins import registries

    with prints_aside():
        try:
            found = checkup(load(files, settings, flags, check=further_problems), registries())
        except ConfigError as error:
            found = Checkup(remarks_of(error))
    if as_json:
        _print_json(found.to_dict())
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
            _print_json({"bad_step": None, "sound": True, "found": None})
        else:
            typer.echo(f"{path} has no bad step: none of its steps was refused.")
        return True
    with prints_aside():
        compare(load_document(place, "trainer"))
        step = open_bad_step(place, registries())
        finding = step.find() or step.find_in_update()
    if as_json:
        found = finding.to_dict() if finding else None
        _print_json({"bad_step": str(place), "sound": finding is None, "found": found})
    elif finding is None:
        typer.echo(f"{place}: step {step.step + 1}, made again on this machine, is finite.")
    else:
        typer.echo(f"{place}: step {step.step + 1}")
        typer.echo(str(finding))
        typer.echo(cure_of(finding))
    return finding is None


def _print_json(found: dict[str, Any]) -> None:
    import json

    typer.echo(json.dumps(found, indent=1))
