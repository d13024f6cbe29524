"""``vitkit kernels``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from vitkit.cli.plugin_option import PluginFiles
from vitkit.cli.plugin_use import prints_aside
from vitkit.cli.streams import show_json

app = typer.Typer(
    help="Show what serves each operation on the CPU; compile ahead.",
    invoke_without_command=True,
    rich_markup_mode=None,
)
AsJson = Annotated[bool, typer.Option("--json", help="Print everything as JSON.")]


@app.callback()
def list_(context: typer.Context, plugin: PluginFiles = None, as_json: AsJson = False) -> None:
    """Show which kernel serves each operation on the CPU, and what it finds there."""
    if context.invoked_subcommand is not None:
        if as_json:
            raise typer.BadParameter("write --json after the command", param_hint="--json")
        return
    from vitkit.kernels.state import describe, serving

    with prints_aside():
        found, served = describe(), serving()
    if as_json:
        show_json({**found, "operations": served})
        return
    for title, text in lines(found):
        typer.echo(f"{title:<14}{text}")
    if found["why_none"]:
        return
    width = max(map(len, served))
    typer.echo(f"\n{'operation':<{width}}  served by")
    for name, module in served.items():
        typer.echo(f"{name:<{width}}  {module or 'its reference'}")


BFLOAT16 = {
    "amx": "yes, on the tile unit (AMX)",
    "avx512bf16": "yes, by dot products of pairs (AVX-512 BF16)",
}
"""What to say of the unit that multiplies bfloat16."""


def lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what :func:`vitkit.kernels.state.describe` found, for people."""
    if found["why_none"]:
        return [("CPU kernels", f"none: {found['why_none']}; operations run by their references")]
    kept = found["compiled"]
    features = ", ".join(found["features"]) or "none of the features that they look for"
    return [
        ("CPU kernels", f"for {found['processor']}: {features}"),
        ("vectors", f"{found['vector_bits']} bits"),
        ("bfloat16", BFLOAT16.get(found["bfloat16"], f"no: {found['why_no_bfloat16']}")),
        ("threads", f"{found['threads']}, from {found['threads_from']}"),
        ("compiled", f"{kept['functions']} functions, {kept['bytes'] / 1e6:.1f} MB"),
        ("kept in", kept["folder"] or "nowhere"),
    ]


@app.command("compile")
def compile_(as_json: AsJson = False) -> None:
    """Compile every CPU kernel for this processor now, instead of at first use."""
    import numpy as np

    from vitkit.cli.display import Console
    from vitkit.kernels import why_none
    from vitkit.kernels.ahead import compile_all
    from vitkit.kernels.state import describe

    reason = why_none(np)
    if reason:
        if as_json:
            typer.echo("{}")
        else:
            typer.echo(f"There are no kernels to compile: {reason}.")
        return
    with Console().compiling() as progress:
        done = compile_all(progress)
    kept = describe()["compiled"]
    if as_json:
        row = {"functions": done.functions, "seconds": done.seconds, "compiled": kept}
        show_json(row)
        return
    typer.echo(f"compiled {done.functions} functions in {done.seconds:.1f} s")
    typer.echo(f"kept {kept['functions']}, {kept['bytes'] / 1e6:.1f} MB, in {kept['folder']}")
