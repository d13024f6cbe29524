"""F23: the command line keeps its word however it is started.

Exit codes are those of the table in ``vitkit --help``; what was asked for is alone on stdout, and
progress and problems on stderr; no stream, terminal, locale, home or path makes a traceback. Each
case is a process of its own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from command_lines import CLOSED, ENDS, HOMES, NARROW, READERS_LEAVE, TERMINALS
from injecting import Injected
from PIL import Image
from typer.main import get_command

import vitkit
from vitkit.cli import main
from vitkit.config import load

End: TypeAlias = "subprocess.CompletedProcess[str]"
Start: TypeAlias = Callable[..., End]
ON_POSIX = pytest.mark.skipif(os.name == "nt", reason="a shell of POSIX closes the streams")
SMALL = """train --model Ti/4 --set model.dim=16 --set model.depth=1 --set model.num_heads=2
--set model.mlp_dim=32 --set data.augment=[] --set train.ema_decay=none --batch-size 270
--backend numpy --epochs 1""".split()
"""A training of a moment."""
SETTINGS = """NO_COLOR FORCE_COLOR COLUMNS TERM LC_ALL LANG HOME XDG_CACHE_HOME XDG_CONFIG_HOME
XDG_DATA_HOME""".split()
# Found at start-up, since its folder is on PYTHONPATH: drawing takes longer than training here.
WITHOUT_PICTURES = """
from importlib.machinery import PathFinder

find_spec = PathFinder.find_spec
PathFinder.find_spec = lambda name, *args, **kwargs: (
    None if name.partition(".")[0] == "matplotlib" else find_spec(name, *args, **kwargs)
)
"""


def environment(*paths: Path, **variables: str) -> dict[str, str]:
    """Return the variables of this process without those that a case may set, and its own."""
    foreign = ("VITKIT_", "PYTHON", *SETTINGS)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    home = {"HOME": os.environ["HOME"]} if "HOME" in os.environ else {}
    path = os.pathsep.join(map(str, (*paths, Path(vitkit.__file__).parents[1])))
    return {**kept, **home, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **variables}


def split(text: str, run: str) -> list[str]:
    """Return the words of a command line, with the run folder for ``RUN``."""
    return [run if word == "RUN" else word for word in text.split()]


def leaves(command: Any, *before: str) -> Iterator[list[str]]:
    """Yield the words of every command that ships, groups included."""
    yield list(before)
    for name, one in getattr(command, "commands", {}).items():
        yield from leaves(one, *before, name)


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, str]]:
    hidden = tmp_path_factory.mktemp("hidden")
    (hidden / "sitecustomize.py").write_text(WITHOUT_PICTURES)
    return lambda **variables: environment(hidden, **variables)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def start(surroundings: Callable[..., dict[str, str]], place: Path) -> Start:
    """Return a function that runs a command, by a shell's words before it where there are some."""

    def start(*words: str, through: str = "", cwd: Path = place, **variables: str) -> End:
        command = [sys.executable, "-m", "vitkit", *words]
        end = subprocess.run(
            ["sh", "-c", through, "sh", *command] if through else command,
            capture_output=True,
            cwd=cwd,
            encoding="utf-8",
            env={k: v for k, v in surroundings(**variables).items() if v != "(unset)"},
            errors="surrogateescape",
            timeout=280,  # where its kernels are not compiled yet
        )
        assert "Traceback" not in end.stdout + end.stderr, end.stderr
        assert "Exception ignored" not in end.stderr, end.stderr
        return end

    return start


@pytest.fixture(scope="module")
def run(start: Start, place: Path) -> str:
    """Return the run folder of a training, whose kernels are compiled from then on."""
    end = start("kernels", "compile")
    assert end.returncode == 0, end.stderr
    end = start(*SMALL, "--out", "runs of the module", "--name", "first")
    assert end.returncode == 0, end.stderr
    (folder,) = (place / "runs of the module").iterdir()
    return str(folder)


@pytest.fixture(scope="module")
def photos(place: Path) -> Path:
    """Return a folder of images whose name, classes and files are no plain words."""
    rng = np.random.Generator(np.random.Philox(0))
    folder = place / "-Bilder \N{CAT FACE}"
    classes = ["café \N{CAT FACE}", "\u65e5\u672c", "-leading", "two\nlines", "red\x1b[31m"]
    for part in ("train", "test"):
        for name in classes:
            (folder / part / name).mkdir(parents=True)
            for index in range(4):
                pixels = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"-\u00fc {index}.png")
    return folder


# --- exit codes ------------------------------------------------------------------------------


