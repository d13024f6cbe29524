"""Commands that are wrong, each in one thing, and the right ones that they were made from."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from vitkit.testing.commands import check_command


def right(
    name: Annotated[str, typer.Argument(help="Whom to greet.")] = "you",
    times: Annotated[int, typer.Option("--times", help="How often.")] = 1,
) -> None:
    """Greet someone."""
    for _ in range(times):
        typer.echo(f"Hello, {name}.")


right_app = typer.Typer(help="Greet, in two ways.")


@right_app.command()
def formally(name: str) -> None:
    """Greet someone unknown."""
    typer.echo(f"How do you do, {name}?")


@right_app.command()
def warmly(name: str) -> None:
    """Greet a friend."""
    typer.echo(f"Hi {name}!")


def undocumented(name: str = "you") -> None:
    typer.echo(f"Hello, {name}.")


half_documented = typer.Typer(help="Greet, in one way.")
half_documented.command("formally")(undocumented)
half_documented.command("warmly")(warmly)

without_help = typer.Typer()
without_help.command("formally")(formally)
without_help.command("warmly")(warmly)


def takes_either(epoch: int | str) -> None:
    """Do something with a number or a name."""


def leaves(show: bool) -> Any:
    raise SystemExit(3)


def ends_badly(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", is_eager=True)] = False,
    help_: Annotated[bool, typer.Option("--help", callback=leaves, is_eager=True)] = False,
) -> None:
    """Have a --help of its own."""


FOLDER = tempfile.TemporaryDirectory()  # removed when the process ends


def written(name: str, *lines: str) -> Callable[..., Any]:
    """Return the function ``hello`` of a module with some more lines, which is imported here."""
    path = Path(FOLDER.name) / f"{name}.py"
    path.write_text("\n".join([*lines, "def hello():", "    'Say hello.'", ""]))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        spec.loader.exec_module(module)
    hello: Callable[..., Any] = module.hello
    return hello


quiet = written("quiet_commands")
loud = written("loud_commands", "print('Welcome to my plugin')")
warns = written("warning_commands", "import sys", "print('low on memory', file=sys.stderr)")
in_a_group = typer.Typer(help="Greet, after having printed.")
in_a_group.command("loudly")(loud)
in_a_group.command("warmly")(warmly)

# What is wrong: the name, the command, the checks that fail and no others, what the message says.
FAULTY: dict[str, tuple[str, Any, set[str], str]] = {
    "the name has a space": (
        "say hello",
        right,
        {"name"},
        "'say hello' cannot be a command: small letters, digits and '_'",
    ),
    "the name is in capitals": ("Hello", right, {"name"}, "'Hello' cannot be a command"),
    "it has no docstring": (
        "hello",
        undocumented,
        {"documented"},
        "`vitkit hello --help` does not say what it does: write a docstring in undocumented",
    ),
    "a command below it has no docstring": (
        "hello",
        half_documented,
        {"documented"},
        "`vitkit hello formally --help` does not say what it does: .* in undocumented",
    ),
    "a group has no help": (
        "hello",
        without_help,
        {"documented"},
        r"`vitkit hello --help` does not say .* typer.Typer\(help=...\)",
    ),
    "an argument is of one type or another": (
        "hello",
        takes_either,
        {"help"},
        "`vitkit hello --help` raised AssertionError: .*Union types.* typer makes options of",
    ),
    "--help leaves with an error": (
        "hello",
        ends_badly,
        {"help"},
        "`vitkit hello --help` ended with 3 and printed",
    ),
    "importing it prints": (
        "hello",
        loud,
        {"quiet import"},
        "importing loud_commands ended with 0 and printed 'Welcome to my plugin': every use",
    ),
    "importing it prints to stderr": (
        "hello",
        warns,
        {"quiet import"},
        "importing warning_commands ended with 0 and printed 'low on memory'",
    ),
    "importing one of a group prints": (
        "hello",
        in_a_group,
        {"quiet import"},
        "importing loud_commands ended with 0",
    ),
}

FAULTS = {
    name: (partial(check_command, given, command), message)
    for name, (given, command, _, message) in FAULTY.items()
}
