"""``vitkit contact-sheet``: a data set at a glance."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from vitkit.data import Dataset

GAP = 2


def contact_sheet(
    name: Annotated[
        str, typer.Argument(help="The data set; 'vitkit data list' names them.")
    ] = "photo_patches",
    folder: Annotated[Path | None, typer.Option("--data-dir", help="Where its files are.")] = None,
    out: Annotated[Path, typer.Option("--out", help="The picture to write.")] = Path(
        "contact-sheet.png"
    ),
    columns: Annotated[int, typer.Option(min=1, help="Images of each class.")] = 16,
) -> None:
    """Write a picture with some training images of each class, a row for each."""
    from PIL import Image

    from vitkit.config.build import load_data
    from vitkit.config.run import DataConfig, RunConfig
    from vitkit.plugins import registries

    data = DataConfig(name=name, path=str(folder) if folder else None)
    train = load_data(RunConfig(data=data), registries()).train
    pixels = sheet(train, columns)
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(out)
    for row, each in enumerate(train.classes):
        typer.echo(f"row {row + 1:>3}  {each}")
    typer.echo(f"{out} has {pixels.shape[1]}x{pixels.shape[0]} pixels")


def sheet(dataset: Dataset, columns: int) -> np.ndarray:
    """Return a picture with a row of images for each class.

    Parameters
    ----------
    dataset : Dataset
        The images.
    columns : int
        How many of each class, evenly spread over the data set; fewer where it has fewer.

    Returns
    -------
    numpy.ndarray, uint8 (height, width, C)
        From 0 to 255, black where no image is.
    """
    channels, height, width = dataset.image_shape
    down, across = height + GAP, width + GAP
    pixels = np.zeros((len(dataset.classes) * down - GAP, columns * across - GAP, channels), "u1")
    for row in range(len(dataset.classes)):
        members = np.flatnonzero(dataset.labels == row)
        picked = members[np.arange(columns) * len(members) // columns] if len(members) else members
        for column, image in enumerate(dataset.images(np.unique(picked))):
            scaled = np.rint(image.transpose(1, 2, 0) * (255 / dataset.scale))
            y, x = row * down, column * across
            pixels[y : y + height, x : x + width] = scaled
    return pixels
