"""``vitkit bench``."""

from __future__ import annotations

from typing import Annotated

import typer

from vitkit.cli.plugin_option import PluginFiles
from vitkit.cli.plugin_use import prints_aside


def bench(
    model: Annotated[str, typer.Option("--model", help="Size and patch.")] = "Ti/4",
    image_size: Annotated[
        int, typer.Option("--image-size", min=1, help="Pixels a side, of 3 channels.")
    ] = 32,
    depth: Annotated[int, typer.Option("--depth", min=1, help="Blocks.")] = 6,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images at once.")] = 32,
    num_classes: Annotated[int, typer.Option("--num-classes", min=1, help="Outputs.")] = 10,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Timed repetitions.")] = 5,
    backend: Annotated[str, typer.Option("--backend", help="numpy, cupy or auto.")] = "auto",
    plugin: PluginFiles = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Time training steps and inference of a model on this machine."""
    from vitkit.models import ViT
    from vitkit.train.speed import measure

    with prints_aside():
        vit = ViT(
            model, image_size=image_size, depth=depth, num_classes=num_classes, backend=backend
        )
        found = measure(vit, batch_size=batch_size, rounds=rounds)
    if as_json:
        import json

        typer.echo(json.dumps({"model": repr(vit), "batch_size": batch_size, **found}, indent=1))
        return
    typer.echo(repr(vit))
    typer.echo(f"batch {batch_size}, median of {rounds}")
    for what in ("train", "infer"):
        row = found[what]
        typer.echo(
            f"{what:<6} {row['seconds'] * 1e3:9.1f} ms  {row['images_per_second']:9.1f} img/s  "
            f"{row['gflops']:8.1f} GFLOP/s"
        )
