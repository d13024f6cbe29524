"""What the command lines of the programs have in common."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Collection
from pathlib import Path

import machine
from contenders.task import CONFIGURATIONS


def parser(
    description: str, rounds: int, names: Collection[str] = CONFIGURATIONS, name: str = "S"
) -> argparse.ArgumentParser:
    """Return a parser of the options that every program takes."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("name", nargs="?", choices=names, default=name, metavar="NAME")
    made.add_argument("--rounds", type=int, default=rounds)
    made.add_argument("--only", help="whom or what, by name, separated by commas")
    made.add_argument("--threads", type=int, default=machine.usable_cpus())
    made.add_argument("--out", type=Path, help="where to write everything as JSON")
    made.add_argument("--rst", action="store_true", help="print the table for the docs")
    made.add_argument("--dry", action="store_true", help="one round of a tiny model")
    return made


def parse(made: argparse.ArgumentParser, known: Collection[str]) -> argparse.Namespace:
    """Return the command line; ``only`` as a list of names, all that are known by default."""
    arguments = made.parse_args()
    arguments.only = arguments.only.split(",") if arguments.only else list(known)
    if unknown := set(arguments.only) - set(known):
        made.error(f"--only: unknown: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    if arguments.dry:
        arguments.name, arguments.rounds = "tiny", 1
    arguments.style = "rst" if arguments.rst else "markdown"
    machine.use_only(arguments.threads)
    return arguments


def command_line() -> str:
    """Return how this was started, but for where the result goes."""
    words = sys.argv[1:]
    pairs = zip(words, ["", *words], strict=False)
    kept = [word for word, before in pairs if "--out" not in (word.partition("=")[0], before)]
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *kept])


def say(line: str) -> None:
    """Tell whoever waits how far it is."""
    print(line, file=sys.stderr, flush=True)
