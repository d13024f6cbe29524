"""``vitkit bench``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from vitkit.cli.plugin_option import PluginFiles
from vitkit.cli.plugin_use import prints_aside
from vitkit.cli.streams import show_json


def bench(
    model: Annotated[str, typer.Option("--model", help="Size and patch.")] = "Ti/4",
    image_size: Annotated[
        int, typer.Option("--image-size", min=1, help="Pixels a side, of 3 channels.")
    ] = 32,
    depth: Annotated[int, typer.Option("--depth", min=1, help="Blocks.")] = 6,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images at once.")] = 32,
    num_classes: Annotated[int, typer.Option("--num-classes", min=1, help="Outputs.")] = 10,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Timed repetitions.")] = 5,
    precision: Annotated[
        str, typer.Option("--precision", help="float32, tf32, bfloat16 or float16.")
    ] = "float32",
    backend: Annotated[str, typer.Option("--backend", help="numpy, cupy or auto.")] = "auto",
    plugin: PluginFiles = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Time training steps and inference of a model on this machine.

    With kernels and by the references, in turn, and beside them matrix products alone, by NumPy
    (or CuPy) in float32.
    """
    from vitkit.backend.precision import PRECISIONS
    from vitkit.cli.display import Console
    from vitkit.errors import ConfigError
    from vitkit.models import ViT
    from vitkit.train.speed import measure, turns

    if precision not in PRECISIONS:
        known = ", ".join(PRECISIONS)
        raise ConfigError(f"--precision: got {precision!r}; expected one of {known}")
    sizes: dict[str, Any] = {"image_size": image_size, "depth": depth, "num_classes": num_classes}
    with prints_aside():
        vit = ViT(model, backend=backend, precision=precision, **sizes)
        with Console().counting("timing", turns(rounds)) as on_turn:
            found = measure(vit, batch_size=batch_size, rounds=rounds, on_turn=on_turn)
    if as_json:
        head = {"model": repr(vit), "batch_size": batch_size, "precision": vit.precision}
        show_json({**head, **found})
        return
    typer.echo(repr(vit))
    typer.echo(f"batch {batch_size}, {vit.precision}, median of {rounds}")
    for what in ("train", "infer"):
        row = found[what]
        typer.echo(
            f"{what:<6} {row['seconds'] * 1e3:9.1f} ms  {row['images_per_second']:9.1f} img/s  "
            f"{row['gflops']:8.1f} GFLOP/s, {row['share_of_matmul']:4.0%} of matmul, "
            f"{row['times_as_fast']:5.2f} x references"
        )
    typer.echo(f"matmul {'':31} {found['matmul']['gflops']:8.1f} GFLOP/s")
