"""The options that say what a run is, for the commands that take them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Dataset = Annotated[
    str | None, typer.Option("--dataset", help="Data set; 'vitkit data list' names them.")
]
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Where its files are.")]
Model = Annotated[str | None, typer.Option("--model", help="Size and patch, such as Ti/4 or B/16.")]
Epochs = Annotated[int | None, typer.Option("--epochs", help="How often every image is seen.")]
BatchSize = Annotated[int | None, typer.Option("--batch-size", help="Images at once.")]
LearningRate = Annotated[float | None, typer.Option("--lr", help="Peak learning rate.")]
Backend = Annotated[
    str | None, typer.Option("--backend", help="numpy, cupy, or auto (the default).")
]
Precision = Annotated[
    str | None,
    typer.Option(
        "--precision",
        help="What products are made of: float32 (the default), tf32, bfloat16 or float16.",
    ),
]
Seed = Annotated[int | None, typer.Option("--seed", help="Where all random numbers come from.")]
ConfigFiles = Annotated[
    list[Path] | None,
    typer.Option("--config", metavar="FILE", help="Settings as TOML; may be repeated."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=VALUE", help="One setting; may be repeated."),
]


def flags(
    *,
    dataset: str | None,
    data_dir: Path | None,
    model: str | None,
    epochs: int | None,
    batch_size: int | None,
    lr: float | None,
    backend: str | None,
    precision: str | None,
    seed: int | None,
) -> dict[str, Any]:
    """Return the settings that these options stand for; None where one was not given."""
    return {
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