def test_exit_codes(start: Start, run: str, injected: Injected) -> None:
    wrong = []
    for words, code, said in ENDS:
        end = start(*split(words, run))
        if end.returncode != code or said not in end.stderr or (code == 1 and end.stdout):
            wrong.append((words, end.returncode, end.stdout, end.stderr))
    assert wrong == []
    injected("command lines with their exit codes", len(ENDS), at_least=35)


def test_every_command_has_help(start: Start, injected: Injected) -> None:
    commands = list(leaves(get_command(main.app)))
    for words in commands:
        end = start(*words, "--help")
        assert (end.returncode, end.stderr) == (0, ""), words
        assert end.stdout.startswith("Usage:"), words
    assert "Exit codes: 0 done, 1 failed, 2 wrong usage" in start("--help").stdout
    injected("commands asked for help", len(commands), at_least=13)


# --- streams ---------------------------------------------------------------------------------


@ON_POSIX
def test_streams_that_are_closed_or_full(start: Start, run: str, injected: Injected) -> None:
    wrong, tried = [], 0
    for words, streams, code in CLOSED:
        if "/dev/full" in streams and not os.path.exists("/dev/full"):
            continue  # only Linux has it
        tried += 1
        end = start(*split(words, run), through=f'exec "$@" {streams}')
        full = "vitkit: [Errno 28] No space left on device: 'standard output'\n"
        if end.returncode != code or (streams == ">/dev/full" and end.stderr != full):
            wrong.append((words, streams, end))
    assert wrong == []
    injected("closed and full streams", tried, at_least=7)


@ON_POSIX
def test_a_training_needs_no_stream(start: Start, place: Path) -> None:
    end = start(*SMALL, "--out", "silent", through='exec "$@" <&- >&- 2>&-')
    assert end.returncode == 0
    (folder,) = (place / "silent").iterdir()
    rows = (folder / "metrics.jsonl").read_text().splitlines()
    assert all(json.loads(row) for row in rows)  # nothing printed found its way into a file
    assert start("evaluate", str(folder)).returncode == 0


