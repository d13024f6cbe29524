"""F18: a plugin with a fault harms neither the command line, nor another plugin, nor a run.

Each of 24 faults comes through the entry point of an installed distribution and through
``--plugin FILE``, into a ``vitkit`` of its own. A healthy plugin is installed beside it.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import faulty_plugins as faults
import pytest
from faulty_plugins import AT_LOADING, FOR_THE_KIT, HOOK, WHILE_TRAINING

import vitkit

SMALL = """train --model Ti/4 --set model.dim=16 --set model.depth=1 --set model.num_heads=2
--set model.mlp_dim=32 --set data.augment=[] --set train.ema_decay=0.9 --batch-size 270
--backend numpy --epochs 2 --lr 1e-3""".split()
HEALTHY = HOOK.replace('"faulty"', '"tiger"')
FAULTS = 24
FAULTY = r"faulty \((dist-faulty 1\.0|/.*/faulty\.py sha256 \w{12})\)"


class Place:
    """A folder to work in, a folder of installed distributions, and a way in for a fault."""

    def __init__(self, folder: Path, way: str) -> None:
        self.folder, self.way = folder, way
        self.site = folder / "site"
        self.site.mkdir()
        self.install("alpha", HEALTHY)
        self.file = self.site / "faulty_module.py" if way == "entry point" else folder / "faulty.py"
        self.label = (
            r"faulty \(dist-faulty 1\.0\)"
            if way == "entry point"
            else r"faulty \(faulty\.py( sha256 \w{12})?\)"
        )

    def install(self, name: str, source: str, version: str = "1.0") -> None:
        """Make a distribution with one plugin look installed; without source its module is gone."""
        if source:
            (self.site / f"{name}_module.py").write_text(source)
        for other in self.site.glob(f"dist_{name}-*.dist-info"):
            shutil.rmtree(other)
        info = self.site / f"dist_{name}-{version}.dist-info"
        info.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: dist-{name}\nVersion: {version}\n"
        (info / "METADATA").write_text(metadata)
        (info / "entry_points.txt").write_text(f"[vitkit]\n{name} = {name}_module\n")

    def plant(self, source: str, version: str = "1.0") -> None:
        """Put the faulty plugin where it comes in."""
        if self.way == "entry point":
            self.install("faulty", source, version)
        elif source:
            self.file.write_text(source)

    def environment(self, **variables: str) -> dict[str, str]:
        foreign = ("VITKIT_", "PYTHON")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
        path = os.pathsep.join([str(self.site), str(Path(vitkit.__file__).parents[1])])
        return {**kept, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", **variables}

    def command(self, *arguments: str) -> list[str]:
        given = [] if self.way == "entry point" else ["--plugin", "faulty.py"]
        return [sys.executable, "-m", "vitkit", *arguments, *given]

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run ``vitkit`` with the faulty plugin."""
        return self._run(self.command(*arguments), **variables)

    def run_bare(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run ``vitkit`` with these arguments only."""
        return self._run([sys.executable, "-m", "vitkit", *arguments])

    def _run(self, command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment(**variables),
            capture_output=True,
            text=True,
            timeout=120,
        )

    def run_folder(self) -> Path:
        (folder,) = (self.folder / "runs").iterdir()
        return folder


@pytest.fixture(params=["entry point", "file"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return Place(tmp_path, request.param)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, bytes]]:
    """Return a function that gives the last arrays of a run in which a fault was put right."""

    @functools.cache
    def arrays(fault: str) -> dict[str, bytes]:
        place = Place(tmp_path_factory.mktemp("undisturbed"), "file")
        place.plant(WHILE_TRAINING[fault].right)
        end = place.run(*SMALL, "--set", WHILE_TRAINING[fault].use)
        assert end.returncode == 0, end.stderr
        return last_arrays(place.run_folder())

    return arrays


def last_arrays(run: Path) -> dict[str, bytes]:
    """Return the files of arrays of a run's last checkpoint."""
    last = run / "checkpoints" / json.loads((run / "last.json").read_text())["checkpoint"]
    return {file.name: file.read_bytes() for file in last.glob("*.safetensors")}


def test_all_faults_are_planted() -> None:
    assert faults.COUNT == FAULTS


@pytest.mark.parametrize("fault", AT_LOADING)
def test_a_plugin_that_cannot_be_loaded(fault: str, place: Place) -> None:
    source, reason = AT_LOADING[fault]
    place.plant(source)
    end = place.run("plugins", "--json")
    said = end.stderr.splitlines()
    assert len(said) == 1, end.stderr
    assert re.match(rf"vitkit: Plugin '{place.label}' ", said[0]), said
    assert re.search(reason, said[0]), said
    use_healthy = "train", "--print-config", "--set", "optimizer=tiger"
    if place.way == "file":  # who names a file wants it
        assert (end.returncode, end.stdout) == (1, "")
        end = place.run_bare(*use_healthy)
        assert (end.returncode, end.stderr) == (0, "")
        return
    assert end.returncode == 0
    found = json.loads(end.stdout)
    assert [each["name"] for each in found["plugins"]] == ["vitkit", "vitkit.cli", "alpha"]
    (failed,) = found["failed"]
    assert (failed["name"], failed["origin"], failed["version"]) == ("faulty", "dist-faulty", "1.0")
    assert re.search(reason, failed["error"])
    end = place.run(*use_healthy)
    assert end.returncode == 0
    assert 'optimizer = "tiger"' in end.stdout
    strict = place.run("plugins", VITKIT_STRICT_PLUGINS="1")
    assert (strict.returncode, strict.stdout) == (1, "")
    assert strict.stderr.splitlines() == said


@pytest.mark.parametrize("fault", WHILE_TRAINING)
def test_a_plugin_that_breaks_a_run(
    fault: str, place: Place, undisturbed: Callable[[str], dict[str, bytes]]
) -> None:
    source, use, reason, right, last, apart = WHILE_TRAINING[fault]
    place.plant(source)
    end = place.run(*SMALL, "--set", use)
    assert (end.returncode, end.stdout) == (1, "")
    said = [line for line in end.stderr.splitlines() if line.startswith("vitkit: ")]
    assert end.stderr.splitlines()[-2:] == said  # which plugin and why; where to go on from
    assert re.match(rf"vitkit: plugin '{place.label}': .*{reason}", said[0]), said
    run = place.run_folder()
    assert json.loads((run / "last.json").read_text())["checkpoint"] == last
    assert {path.name for path in run.glob("checkpoints/*")} >= {last, apart} - {""}
    assert f"{run.relative_to(place.folder)}/checkpoints/{last}" in said[1]
    assert apart in said[1]
    arguments = shlex.split(said[1].rpartition("Once this is put right: ")[2])
    assert arguments[:2] == ["vitkit", "train"]
    place.plant(right, "1.1")
    end = place.run_bare(*arguments[1:])  # what was said, word by word
    assert end.returncode == 0, end.stderr
    assert "test accuracy" in end.stdout
    changed = [line for line in end.stderr.splitlines() if line.startswith("vitkit: ")]
    assert len(changed) == 1  # the plugin is another than the run was made with
    assert re.match(rf"vitkit: It was made with the \w+ 'faulty' of plugin '{FAULTY}'", changed[0])
    whole = undisturbed(fault)
    assert whole.keys() == {"model.safetensors", "optim.safetensors", "ema.safetensors"}
    assert last_arrays(run) == whole


@pytest.mark.parametrize("fault", FOR_THE_KIT)
def test_a_plugin_that_only_the_kit_sees_through(fault: str, place: Place) -> None:
    source, reason = FOR_THE_KIT[fault]
    place.plant(source)
    end = place.run("plugins", "check", "faulty")
    assert end.returncode == 1
    assert re.search(reason, end.stdout), end.stdout
    assert end.stderr == ""


def test_what_a_plugin_prints_stays_off_stdout(place: Place) -> None:
    place.plant(faults.NOISY)
    end = place.run(*SMALL, "--epochs", "1", "--set", "model.activation=faulty", "--json")
    assert end.returncode == 0, end.stderr
    assert json.loads(end.stdout)["epochs"] == 1
    assert "noise" in end.stderr
    assert "0.333" in end.stderr
    end = place.run("evaluate", str(place.run_folder()), "--json")
    assert end.returncode == 0, end.stderr
    assert json.loads(end.stdout)["split"] == "test"
    assert "0.333" in end.stderr


def test_a_plugin_that_takes_long_is_named(place: Place) -> None:
    place.plant(faults.SLOW)
    end = place.run("plugins", "--json")
    assert end.returncode == 0
    assert json.loads(end.stdout)["plugins"][-1]["name"] == "faulty"
    if place.way == "entry point":  # who names a file knows which
        assert re.fullmatch(rf"vitkit: Plugin '{place.label}' took 1\.\d s to load\n", end.stderr)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for a single process")
def test_ctrl_c_while_a_plugin_is_imported(place: Place) -> None:
    place.plant(f"import time\nprint('begun', flush=True)\ntime.sleep(60)\n{HOOK}")
    process = subprocess.Popen(
        place.command("plugins"),
        cwd=place.folder,
        env=place.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "begun\n"
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert time.monotonic() - started < 10
    assert "Traceback" not in said
