"""How long it takes until something happens: imports, the command line, first results.

Usage: python benchmarks/cpu_import.py [S|B|tiny] [--rounds N] [--only CASE,CASE] [--out FILE]

Every time is that of a whole process, from its start to its end; Python alone is among the cases,
to be subtracted by who wants to. "Cold" means that the kernels are compiled, "warm" that an earlier
process compiled them.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import command
import machine
import numpy as np
import report
from command import say
from contenders.task import CONFIGURATIONS, Order
from process import environment
from race import write_weights


@dataclass(frozen=True)
class Case:
    """What a process does.

    Attributes
    ----------
    title : str
        How tables call it.
    arguments : tuple of str
        What Python is started with.
    needs : str
        The package without which it cannot be.
    cold : bool
        Whether the kernels are to be compiled.
    kernels : str
        What ``VITKIT_KERNELS`` is.
    """

    title: str
    arguments: tuple[str, ...]
    needs: str = "vitkit"
    cold: bool = False
    kernels: str = "on"


def cases(orders: dict[str, str]) -> dict[str, Case]:
    """Return all cases by name, given the orders to infer and to train as JSON."""
    made = {
        "python": Case("Python alone", ("-c", "pass"), "sys"),
        "numpy": Case("import numpy", ("-c", "import numpy"), "numpy"),
        "vitkit": Case("import vitkit", ("-c", "import vitkit")),
        "vit": Case("from vitkit import ViT", ("-c", "from vitkit import ViT")),
        "torch": Case("import torch", ("-c", "import torch"), "torch"),
        "jax": Case("import jax", ("-c", "import jax"), "jax"),
        "help": Case("vitkit --help", ("-m", "vitkit", "--help")),
    }
    for task, title in (("infer", "first inference"), ("train", "first training step")):
        once = ("-m", "contenders.once")
        ours = (*once, "vitkit_contender", "float32", orders[task])
        made |= {
            f"{task}_cold": Case(f"vitkit, {title}, cold", ours, cold=True),
            f"{task}_warm": Case(f"vitkit, {title}, warm", ours),
            f"{task}_reference": Case(f"vitkit, {title}, references", ours, kernels="off"),
            f"{task}_torch": Case(
                f"PyTorch, {title}", (*once, "torch_contender", "fused", orders[task]), "torch"
            ),
            f"{task}_jax": Case(
                f"JAX, {title}", (*once, "jax_contender", "float32", orders[task]), "jax"
            ),
        }
    return made


def seconds_of(case: Case, threads: int, folder: Path) -> float:
    """Return how long a process took; the folder keeps compiled kernels for the warm cases."""
    with tempfile.TemporaryDirectory(dir=folder) as fresh:
        cache = fresh if case.cold else str(folder / "kernels")
        variables = {"NUMBA_CACHE_DIR": cache, "VITKIT_KERNELS": case.kernels}
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, *case.arguments],
            env=environment(threads) | variables,
            stdout=subprocess.DEVNULL,
            check=True,
        )
        return time.perf_counter() - started


def measure(
    chosen: dict[str, Case], rounds: int, threads: int, folder: Path
) -> dict[str, list[float]]:
    """Return the seconds of each case in each round, in turn; a case that fails ends it all."""
    rng = np.random.default_rng(0)
    for case in chosen.values():
        if not case.cold:
            say(f"{case.title}: once before it counts")
            seconds_of(case, threads, folder)
    found: dict[str, list[float]] = {name: [] for name in chosen}
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        for name in rng.permutation(list(chosen)):
            found[name].append(seconds_of(chosen[name], threads, folder))
    return found


def main() -> int:
    names = cases({"infer": "", "train": ""})
    arguments = command.parse(command.parser(__doc__, rounds=5), names)
    with tempfile.TemporaryDirectory() as where:
        weights = Path(where) / "weights.safetensors"
        decayed, *_ = write_weights(CONFIGURATIONS[arguments.name], weights)
        orders = {
            task: json.dumps(asdict(Order(task, arguments.name, str(weights), decayed)))
            for task in ("infer", "train")
        }
        wanted = {n: case for n, case in cases(orders).items() if n in arguments.only}
        here = {n: case for n, case in wanted.items() if importlib.util.find_spec(case.needs)}
        found = measure(here, arguments.rounds, arguments.threads, Path(where))
    whole: dict[str, Any] = {
        "benchmark": "cpu_import",
        "command": command.command_line(),
        **machine.describe(arguments.threads),
        "name": arguments.name,
        "configuration": asdict(CONFIGURATIONS[arguments.name]),
        "rounds": arguments.rounds,
        "cases": {
            name: {"title": here[name].title, "seconds": each, **report.spread(each)}
            for name, each in found.items()
        },
        "skipped": {n: f"{case.needs} is not here" for n, case in wanted.items() if n not in here},
    }
    if arguments.out:
        report.write(whole, arguments.out)
    show(whole, arguments.style)
    return 0


def show(found: dict[str, Any], style: str) -> None:
    """Print the table, and what it leaves out."""
    rows = [
        [case["title"], *(f"{case[each]:.3f}" for each in ("median", "min", "max"))]
        for case in found["cases"].values()
    ]
    print(
        f"Whole processes, configuration {found['name']}, {found['machine']['threads']} threads, "
        f"{found['rounds']} rounds; {found['machine']['processor']}, {found['date']}\n"
    )
    print(report.table(("process", "seconds", "min", "max"), rows, style))
    for name, reason in found["skipped"].items():
        print(f"\n{name}: skipped: {reason}")


if __name__ == "__main__":
    sys.exit(main())
