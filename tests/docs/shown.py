"""What a page that is played does besides Python: it writes the files it shows, and runs commands.

It runs in the process of the page, see :func:`pages.play`.
"""

from __future__ import annotations

import glob
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

NOT_RUN = {
    "python -m pip install": "asks a package index; an editable install is imitated",
    "python -m build": "makes an environment of its own, from a package index",
    "python -m twine": "publishes",
}
"""Commands that a page may show and that no test runs, with the reason."""
PROGRAMS = {
    "vitkit": [sys.executable, "-m", "vitkit"],
    "pytest": [sys.executable, "-m", "pytest", "-p", "vitkit.pytest_plugin"],
    "python": [sys.executable],
    "cp": ["cp"],
    "rm": ["rm"],
}
"""What a page may run, and how it is started here."""
SITE = Path("site").resolve()
"""Where packages lie that a page installs."""


def write(name: str, text: str) -> None:
    """Write a file that the page shows."""
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


def run(console: str, *, fails: bool = False) -> None:
    """Run the commands of a console block, and compare what they print with what it shows."""
    shown = commands(console)
    for number, (command, expected) in enumerate(shown, 1):
        code, output = execute(command)
        told = f"$ {command}\n{output}"
        if fails and number == len(shown):
            assert code in (1, 2), f"ended with {code}, but should have failed:\n{told}"
        else:
            assert code == 0, f"ended with {code}:\n{told}"
        if expected and not matches(expected, output):
            raise AssertionError(f"{told}\nwhere the page has:\n{expected}")


def matches(expected: str, output: str) -> bool:
    """Whether a command printed what is shown, ``...`` being anything, and lines folded anyhow."""
    pattern = ""
    for word in expected.split():
        whole = re.escape(word).replace(r"\.\.\.", ".*?") + r"\s+"
        pattern += r"(?:\S+\s+)*?" if word == "..." else whole
    return re.fullmatch(pattern, f"{output.strip()} ", re.DOTALL) is not None


def commands(console: str) -> list[tuple[str, str]]:
    """Return each command of a console block with the output shown under it."""
    text = console.replace("\\\n", " ")
    found = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE)
    return [(" ".join(command.split()), output) for command, output in found]


def execute(command: str) -> tuple[int, str]:
    """Run one command, and return its exit code and all that it prints."""
    words = shlex.split(command, comments=True)
    environment = {**os.environ, "PYTHONWARNINGS": "error", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        environment[name] = value
    if words[0] == "cd":
        os.chdir(words[1])
        return 0, ""
    if any(command.startswith(known) for known in NOT_RUN):
        if "-e" in words:
            imitate_install(Path())  # the folder that the page is in
        return 0, ""
    words = [name for word in words for name in (sorted(glob.glob(word)) or [word])]
    if words[:3] == ["python", "-m", "pytest"]:
        words[:3] = ["pytest"]
    done = subprocess.run(
        [*PROGRAMS[words[0]], *words[1:]],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
    )
    return done.returncode, done.stdout


def imitate_install(project: Path) -> None:
    """Make a project look installed, as ``pip install -e`` does, without a package index."""
    table = tomllib.loads((project / "pyproject.toml").read_text("utf-8"))["project"]
    name, version = table["name"], table["version"]
    info = SITE / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = []
    for group, points in table["entry-points"].items():
        lines += [f"[{group}]", *(f"{key} = {value}" for key, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    sources = [SITE, (project / "src").resolve()]
    os.environ["VITKIT_PLUGINS"] = name  # and no other that happens to be installed here
    os.environ["PYTHONPATH"] = os.pathsep.join([*map(str, sources), os.environ["PYTHONPATH"]])
