"""Pictures of a run; they need Matplotlib, the extra ``plot``, imported when one is made."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from vitkit.backend import to_numpy
from vitkit.data import Dataset
from vitkit.models import ViT
from vitkit.train.evaluate import predict
from vitkit.train.preprocess import Preprocess
from vitkit.train.rows import read_rows

MISSING = "No pictures: Matplotlib is not installed. Get it with: pip install 'vitkit[plot]'"


def available() -> bool:
    """Return whether pictures can be made here."""
    return importlib.util.find_spec("matplotlib") is not None


def learning_curve(metrics: Path, path: Path) -> None:
    """Draw loss and accuracy over the epochs from a ``metrics.jsonl``.

    Parameters
    ----------
    metrics : Path
        The rows of a run.
    path : Path
        The picture; its ending says which format.
    """
    epochs = [row for row in read_rows(metrics)[0] if row["event"] == "epoch"]
    figure, axes = _subplots(1, 2, (9, 3.4))
    panels = (("loss", "loss", axes[0, 0]), ("accuracy", "accuracy", axes[0, 1]))
    for metric, label, axis in panels:
        for part, style in (("train", "--"), ("val", "-")):
            points = [
                (r["epoch"], r[f"{part}_{metric}"]) for r in epochs if f"{part}_{metric}" in r
            ]
            if points:
                mark = "o" if len(points) == 1 else ""
                axis.plot(*zip(*points, strict=True), style, marker=mark, label=_PARTS[part])
        axis.set_xlabel("epoch")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
        if epochs:  # a run may have been stopped before the end of its first
            axis.legend(frameon=False)
    if epochs:
        axes[0, 0].set_yscale("log")
    _save(figure, path)


_PARTS = {"train": "training, as augmented", "val": "validation"}


def attention_picture(
    model: ViT, dataset: Dataset, preprocess: Preprocess, path: Path, *, count: int = 6
) -> None:
    """Draw where each block looks in some images.

    A row an image: the image with its class and the model's guess, then for each block how much
    the class token (or, without one, the average token) takes from each patch, averaged over
    heads, over the image.

    Parameters
    ----------
    model : ViT
        The model.
    dataset : Dataset
        Where images are taken from, evenly spaced.
    preprocess : Preprocess
        How the model sees pixels.
    path : Path
        The picture; its ending says which format.
    count : int, default 6
        How many images.
    """
    chosen = np.unique(np.linspace(0, len(dataset) - 1, count).astype(int))
    pixels = dataset.images(chosen)
    guesses = predict(model, pixels, preprocess)
    maps = _patch_maps(model, preprocess(pixels, model))  # (depth, B, rows, columns)
    depth = len(maps)
    figure, axes = _subplots(len(chosen), depth + 1, (1.5 * (depth + 1), 1.62 * len(chosen)))
    height, width = dataset.image_shape[1:]
    for row, index in enumerate(chosen):
        image = _shown(pixels[row], dataset.scale)
        guess = int(guesses[row].argmax())
        truth = dataset.classes[dataset.labels[index]]
        axes[row, 0].imshow(image, cmap="gray", vmin=0, vmax=1)
        axes[row, 0].set_title(
            f"{truth}: {dataset.classes[guess]} {guesses[row, guess]:.0%}",
            fontsize=8,
            parse_math=False,
        )
        for block in range(depth):
            axis = axes[row, block + 1]
            axis.imshow(image, cmap="gray", vmin=0, vmax=1)
            axis.imshow(
                maps[block, row],
                cmap="inferno",
                alpha=0.6,
                extent=(-0.5, width - 0.5, height - 0.5, -0.5),
            )
            if row == 0:
                axis.set_title(f"block {block}", fontsize=8)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.suptitle("truth: guess, and where each block looks", fontsize=9)
    _save(figure, path)


def _patch_maps(model: ViT, images: Any) -> np.ndarray:
    """Return (depth, B, rows, columns): what is taken from each patch, largest 1."""
    maps = to_numpy(model.attention_maps(images)).mean(axis=2)  # (depth, B, N, N)
    taken = maps[:, :, 0, 1:] if model.config.pool == "cls" else maps.mean(axis=2)
    taken = taken / taken.max(axis=-1, keepdims=True)
    return np.asarray(taken.reshape(*taken.shape[:2], *model.config.grid))


def _shown(image: np.ndarray, scale: float) -> np.ndarray:
    """Return an image as Matplotlib wants it: (H, W) or (H, W, 3), from 0 to 1."""
    scaled = image.astype(np.float32) / scale
    return scaled.transpose(1, 2, 0) if len(image) == 3 else scaled[0]


def _subplots(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():  # a letter that the font lacks is a box, and no news
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(path, dpi=120)
