"""``vitkit plugins``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitkit.cli.plugin_option import PluginFiles, loaded
from vitkit.cli.plugin_use import prints_aside
from vitkit.cli.streams import show_json

if TYPE_CHECKING:
    from vitkit.plugins import Plugin
    from vitkit.testing.check import Outcome

app = typer.Typer(
    help="List, check and begin plugins.", invoke_without_command=True, rich_markup_mode=None
)
AsJson = Annotated[bool, typer.Option("--json", help="Print everything as JSON.")]


@app.callback()
def list_(
    context: typer.Context,
    plugin: PluginFiles = None,
    as_json: AsJson = False,
) -> None:
    """List plugins, what each registers, and what failed; check one; begin one."""
    if context.invoked_subcommand is not None:
        if as_json:
            raise typer.BadParameter("write --json after the command", param_hint="--json")
        return
    plugins = loaded()
    if as_json:
        from vitkit.plugins import API

        failed = [{**f.record.to_dict(), "error": f.message} for f in plugins.failed]
        listed = [record.to_dict() for record in plugins.loaded.values()]
        show_json({"api": API, "plugins": listed, "failed": failed})
        return
    for record in plugins.loaded.values():
        _show(record)
    for failure in plugins.failed:
        typer.echo(f"not loaded: {failure}\n")
    if all(record.source == "built in" for record in plugins.loaded.values()):
        typer.echo("No others are installed. Begin one with: vitkit plugins new NAME")


def _show(record: Plugin) -> None:
    from vitkit._version import __version__

    if record.source == "built in":
        typer.echo(f"{record.name} {__version__}, built in")
    else:
        typer.echo(f"{record.label}, {record.source}")
    for kind, names in record.provides.items():
        typer.echo(f"  {kind:<12} {', '.join(names)}")
    typer.echo()


@app.command("check")
def check(
    name: Annotated[
        str, typer.Argument(help="Plugin, distribution or file, as 'vitkit plugins' lists them.")
    ],
    plugin: PluginFiles = None,
    as_json: AsJson = False,
) -> None:
    """Run the conformance kit on what a plugin registers.

    Ends with 1 if something is wrong.
    """
    from vitkit.testing.check import outcome_of
    from vitkit.testing.plugin_checks import plugin_checks

    plugins = loaded()
    if name.endswith(".py") and Path(name).is_file() and Path(name) not in (plugin or ()):
        from vitkit.plugins import load

        record = load(Path(name))
    else:
        record = plugins.find(name)
    results: dict[str, list[Outcome]] = {}
    for what, checks in plugin_checks(record, plugins.registries):
        with prints_aside():
            results[what] = [outcome_of(each) for each in checks]
        if not as_json:
            _report(what, results[what])
    failed = sum(o.passed is False for outcomes in results.values() for o in outcomes)
    if as_json:
        _print_json(record, results)
    else:
        count = sum(map(len, results.values()))
        end = f"{failed} failed" if failed else "none failed"
        typer.echo(f"{record.label}: {count} checks, {end}")
    if failed:
        raise typer.Exit(1)


def _report(what: str, outcomes: list[Outcome]) -> None:
    passed = sum(o.passed is True for o in outcomes)
    typer.echo(f"{what}: {passed} of {len(outcomes)} passed")
    for outcome in outcomes:
        if outcome.passed is False:
            typer.echo(f"  FAILED  {outcome.name}: {outcome.message}")
    skipped: dict[str, list[str]] = {}  # by reason: many have the same
    for outcome in outcomes:
        if outcome.passed is None:
            skipped.setdefault(outcome.message, []).append(outcome.name)
    for why, names in skipped.items():
        listed = names[0] if len(names) == 1 else f"{len(names)} checks"
        typer.echo(f"  skipped {listed}: {why}")


def _print_json(record: Plugin, results: dict[str, list[Outcome]]) -> None:
    words = {True: "passed", False: "failed", None: "skipped"}
    listed: list[dict[str, Any]] = [
        {"object": what, "check": o.name, "outcome": words[o.passed], "message": o.message}
        for what, outcomes in results.items()
        for o in outcomes
    ]
    show_json({**record.to_dict(), "checks": listed})


@app.command("new")
def new(
    name: Annotated[str, typer.Argument(help="Of the package, such as vitkit-mish.")],
    out: Annotated[Path, typer.Option("--out", help="Where its folder is made.")] = Path(),
) -> None:
    """Write a new plugin package whose tests pass at once."""
    from vitkit.plugins.template import render

    folder = render(name, out)
    typer.echo(f"{folder} has a plugin with an activation, an optimizer and their tests. Next:")
    typer.echo(f"  cd {folder}")
    typer.echo("  python -m pip install -e '.[test]'")
    typer.echo("  python -m pytest")
    typer.echo("  vitkit plugins")
