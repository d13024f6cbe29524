"""F18: a plugin with a fault harms neither the command line, nor another plugin, nor a run.

Each of 24 faults comes through the entry point of an installed distribution and through
``--plugin FILE``, into a ``vitkit`` of its own. A healthy plugin is installed beside it.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import faulty_plugins as faults
import pytest
from faulty_plugins import AT_LOADING, FOR_THE_KIT, HOOK, WHILE_TRAINING

import vitkit

SMALL = """train --model Ti/4 --set model.dim=16 --set model.depth=1 --set model.num_heads=2
--set model.mlp_dim=32 --set data.augment=[] --set train.ema_decay=none --batch-size 270
--backend numpy --epochs 2 --lr 1e-3""".split()
HEALTHY = HOOK.replace('"faulty"', '"tiger"')
FAULTS = 24


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

    def install(self, name: str, source: str) -> None:
        """Make a distribution with one plugin look installed; without source its module is gone."""
        if source:
            (self.site / f"{name}_module.py").write_text(source)
        info = self.site / f"dist_{name}-1.0.dist-info"
        info.mkdir(exist_ok=True)
        metadata = f"Metadata-Version: 2.1\nName: dist-{name}\nVersion: 1.0\n"
        (info / "METADATA").write_text(metadata)
        (info / "entry_points.txt").write_text(f"[vitkit]\n{name} = {name}_module\n")

    def plant(self, source: str) -> None:
        """Put the faulty plugin where it comes in."""
        if self.way == "entry point":
            self.install("faulty", source)
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
        return subprocess.run(
            self.command(*arguments),
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
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    return Place(tmp_path, request.param)


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
        end = subprocess.run(
            [sys.executable, "-m", "vitkit", *use_healthy],
            env=place.environment(),
            capture_output=True,
            text=True,
        )
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
def test_a_plugin_that_breaks_a_run(fault: str, place: Place) -> None:
    source, use, reason, right, step = WHILE_TRAINING[fault]
    place.plant(source)
    end = place.run(*SMALL, "--set", use)
    assert end.returncode == 1, end.stderr
    assert "Traceback" not in end.stderr
    assert re.search(rf"vitkit: plugin '{place.label}': .*{reason}", end.stderr), end.stderr
    folder = place.run_folder()
    if step != 0:  # a run that has made no step has nothing to lose
        pointer = json.loads((folder / "last.json").read_text())
        assert (folder / "checkpoints" / pointer["checkpoint"] / "manifest.json").is_file()
        assert f"vitkit train --resume {folder.relative_to(place.folder)}" in end.stderr
        if step is not None:
            assert pointer["step"] == step
    place.plant(right)
    again = ["train", "--resume", str(folder)] if step != 0 else [*SMALL, "--set", use]
    end = place.run(*again)
    assert end.returncode == 0, end.stderr
    assert "test accuracy" in end.stdout


def test_after_a_break_the_bits_are_those_of_an_undisturbed_run(place: Place) -> None:
    source, use, _, right, _ = WHILE_TRAINING["raises in backward"]
    place.plant(source)
    assert place.run(*SMALL, "--set", use, "--out", "broken").returncode == 1
    place.plant(right)
    (broken,) = (place.folder / "broken").iterdir()
    assert place.run("train", "--resume", str(broken)).returncode == 0
    assert place.run(*SMALL, "--set", use, "--out", "whole").returncode == 0
    (whole,) = (place.folder / "whole").iterdir()

    def weights(folder: Path) -> dict[str, bytes]:
        name = json.loads((folder / "last.json").read_text())["checkpoint"]
        return {
            stem: (folder / "checkpoints" / name / f"{stem}.safetensors").read_bytes()
            for stem in ("model", "optim")
        }

    assert weights(broken) == weights(whole)


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
    end = place.run(*SMALL, "--epochs", "1", "--set", "optimizer=faulty", "--json")
    assert end.returncode == 0, end.stderr
    assert json.loads(end.stdout)["epochs"] == 1
    assert "noise" in end.stderr
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
