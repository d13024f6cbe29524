"""``vitkit predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitkit.cli.plugin_option import PluginFiles
from vitkit.cli.plugin_use import compare, prints_aside
from vitkit.cli.streams import on_a_line, show_json


def predict(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Run folder, or a folder under its checkpoints/.")
    ],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Image files.")],
    top: Annotated[int, typer.Option("--top", min=1, help="How many classes to show.")] = 3,
    invert: Annotated[
        bool,
        typer.Option("--invert", help="Dark on light to light on dark, as MNIST and digits are."),
    ] = False,
    which: Annotated[str, typer.Option("--which", help="Checkpoint: best or last.")] = "best",
    backend: Annotated[str, typer.Option("--backend", help="numpy, cupy or auto.")] = "auto",
    plugin: PluginFiles = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Say what is in images, with probabilities."""
    from dataclasses import replace

    import numpy as np

    from vitkit.data.images import read_images
    from vitkit.train import predict as guess
    from vitkit.train import restore

    with prints_aside():
        restored = restore(run, backend=backend, which=which)
        compare(restored.checkpoint.documents["trainer"])
        sizes = restored.model.config
        shape = (sizes.in_channels, *sizes.image_size)
        pixels = read_images(images, shape)
        # Files hold pixels up to 255, whatever the training images were divided by.
        preprocess = replace(restored.preprocess, scale=255.0)
        probabilities = guess(
            restored.model,
            255 - pixels if invert else pixels,
            preprocess,
            graph=False,  # decoding files takes far longer than asking a GPU for each kernel
        )
    results = []
    for path, row in zip(images, probabilities, strict=True):
        best = np.argsort(-row, kind="stable")[:top]
        results.append((path, [(restored.classes[k], float(row[k])) for k in best]))
    if as_json:
        listed = [
            {"image": str(path), "classes": [{"class": c, "probability": p} for c, p in guesses]}
            for path, guesses in results
        ]
        show_json(listed)
        return
    width = max(len(on_a_line(path)) for path in images)
    for path, guesses in results:
        shown = "  ".join(f"{on_a_line(c)} {p:.2%}" for c, p in guesses)
        typer.echo(f"{on_a_line(path):<{width}}  {shown}")
