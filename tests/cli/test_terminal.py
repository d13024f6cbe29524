"""What a terminal, its absence, and its settings change."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pty = pytest.importorskip("pty", reason="this system has no pseudo-terminals")


@pytest.fixture
def on_terminal(
    tmp_path: Path,
    command: list[str],
    environment: Callable[..., dict[str, str]],
    without_matplotlib: Path,
) -> Callable[..., tuple[str, str]]:
    """Return a function that gives stdout, a pipe, and stderr, a terminal, of a command."""

    def start(*arguments: str, **variables: str) -> tuple[str, str]:
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [*command, *arguments],
            stdout=subprocess.PIPE,
            stderr=theirs,
            text=True,
            cwd=tmp_path,
            env=environment(without_matplotlib, **{"TERM": "xterm", **variables}),
        )
        os.close(theirs)
        shown = b""
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # how Linux says that the other side is closed
                break
            if not piece:
                break
            shown += piece
        os.close(ours)
        results, _ = process.communicate(timeout=60)
        assert process.returncode == 0, shown.decode()
        return results, shown.decode()

    return start


BAR = "━"
COLOUR = "\x1b[3"


def test_a_terminal_shows_a_bar(
    on_terminal: Callable[..., tuple[str, str]], small: list[str]
) -> None:
    results, shown = on_terminal(*small, "--epochs", "2", "--set", "train.log_every=1")
    assert BAR in shown
    assert COLOUR in shown
    assert "12/12" in shown
    assert "img/s" in shown
    assert "epoch 2/2  loss" in shown
    assert results.startswith("test accuracy")
    assert "\x1b" not in results


def test_no_color_keeps_the_bar_and_drops_the_colour(
    on_terminal: Callable[..., tuple[str, str]], small: list[str]
) -> None:
    _, shown = on_terminal(*small, "--epochs", "1", NO_COLOR="1")
    assert BAR in shown
    assert COLOUR not in shown


@pytest.mark.parametrize("quiet", [True, False])
def test_a_dumb_terminal_gets_plain_lines(
    quiet: bool, on_terminal: Callable[..., tuple[str, str]], small: list[str]
) -> None:
    options = ["--quiet"] if quiet else []
    _, shown = on_terminal(*small, "--epochs", "1", *options, TERM="dumb")
    assert "\x1b" not in shown
    assert BAR not in shown
    assert ("epoch 1/1" in shown) is not quiet


@pytest.mark.parametrize(
    "variables",
    [{"FORCE_COLOR": "1"}, {"COLUMNS": "20"}, {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}],
    ids=lambda variables: next(iter(variables)),
)
def test_what_is_no_terminal_gets_whole_plain_lines(
    variables: dict[str, str], vitkit_: Any, small: list[str]
) -> None:
    end = vitkit_(*small, "--epochs", "1", **variables)
    assert end.returncode == 0, end.stderr
    assert "\x1b[2K" not in end.stderr
    assert BAR not in end.stderr
    lines = end.stderr.splitlines()
    assert len(lines) == 3  # what will be trained, one epoch, no Matplotlib
    assert lines[1].endswith("left")


def test_a_reader_that_leaves_is_no_error_to_speak_of(
    run_folder: Path,
    tmp_path: Path,
    command: list[str],
    environment: Callable[..., dict[str, str]],
) -> None:
    gone, written = os.pipe()
    os.close(gone)
    end = subprocess.run(
        [*command, "evaluate", str(run_folder)],
        stdout=written,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment(),
        check=False,
    )
    os.close(written)
    assert end.returncode in (1, 141)
    assert end.stderr == ""
