"""What a command must be: one that typer can make, that says what it does, and is quiet."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import typer
from typer.main import get_command
from typer.testing import CliRunner

from vitkit.registry import is_name
from vitkit.testing.check import Check, Skip, run_checks, where
from vitkit.testing.parts.staged import staged

TIMEOUT = 60.0  # seconds; a machine may be slow, and imports may be many
IMPORT = """
import importlib.util, runpy, sys
name, file = sys.argv[1:]
try:
    known = importlib.util.find_spec(name)
except ModuleNotFoundError:
    known = None
if known:
    importlib.import_module(name)
else:
    runpy.run_path(file, run_name=name)
"""

Command = Callable[..., Any]


def check_command(name: str, command: Command) -> None:
    """Check a command of ``vitkit``: its name, its help, and that importing it prints nothing.

    Parameters
    ----------
    name : str
        What it is registered under: ``"hello"``, used as ``vitkit hello``.
    command : callable
        A function as typer takes it, or a ``typer.Typer``.

    Raises
    ------
    ConformanceError
        Listing what is wrong.
    """
    run_checks(f"the command {name!r}", command_checks(name, command))


def command_checks(name: str, command: Command) -> list[Check]:
    """Return the checks of :func:`check_command`, which takes the same arguments."""
    return staged(
        [
            Check("name", partial(_has_a_name, name)),
            Check("help", partial(_shows_help, name, command)),
        ],
        [
            Check("documented", partial(_is_documented, name, command)),
            Check("quiet import", partial(_imports_quietly, command)),
        ],
    )


def _has_a_name(name: str) -> None:
    if not is_name(name) or name != name.lower():
        raise AssertionError(
            f"{name!r} cannot be a command: small letters, digits and '_' are due; it is written "
            "with '-' for '_' in a shell."
        )


def _app(name: str, command: Command) -> typer.Typer:
    """Return a program that has the command among its commands, as ``vitkit`` has it."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.callback()(lambda: None)  # with it, a single command still needs its name
    if isinstance(command, typer.Typer):
        app.add_typer(command, name=name)
    else:
        app.command(name)(command)
    return app


def _shows_help(name: str, command: Command) -> None:
    error: BaseException | None
    try:
        result = CliRunner().invoke(_app(name, command), [name, "--help"])
        error = result.exception
    except Exception as unbuilt:
        error = unbuilt
    if error is not None and not isinstance(error, SystemExit):
        raise AssertionError(
            f"`vitkit {name} --help` raised {type(error).__name__}: {error}{where(error)}. typer "
            "makes options of annotations: str, int, float, bool, Path, enums, and lists of them."
        ) from error
    if result.exit_code != 0 or "Usage:" not in result.output:
        raise AssertionError(
            f"`vitkit {name} --help` ended with {result.exit_code} and printed "
            f"{result.output[:200]!r}; 0 and how it is used are due."
        )


def _is_documented(name: str, command: Command) -> None:
    for path, function, said in _all_commands(name, command):
        if not said:
            raise AssertionError(
                f"`{path} --help` does not say what it does: write a docstring in "
                f"{function}, whose first sentence is listed by `vitkit --help`."
            )


def _all_commands(name: str, command: Command) -> list[tuple[str, str, str]]:
    """Return how the command and those below it are called, made and described."""
    found: list[tuple[str, str, str]] = []

    def visit(path: str, each: Any) -> None:
        function = getattr(each.callback, "__name__", "typer.Typer(help=...)")
        found.append((path, function, (each.help or "").strip()))
        for below, one in getattr(each, "commands", {}).items():
            visit(f"{path} {below}", one)

    program: Any = get_command(_app(name, command))
    visit(f"vitkit {name}", program.commands[name])
    return found


def _imports_quietly(command: Command) -> None:
    """Import the modules that the command is from in another process."""
    modules = sorted(_modules(command) - {"__main__"})
    files = {module: getattr(sys.modules.get(module), "__file__", None) for module in modules}
    if not any(files.values()):
        raise Skip(f"{' and '.join(modules) or 'it'} is from no file, so it cannot be imported")
    for module, file in files.items():
        if file is None:
            continue
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(  # noqa: S603 (this Python, and a module that is imported already)
            [sys.executable, "-c", IMPORT, module, file],
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            env=environment,
        )
        printed = (done.stdout or done.stderr).strip()
        if done.returncode or printed:
            raise AssertionError(
                f"importing {module} ended with {done.returncode} and printed {printed[-300:]!r}: "
                "every use of vitkit would. Do it in the command's body."
            )


def _modules(command: Command) -> set[str]:
    """Return the names of the modules that a function, or those of a Typer, are written in."""
    if not isinstance(command, typer.Typer):
        return {str(getattr(command, "__module__", ""))}
    functions = [each.callback for each in command.registered_commands]
    groups = [each.typer_instance for each in command.registered_groups]
    own = {function.__module__ for function in functions if function is not None}
    return own.union(*(_modules(group) for group in groups if group is not None))
