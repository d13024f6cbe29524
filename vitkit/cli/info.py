"""``vitkit info``."""

from __future__ import annotations

from typing import Annotated

import typer

from vitkit.cli.streams import show_json


def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Show versions, backends and folders, as a bug report needs them."""
    from vitkit.backend import array_module
    from vitkit.cli.kernels import lines
    from vitkit.data import data_dir
    from vitkit.kernels.state import describe as on_cpu
    from vitkit.kernels.state import describe_gpu
    from vitkit.train import plots
    from vitkit.train.environment import describe

    found = describe()
    found["auto"] = array_module("auto").__name__
    found["kernels"] = on_cpu()
    found["gpu"] = describe_gpu()
    found["data_dir"] = str(data_dir())
    found["pictures"] = plots.available()
    if as_json:
        show_json(found)
        return
    for name, version in found["packages"].items():
        typer.echo(f"{name:<14}{version}")
    typer.echo(f"{'python':<14}{found['python']} on {found['platform']}")
    for pool in found["blas"]:
        typer.echo(
            f"{'BLAS':<14}{pool['internal_api']} {pool['version']}, {pool['architecture']}, "
            f"threads: {pool['num_threads']}, cores: {found['cores']}"
        )
    typer.echo(f"{'numpy':<14}works")
    for title, text in lines(found["kernels"]):
        typer.echo(f"{title:<14}{text}")
    cupy = found["cupy"]
    state = "works" if cupy["usable"] else "does not work"
    typer.echo(f"{'cupy':<14}{state}: {cupy['found']}")
    if cupy["cure"]:
        typer.echo(f"{'':<14}to get it: {cupy['cure']}")
    for title, text in found["gpu"].items():
        typer.echo(f"{title:<17}{text}")
    typer.echo(f"{'auto means':<14}{found['auto']}")
    typer.echo(f"{'data folder':<14}{found['data_dir']}")
    if not found["pictures"]:
        typer.echo(f"{'pictures':<14}{plots.MISSING}")
