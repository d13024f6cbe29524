"""The two packages and a new one, as a stranger gets them: wheels, in an environment of their own.

Run by ``tox -e plugins``. Needs a package index; no PyTorch.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PROVIDES = {
    "extras_data": {
        "datasets": ["photo_patches"],
        "layers": ["swiglu"],
        "transforms": ["cutout"],
        "models": ["Micro"],
        "commands": ["contact_sheet"],
    },
    "extras_optim": {
        "activations": ["mish"],
        "optimizers": ["muon"],
        "schedules": ["wsd"],
        "kernels": ["mish_numpy", "mish_backward_numpy"],
    },
    "sample": {"activations": ["sample_softsign"], "optimizers": ["sample_signum"]},
}
"""What each plugin registers."""
TRAINING = {
    "extras_data": (
        0.85,  # chance is 22 %
        """--dataset photo_patches --model Micro/8 --epochs 12 --set model.mlp=swiglu
        --set data.augment=["cutout(size=8)","flip"]""",
    ),
    "extras_optim": (
        0.9,
        """--epochs 8 --set optimizer=muon(lr=0.02) --set model.activation=mish
        --set schedule=wsd(decay=0.5)""",
    ),
    "sample": (
        0.5,
        """--epochs 4 --set optimizer=sample_signum(lr=1e-3)
        --set model.activation=sample_softsign""",
    ),
}
"""The least test accuracy, and how to train for it."""
PACKAGES = {name: ROOT / "examples" / f"vitkit-{name.replace('_', '-')}" for name in PROVIDES}


Runs = Callable[[str], Any]


@dataclass
class Environment:
    """A folder with wheels and a virtual environment in which they are installed.

    Attributes
    ----------
    folder : Path
        Where commands run.
    bin : Path
        Where the environment's programs are.
    packages : dict of str to Path
        The source of each plugin.
    """

    folder: Path
    bin: Path
    packages: dict[str, Path]

    def run(
        self, *command: str | Path, code: int = 0, cwd: Path | None = None, **variables: str
    ) -> Any:
        """Run a program of the environment and return how it ended."""
        foreign = ("VITKIT_", "PYTEST_", "PYTHON", "COV_")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
        program, *arguments = map(str, command)
        end = subprocess.run(
            [str(self.bin / program), *arguments],
            cwd=cwd or self.folder,
            env={**kept, "VITKIT_DATA_DIR": str(self.folder / "data"), **variables},
            capture_output=True,
            text=True,
            timeout=280,
        )
        assert end.returncode == code, f"{end.stdout[-4000:]}\n{end.stderr[-4000:]}"
        return end

    def install(self, *sources: Path) -> None:
        """Build a wheel of each source and install it, with what its tests need."""
        wheels = self.folder / "wheels"
        self.run("python", "-m", "pip", "wheel", "-q", "--no-deps", "-w", wheels, *sources)
        built = [wheels / _wheel(source, wheels) for source in sources]
        self.run("python", "-m", "pip", "install", "-q", "pytest>=8.4", *built)


def _wheel(source: Path, wheels: Path) -> str:
    name = re.search(r'^name = "(.*)"$', (source / "pyproject.toml").read_text(), re.MULTILINE)
    assert name is not None
    (found,) = wheels.glob(f"{name[1].replace('-', '_')}-[0-9]*.whl")
    return found.name


@pytest.fixture(scope="session")
def env(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Return an environment with vitkit, both packages, and a new one of the template."""
    folder = tmp_path_factory.mktemp("stranger")
    venv.create(folder / "venv", with_pip=True)
    environment = Environment(
        folder,
        folder / "venv" / ("Scripts" if sys.platform == "win32" else "bin"),
        {**PACKAGES, "sample": folder / "vitkit-sample"},
    )
    environment.install(ROOT, PACKAGES["extras_optim"], PACKAGES["extras_data"])
    environment.run("vitkit", "plugins", "new", "vitkit-sample")
    environment.install(environment.packages["sample"])
    return environment


