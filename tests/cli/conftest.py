"""``vitkit`` as a user starts it: another process, its streams, its exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vitkit

ROOT = Path(vitkit.__file__).parents[1]
SMALL = """--model Ti/4 --set model.dim=16 --set model.depth=1 --set model.num_heads=2
--set model.mlp_dim=32 --set data.augment=[] --set train.ema_decay=none --batch-size 256
--backend numpy
""".split()
"""A model that is trained in a moment, whatever the recipe of digits says."""

Vitkit = Callable[..., "subprocess.CompletedProcess[str]"]

# Found at start-up, since its folder is on PYTHONPATH: Matplotlib looks as if it were not there.
HIDDEN = """
from importlib.machinery import PathFinder

find_spec = PathFinder.find_spec

def without_matplotlib(name, *args, **kwargs):
    return None if name.partition(".")[0] == "matplotlib" else find_spec(name, *args, **kwargs)

PathFinder.find_spec = without_matplotlib
"""


def surroundings(*paths: Path, **variables: str) -> dict[str, str]:
    """Return an environment without this terminal's and this user's settings."""
    foreign = ("VITKIT_", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "TERM", "PYTHONPATH")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    found = os.pathsep.join(map(str, (*paths, ROOT)))
    return {**kept, "PYTHONPATH": found, "OMP_NUM_THREADS": "1", **variables}


@pytest.fixture(scope="session")
def environment() -> Callable[..., dict[str, str]]:
    return surroundings


@pytest.fixture(scope="session")
def command() -> list[str]:
    return [sys.executable, "-m", "vitkit"]


@pytest.fixture(scope="session")
def small() -> list[str]:
    return ["train", *SMALL]


@pytest.fixture(scope="session")
def without_matplotlib(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that, on PYTHONPATH, hides Matplotlib."""
    folder = tmp_path_factory.mktemp("hidden")
    (folder / "sitecustomize.py").write_text(HIDDEN)
    return folder


@pytest.fixture(scope="session")
def compiled(command: list[str]) -> None:
    """Compile the kernels, so that no command spends its time on that, or its stderr."""
    ahead = [*command, "kernels", "compile"]
    subprocess.run(ahead, capture_output=True, env=surroundings(), timeout=280, check=True)


@pytest.fixture
def vitkit_(tmp_path: Path, command: list[str], without_matplotlib: Path, compiled: None) -> Vitkit:
    """Return a function that runs a command in an empty folder, without Matplotlib."""

    def start(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=surroundings(without_matplotlib, **variables),
            timeout=120,
            check=False,
        )

    return start


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, compiled: None) -> tuple[Path, Any]:
    """Return the run folder of a short training with everything on, and how it ended."""
    folder = tmp_path_factory.mktemp("trained")
    end = subprocess.run(
        [sys.executable, "-m", "vitkit", "train", *SMALL, "--epochs", "2"],
        capture_output=True,
        text=True,
        cwd=folder,
        env=surroundings(),
        timeout=240,
        check=False,
    )
    assert end.returncode == 0, end.stderr
    return next((folder / "runs").iterdir()), end


@pytest.fixture(scope="session")
def run_folder(trained: tuple[Path, Any]) -> Path:
    return trained[0]
