"""Help, versions, exit codes, and how errors look."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from vitkit import __version__
from vitkit.cli import main
from vitkit.errors import BackendError, ConfigError

COMMANDS = ["train", "evaluate", "predict", "info", "bench", "data", "plugins"]
LEAVES = [
    *([name] for name in COMMANDS),
    *(["data", name] for name in ("list", "prepare", "verify")),
    *(["plugins", name] for name in ("check", "new")),
]
HEAVY = {"numpy", "pydantic", "PIL", "matplotlib", "rich", "cupy", "scipy", "torch"}


def help_of(*command: str) -> str:
    result = CliRunner().invoke(main.app, [*command, "--help"], env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("command", [[], *LEAVES], ids=" ".join)
def test_help_fits_a_screen_and_nothing_is_cut(command: list[str]) -> None:
    shown = help_of(*command)
    assert "Usage:" in shown
    assert max(map(len, shown.splitlines())) <= 80
    if command in ([], ["data"], ["plugins"]):
        listed = shown.partition("Commands:")[2]
        assert "..." not in listed


@pytest.mark.parametrize("command", [["train"], ["evaluate"], ["predict"], ["bench"]])
def test_every_option_says_what_it_does(command: list[str]) -> None:
    options = [
        line for line in help_of(*command).splitlines() if line.startswith(("  -", "      --"))
    ]
    for option in options:
        assert len(option.split("  ", 3)) > 2 or "   " in option.strip(), option
        assert not option.rstrip().endswith(">"), option


def test_help_imports_nothing_heavy(environment: Callable[..., dict[str, str]]) -> None:
    code = """
import sys
sys.argv = ["vitkit", "--help"]
try:
    import vitkit.cli.main
    vitkit.cli.main.main()
finally:
    print("IMPORTED", *sorted({name.partition(".")[0] for name in sys.modules}))
"""
    end = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment(),
        check=True,
    )
    shown, _, imported = end.stdout.partition("IMPORTED")
    assert all(name in shown for name in COMMANDS)
    assert not HEAVY & set(imported.split())


def test_the_version(vitkit_: Any) -> None:
    end = vitkit_("--version")
    assert (end.returncode, end.stdout, end.stderr) == (0, f"vitkit {__version__}\n", "")


def test_no_command_shows_the_help_and_is_wrong_usage(vitkit_: Any) -> None:
    assert vitkit_().returncode == 2


@pytest.mark.parametrize(
    "arguments",
    [["--bogus"], ["trainn"], ["train", "--bogus"], ["train", "--epochs", "x"], ["predict", "run"]],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    result = CliRunner().invoke(main.app, arguments)
    assert result.exit_code == 2
    assert "Error" in result.output


def ended(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, *, debug: bool = False
) -> SimpleNamespace:
    """Return the exit code that ``main`` ends with where a command raises ``error``."""

    def app() -> None:
        raise error

    monkeypatch.setattr(main, "app", app)
    monkeypatch.setattr(main, "_debug", debug)
    with pytest.raises(SystemExit) as left:
        main.main()
    return SimpleNamespace(code=left.value.code)


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        (BackendError("no CuPy"), 1, "vitkit: no CuPy\n"),
        (ConfigError(["a: wrong", "b: wrong"]), 2, "vitkit: a: wrong\nvitkit: b: wrong\n"),
        (FloatingPointError("loss is not finite"), 1, "vitkit: loss is not finite\n"),
        (OSError(28, "No space left", "x"), 1, "vitkit: [Errno 28] No space left: 'x'\n"),
        (KeyError("x"), 1, "vitkit: KeyError: 'x' (vitkit --debug ... shows where)\n"),
    ],
)
def test_errors_are_lines_and_an_exit_code(
    error: Exception,
    code: int,
    shown: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert ended(error, monkeypatch).code == code
    assert capsys.readouterr() == ("", shown)
    assert ended(error, monkeypatch, debug=True).code == code
    traced = capsys.readouterr().err
    assert traced.startswith("Traceback")
    assert traced.endswith(shown.replace(" (vitkit --debug ... shows where)", ""))


def test_debug_is_kept_and_given_back(tmp_path: Path, vitkit_: Any) -> None:
    arguments = ("train", "--resume", "nowhere")
    plain, debug = vitkit_(*arguments), vitkit_("--debug", *arguments)
    assert (plain.returncode, debug.returncode) == (1, 1)
    assert plain.stderr.startswith("vitkit: nowhere is no run folder")
    assert plain.stderr.count("\n") == 1
    assert debug.stderr.startswith("Traceback")
    assert debug.stderr.endswith(plain.stderr)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_outside_of_training_is_exit_code_130(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = typer.Typer()

    @app.command()
    def command() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "app", app)
    monkeypatch.setattr(sys, "argv", ["vitkit"])
    with pytest.raises(SystemExit) as left:
        main.main()
    assert left.value.code == 130
