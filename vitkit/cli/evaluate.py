"""``vitkit evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitkit.cli.plugin_option import PluginFiles, loaded
from vitkit.cli.plugin_use import compare, prints_aside
from vitkit.cli.streams import on_a_line, show_json

if TYPE_CHECKING:
    from vitkit.train import Metrics

LARGEST_MATRIX = 20  # classes; a larger confusion matrix does not fit a screen


def evaluate(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Run folder, or a folder under its checkpoints/.")
    ],
    part: Annotated[
        str, typer.Option("--split", metavar="PART", help="Which images: test, val or train.")
    ] = "test",
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="Where the data set's files are.")
    ] = None,
    which: Annotated[str, typer.Option("--which", help="Checkpoint: best or last.")] = "best",
    weights: Annotated[
        str, typer.Option("--weights", help="raw, ema, or auto: ema where there is one.")
    ] = "auto",
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Images at once; no result depends on it.")
    ] = 256,
    backend: Annotated[str, typer.Option("--backend", help="numpy, cupy or auto.")] = "auto",
    plugin: PluginFiles = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Show the accuracy of a model, by class too, and its confusions.

    The images are the test images, unless --split names others.
    """
    from vitkit.cli.display import Console
    from vitkit.config.build import load_data, loss_of, parts_of
    from vitkit.config.load import load
    from vitkit.data import Loader
    from vitkit.errors import ConfigError
    from vitkit.train import evaluate as measure
    from vitkit.train import restore

    place = run.resolve()
    folder = place.parent.parent if place.parent.name == "checkpoints" else run
    # Without the environment: VITKIT_SEED would hold back other images than training did.
    flags = {"data.path": str(data_dir) if data_dir else None}
    with prints_aside():
        restored = restore(run, backend=backend, which=which, weights=weights)
        config = load([folder / "config.toml"], (), flags, environ={})
        compare(restored.checkpoint.documents["trainer"], config, ("dataset", "loss"))
        names = loaded().registries
        images = parts_of(config, load_data(config, names))
        loss = loss_of(config, names)
        if part not in images:
            known = ", ".join(sorted(images))
            raise ConfigError(f"--split: got {part!r}; expected one of {known}")
        with Console().counting(part, len(images[part])) as on_batch:
            found = measure(
                restored.model,
                Loader(images[part], batch_size),
                loss=loss,
                preprocess=restored.preprocess,
                on_batch=on_batch,
                # A run that insists on graphs may be evaluated where there can be none.
                graph=False if config.train.graph is False else None,
            )
    show = _print_json if as_json else _print
    show(str(restored.checkpoint.path), part, images[part].note, found)


def _print_json(checkpoint: str, part: str, note: str, found: Metrics) -> None:
    head = {"checkpoint": checkpoint, "split": part, "note": note}
    show_json({**head, **found.to_dict()})


def _print(checkpoint: str, part: str, note: str, found: Metrics) -> None:
    remark = f" ({note})" if note else ""
    typer.echo(f"{checkpoint}, {part} images: {found.count}{remark}")
    typer.echo(f"top-1 {found.accuracy:.2%}   top-5 {found.top5:.2%}   loss {found.loss:.4f}\n")
    _print_classes(found)
    if len(found.classes) <= LARGEST_MATRIX:
        _print_confusion(found)


def _print_classes(found: Metrics) -> None:
    width = max(len("class"), *(len(on_a_line(name)) for name in found.classes))
    typer.echo(f"{'class':<{width}}  precision  recall      F1  images")
    for row in found.per_class():
        typer.echo(
            f"{on_a_line(row['class']):<{width}}  {row['precision']:9.2%} {row['recall']:7.2%} "
            f"{row['f1']:7.2%} {row['support']:7d}"
        )


def _print_confusion(found: Metrics) -> None:
    cell = max(5, *(len(str(number)) + 1 for number in found.confusion.flat))
    names = [on_a_line(name) for name in found.classes]
    width = max(map(len, names))
    typer.echo("\nconfusion matrix: row = truth, column = guess")
    header = "".join(f"{name[: cell - 1]:>{cell}}" for name in names)
    typer.echo(f"{'':<{width}}{header}")
    for name, row in zip(names, found.confusion, strict=True):
        typer.echo(f"{name:<{width}}" + "".join(f"{number:>{cell}}" for number in row))