@pytest.fixture(scope="session")
def runs(env: Environment) -> Runs:
    """Return a function that trains with a plugin, once, and returns the summary."""

    @functools.cache
    def summary(plugin: str) -> Any:
        env.run("vitkit", "data", "prepare", "photo_patches")
        arguments = TRAINING[plugin][1].split()
        end = env.run("vitkit", "train", "-q", "--json", "--backend", "numpy", *arguments)
        return json.loads(end.stdout)

    return summary


plugins = pytest.mark.parametrize("plugin", PROVIDES)


@plugins
def test_its_wheel_is_whole(env: Environment, plugin: str) -> None:
    source = env.packages[plugin]
    with zipfile.ZipFile(env.folder / "wheels" / _wheel(source, env.folder / "wheels")) as wheel:
        shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
        (points,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
        assert wheel.read(points).decode().split() == ["[vitkit]", plugin, "=", f"vitkit_{plugin}"]
    files = [path for path in (source / "src").rglob("*") if path.is_file()]
    assert shipped == {
        path.relative_to(source / "src").as_posix() for path in files if path.suffix != ".pyc"
    }


@plugins
def test_its_own_tests_pass(env: Environment, plugin: str, tmp_path: Path) -> None:
    shutil.copy(env.packages[plugin] / "pyproject.toml", tmp_path)
    shutil.copytree(env.packages[plugin] / "tests", tmp_path / "tests")
    _passed(env.run("python", "-m", "pytest", "-q", cwd=tmp_path), at_least=2)


@plugins
def test_the_kit_finds_nothing_wrong(env: Environment, plugin: str, tmp_path: Path) -> None:
    """``pytest --vitkit-plugin`` and ``vitkit plugins check``, the data set prepared."""
    env.run("vitkit", "data", "prepare", "photo_patches")
    kit = env.run("python", "-m", "pytest", "-q", "--vitkit-plugin", plugin, cwd=tmp_path)
    checked = env.run("vitkit", "plugins", "check", plugin).stdout.splitlines()
    assert re.search(r": \d+ checks, none failed$", checked[-1])
    for kind, names in PROVIDES[plugin].items():
        for name in names:
            (line,) = (each for each in checked if each.startswith(f"{kind[:-1]} {name}: "))
            assert "0 of" not in line
    _passed(kit, at_least=40)


def _passed(end: Any, *, at_least: int) -> None:
    found = re.search(r"(\d+) passed", end.stdout)
    assert found is not None, end.stdout
    assert int(found[1]) >= at_least, end.stdout


def test_they_are_listed(env: Environment) -> None:
    listed = json.loads(env.run("vitkit", "plugins", "--json").stdout)
    assert listed["failed"] == []
    theirs = {p["name"]: p for p in listed["plugins"] if p["source"] == "entry point"}
    assert {name: plugin["provides"] for name, plugin in theirs.items()} == PROVIDES
    for name, plugin in theirs.items():
        assert (plugin["origin"], plugin["version"]) == (env.packages[name].name, "0.1.0")


@plugins
def test_training_with_it_learns(runs: Runs, plugin: str) -> None:
    assert runs(plugin)["test_accuracy"] > TRAINING[plugin][0]


@plugins
def test_a_run_names_the_package_that_it_needs(env: Environment, runs: Runs, plugin: str) -> None:
    run, package = env.folder / runs(plugin)["folder"], env.packages[plugin].name
    kept = [path.read_text() for path in run.rglob("*.json")]
    assert any(f'"{package}"' in text and '"0.1.0"' in text for text in kept)
    assert "accuracy" in env.run("vitkit", "evaluate", run, "--json").stdout
    without = env.run("vitkit", "evaluate", run, code=1, VITKIT_DISABLE_PLUGINS="1")
    assert package in without.stderr


def test_the_command(env: Environment) -> None:
    env.run("vitkit", "data", "prepare", "photo_patches")
    end = env.run("vitkit", "contact-sheet", "--columns", "4")
    assert (env.folder / "contact-sheet.png").is_file()
    assert [line.split()[-1] for line in end.stdout.splitlines()[:2]] == ["sky", "pagoda"]
