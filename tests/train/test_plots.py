"""Pictures that Pillow opens, whatever the run and the names of its classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vitkit.data import ArrayDataset
from vitkit.models import ViT
from vitkit.train import Preprocess, plots

pytest.importorskip("matplotlib", reason="Matplotlib, the extra 'plot', is missing")


def colours(path: Path) -> int:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return len(image.convert("RGB").getcolors(1 << 24) or [])


@pytest.mark.parametrize("epochs", [0, 1, 5])
@pytest.mark.parametrize("validated", [True, False])
def test_a_learning_curve(epochs: int, validated: bool, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"event": "step", "step": 1, "epoch": 0, "train_loss": 2.0}]
    for epoch in range(1, epochs + 1):
        found = {"train_loss": 2 / epoch, "train_accuracy": 1 - 1 / epoch}
        if validated and epoch % 2:
            found |= {"val_loss": 3 / epoch, "val_accuracy": 0.5}
        rows.append({"event": "epoch", "step": epoch, "epoch": epoch, **found})
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plots.learning_curve(metrics, tmp_path / "plots" / "curve.png")
    assert colours(tmp_path / "plots" / "curve.png") > 10


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("channels", [1, 3])
def test_where_a_model_looks(
    pool: str,
    channels: int,
    tmp_path: Path,
    make_data: Callable[..., ArrayDataset],
    make_model: Callable[..., ViT],
) -> None:
    gray = make_data(7)
    data = ArrayDataset(
        gray.images(range(7)).repeat(channels, axis=1),  # type: ignore[arg-type]
        gray.labels,
        classes=["$", "a_$b$^", r"\frac", "<b>"],  # names of folders, not formulas
        scale=16.0,
    )
    model = make_model(pool=pool, in_channels=channels)
    path = tmp_path / "attention.png"
    plots.attention_picture(model, data, Preprocess.of(data), path, count=3)
    assert colours(path) > 100
