"""The pages of the documentation, the code blocks in them, and how a page is played."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import vitkit

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PACKAGE = Path(vitkit.__file__).parent
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.rst"))]
PAGES = [page for page in PAGES if not {"_build", "generated"} & set(page.parts)]
PLAYED = [*sorted((DOCS / "guides" / "plugins").glob("*.rst")), DOCS / "reference" / "hooks.rst"]
"""Pages whose files are written and whose commands really run."""

IN_MARKDOWN = re.compile(r"^```(?P<language>\w+)\n(?P<options>)(?P<text>.*?)^```", re.M | re.S)
IN_RST = re.compile(
    r"^\.\. code-block:: (?P<language>\w+)\n(?P<options>(?:   :.*\n)*)\n"
    r"(?P<text>(?:(?:   .*)?\n)+)",
    re.M,
)


@dataclass(frozen=True)
class Block:
    """A code block of a page.

    Attributes
    ----------
    language : str
        ``"python"``, ``"console"``.
    text : str
        Its code.
    line : int
        The line of the page that it begins at.
    file : str
        The file that it shows, which is its caption, or nothing.
    fails : bool
        Whether the last of its commands is to fail: it has the class ``fails``.
    """

    language: str
    text: str
    line: int
    file: str = ""
    fails: bool = False


def code_blocks(text: str, pattern: re.Pattern[str] = IN_RST) -> list[Block]:
    """Return the code blocks of a page's text, in order."""
    found = []
    for match in pattern.finditer(text):
        options = dict(re.findall(r":(\w+): *(.*)", match["options"]))
        found.append(
            Block(
                match["language"],
                inspect.cleandoc(match["text"]) + "\n" if pattern is IN_RST else match["text"],
                text.count("\n", 0, match.start("text")) + 1,
                options.get("caption", ""),
                options.get("class", "") == "fails",
            )
        )
    return found


def blocks_of(page: Path) -> list[Block]:
    """Return the code blocks of a page, in order."""
    return code_blocks(page.read_text("utf-8"), IN_MARKDOWN if page.suffix == ".md" else IN_RST)


def blocks(page: Path, language: str) -> list[str]:
    """Return the code of a language in a page, in order, without the files it shows."""
    return [b.text for b in blocks_of(page) if b.language == language and not b.file]


def page_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def run_python(code: str, folder: Path) -> str:
    """Run code in a process of its own, a warning being an error, and return what it prints."""
    paths = [str(PACKAGE.parent), str(Path(__file__).parent), *sys.path]
    kept = {name: value for name, value in os.environ.items() if not name.endswith("_PLUGINS")}
    without = {"VITKIT_PLUGINS": "", "NO_COLOR": "1"}  # those that happen to be installed here
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=folder,
        env={**kept, **without, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def script_of(page: Path) -> str:
    """Return a page as one Python script: its code as it is, its files and commands as calls."""
    lines = ["import shown"]
    for block in blocks_of(page):
        if block.file:
            lines.append(f"shown.write({block.file!r}, {block.text!r})")
        elif block.language == "python":
            lines.append(block.text)
        elif block.language == "console" and page in PLAYED:
            lines.append(f"shown.run({block.text!r}, fails={block.fails})")
    return "\n".join(lines)


def play(page: Path, folder: Path) -> None:
    """Do in a folder all that a page shows, from top to bottom."""
    run_python(script_of(page), folder)