def test_readers_that_leave_hear_nothing_more(
    surroundings: Callable[..., dict[str, str]], run: str, place: Path, injected: Injected
) -> None:
    """As ``| head -1``: the reader has gone before the first line, or after it."""
    for words in READERS_LEAVE:
        for lines in (0, 1) if words == "plugins --json" else (0,):
            process = subprocess.Popen(
                [sys.executable, "-m", "vitkit", *split(words, run)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=place,
                env=surroundings(),
            )
            assert process.stdout is not None
            assert process.stderr is not None
            if lines:
                assert process.stdout.readline().strip()
            process.stdout.close()
            said = process.stderr.read()
            process.stderr.close()
            assert process.wait(60) in ((0, 1) if lines else (1,)), words
            assert said == b"", words
    injected("readers that left", len(READERS_LEAVE) + 1, at_least=6)


def test_a_training_goes_on_when_nobody_watches(
    surroundings: Callable[..., dict[str, str]], start: Start, place: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "vitkit", *SMALL, "--out", "unwatched", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=place,
        env=surroundings(),
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stderr.readline().startswith(b"digits:")
    process.stderr.close()  # before the first epoch's line
    summary = json.loads(process.stdout.read())
    process.stdout.close()
    assert process.wait(60) == 0
    assert start("evaluate", str(place / summary["folder"])).returncode == 0


# --- terminals and locales -------------------------------------------------------------------


def test_no_terminal_whatever_the_variables_say(start: Start, run: str, injected: Injected) -> None:
    commands = (["evaluate", run], ["data", "list"], ["train", "--help"])
    plain = [start(*words) for words in commands]
    for index, variables in enumerate(TERMINALS):
        which = index % 3 if "COLUMNS" not in variables else 0  # help is made for the width
        end = start(*commands[which], **variables)
        assert (end.returncode, end.stderr) == (0, ""), variables
        assert end.stdout == plain[which].stdout, variables
    end = start(*SMALL, "--json", FORCE_COLOR="1", COLUMNS="20")
    assert end.returncode == 0, end.stderr
    assert json.loads(end.stdout)["epochs"] == 1
    first, epoch, *_ = end.stderr.splitlines()
    assert re.match(r"digits: 1293 images .* 1 epochs of 5 batches\.$", first), first
    assert re.match(r"epoch 1/1  loss .* left$", epoch), epoch
    injected("settings of a terminal that is not there", len(TERMINALS) + 1, at_least=13)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse some of these names")
def test_names_that_a_stream_or_a_line_cannot_hold(
    start: Start, photos: Path, place: Path, injected: Injected
) -> None:
    out = "-l\u00e4uft \N{CAT FACE}"
    given = ["--dataset", "folder", "--data-dir", f"./{photos.name}", "--out", out]
    home = {"XDG_CACHE_HOME": f"{place}/cache of images"}
    end = start(*SMALL, *given, "--batch-size", "4", "--set", "model.image_size=8", **home)
    assert end.returncode == 0, end.stderr
    (folder,) = (place / out).iterdir()
    lines = end.stdout.splitlines()
    again = next(line for line in lines if line.startswith("  vitkit evaluate "))
    # What is said can be pasted.
    assert start(through=f'"$1" -m {again.strip()}', **home).returncode == 0
    image = photos / "test" / "café \N{CAT FACE}" / "-\u00fc 1.png"
    for variables in NARROW:
        end = start("predict", str(folder), str(image), "--top", "5", **variables)
        assert (end.returncode, end.stderr) == (0, ""), variables
        assert len(end.stdout.splitlines()) == 1, variables
        assert "two\\u000alines" in end.stdout, variables
        assert "red\\u001b[31m" in end.stdout, variables
    for variables in NARROW[1::2]:
        end = start("predict", str(folder), str(image), "--json", **variables)
        assert (end.returncode, end.stderr) == (0, ""), variables
        assert json.loads(end.stdout)[0]["image"].encode("utf-8", "surrogateescape") == bytes(image)
    end = start("train", "--print-config", "--config", f"{folder}/config.toml",
                PYTHONIOENCODING="latin-1")  # fmt: skip
    (place / "again.toml").write_text(end.stdout, "utf-8", errors="surrogateescape")
    assert load([place / "again.toml"], environ={}).data.path == str(photos)
    end = start("predict", str(folder), "--", "-\u00fc 1.png", cwd=image.parent)
    assert end.returncode == 0
    assert end.stdout.startswith("-\u00fc 1.png  ")
    assert start("predict", str(folder), "-\u00fc 1.png", cwd=image.parent).returncode == 2
    injected("streams for names that do not fit", len(NARROW) + 7, at_least=11)


# --- home and folders ------------------------------------------------------------------------


@ON_POSIX
def test_homes(start: Start, run: str, place: Path, injected: Injected) -> None:
    for template in HOMES:
        variables = {name: value.format(place=place) for name, value in template.items()}
        end = start("data", "list", **variables)
        assert (end.returncode, end.stderr) == (0, ""), variables
        folder = Path(end.stdout.splitlines()[0].removeprefix("data folder: "))
        if sys.platform == "linux" and (cache := variables.get("XDG_CACHE_HOME", "")):
            assert folder.is_relative_to(cache) == os.path.isabs(cache), variables
    end = start(*SMALL, HOME="/dev/null", XDG_CACHE_HOME="/dev/null")
    assert end.returncode == 0, end.stderr
    assert not (place / "relative").exists()
    injected("homes", len(HOMES) + 1, at_least=12)


@ON_POSIX
def test_a_folder_that_is_gone(start: Start, run: str, place: Path, injected: Injected) -> None:
    cases = [
        ("--help", 0),
        ("info --json", 0),
        ("data list", 0),
        ("plugins --json", 0),
        ("train --print-config", 0),
        ("evaluate RUN", 0),
        ("predict RUN x.png", 1),
        (" ".join(SMALL), 1),
        (f"{' '.join(SMALL)} --out {place}/elsewhere", 0),
    ]
    for words, code in cases:
        gone = place / "gone"
        gone.mkdir()
        end = start(*split(words, run), through='rmdir "$PWD"; exec "$@"', cwd=gone)
        assert end.returncode == code, (words, end.stderr)
        assert not gone.exists()
        if code:
            assert re.match("vitkit: .*No such file|vitkit: .*no such", end.stderr.splitlines()[-1])
    injected("commands in a folder that is gone", len(cases), at_least=9)


# --- JSON ------------------------------------------------------------------------------------


def test_json_is_alone_on_stdout(start: Start, run: str, place: Path, injected: Injected) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(place / "black.png")
    commands = [
        "info --json",
        "kernels --json",
        "plugins --json",
        "evaluate RUN --json",
        "predict RUN black.png --json",
        "bench --json --rounds 1 --depth 1 --batch-size 2 --backend numpy",
        f"{' '.join(SMALL)} --json",
    ]
    for words in commands:
        end = start(*split(words, run), FORCE_COLOR="1")
        assert end.returncode == 0, end.stderr
        assert json.loads(end.stdout), words
        assert "\x1b" not in end.stdout
        assert ("epoch 1/1" in end.stderr) == words.startswith("train")
    injected("commands with --json", len(commands), at_least=7)


def test_there_are_enough_cases() -> None:
    tables = (ENDS, CLOSED, READERS_LEAVE, TERMINALS, NARROW, HOMES)
    assert sum(map(len, tables)) >= 80
    assert shutil.which("sh") or os.name == "nt"
