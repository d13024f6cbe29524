"""The rows of the matrix fail for each of these bugs, planted one at a time in a copy of vitkit.

As in ``tests/planted``: a plant replaces text that must occur exactly once, the copy without one
passes the same tests, and a plant must fail them by what it does, not by a name that is not there.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from injecting import Injected

ROOT = Path(__file__).resolve().parents[2]
COPIED = (
    *("pyproject.toml", "vitkit", "tests/conftest.py"),
    *("tests/checkpoint", "tests/train", "tests/faults"),
)
FILES = "tests/checkpoint/test_files.py"
ORDER = f"{FILES}::test_everything_is_synced_before_the_name_is_given"
BITS = f"{FILES}::test_every_bit_of_a_small_file_matters"
F7 = "tests/faults/test_f07_damaged_checkpoints.py::test_no_mutation_is_silently_wrong"
F3 = "tests/faults/test_f03_every_step.py::test_every_step[adamw-averaged]"
BEST = "tests/train/test_checkpointing.py::test_the_best_outlives_a_resume"
SCALE = "0.05"  # of the faults of each row: two steps of 40 are resumed from


class Plant(NamedTuple):
    """A bug: in which file what is replaced by what, and the test that must see it."""

    name: str
    file: str
    old: str
    new: str
    test: str


PLANTS = (
    Plant(
        "the name is given before the files are synced",
        "checkpoint/files.py",
        "        for file in temporary.iterdir():\n            _sync(file)\n",
        "",
        ORDER,
    ),
    Plant(
        "the folder is synced after the name is given",
        "checkpoint/files.py",
        "        _sync(temporary)\n        temporary.rename(path)\n",
        "        temporary.rename(path)\n        _sync(path)\n",
        ORDER,
    ),
    Plant(
        "hashes are not compared",
        "checkpoint/files.py",
        'if _sha256(file) != entry.get("sha256"):',
        "if not _sha256(file):",
        BITS,
    ),
    Plant(
        "nor are they where content is damaged",
        "checkpoint/files.py",
        'if _sha256(file) != entry.get("sha256"):',
        "if not _sha256(file):",
        F7,
    ),
    Plant(
        "how often the average was updated is not kept",
        "optim/ema.py",
        '"updates": self._skipped.made_on_host(self.updates)}',
        '"updates": np.asarray(0)}',
        F3,
    ),
    Plant(
        "how often the average was updated is not taken up",
        "optim/ema.py",
        'self.updates = self._state.load_state_dict(arrays, counter="updates")',
        'self._state.load_state_dict(arrays, counter="updates")',
        F3,
    ),
    Plant(
        "how many updates the optimizer has made is not taken up",
        "optim/optimizer.py",
        'self.steps = self._attached().load_state_dict(arrays, counter="step")',
        'self._attached().load_state_dict(arrays, counter="step")',
        F3,
    ),
    Plant(
        "which checkpoint is best is not taken up",
        "train/callbacks/checkpointing.py",
        'self.best_name, self.best.value = values["best_name"], values["best"]',
        'self.best_name, self.best.value = "", None',
        BEST,  # in F3 each epoch is better than the one before
    ),
)
BROKEN = "AttributeError|ImportError|NameError|SyntaxError|TypeError|UnboundLocalError"


def run_tests(folder: Path, *tests: str) -> subprocess.CompletedProcess[str]:
    """Run tests in a copy, by the references: kernels would have to be compiled for each."""
    dropped = ("PYTEST", "VITKIT_", "PYTHON")
    ours = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    settings = {"VITKIT_KERNELS": "off", "VITKIT_FAULT_SCALE": SCALE, "PYTHONPATH": str(folder)}
    one = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests],
        cwd=folder,
        env={**ours, **one, **settings},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )


def report(result: subprocess.CompletedProcess[str]) -> str:
    return f"exit {result.returncode}\n{result.stdout[-4000:]}\n{result.stderr[-2000:]}"


@pytest.fixture(scope="session")
def sound_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the package and these tests, which it passes."""
    folder = tmp_path_factory.mktemp("sound")
    left_out = shutil.ignore_patterns("*.nbi", "*.nbc", "golden", Path(__file__).name)
    for name in COPIED:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=left_out)
        else:
            shutil.copy2(source, target)
    result = run_tests(folder, *sorted({planted.test for planted in PLANTS}))
    assert result.returncode == 0, report(result)
    assert re.search(r"^\d+ passed in", result.stdout, re.MULTILINE), report(result)
    return folder


@pytest.mark.parametrize("planted", PLANTS, ids=lambda planted: planted.name)
def test_the_matrix_sees(planted: Plant, sound_copy: Path, tmp_path: Path) -> None:
    folder = tmp_path / "planted"
    shutil.copytree(sound_copy, folder)
    file = folder / "vitkit" / planted.file
    text = file.read_text("utf-8")
    assert text.count(planted.old) == 1, f"{planted.old!r}: {text.count(planted.old)} times"
    shutil.rmtree(file.parent / "__pycache__", ignore_errors=True)
    file.write_text(text.replace(planted.old, planted.new), "utf-8")

    result = run_tests(folder, planted.test)

    assert result.returncode == 1, f"No test sees that {planted.name}: {report(result)}"
    summary = result.stdout.rstrip().splitlines()[-1]
    assert re.match(r"1 failed\b", summary), report(result)
    assert "error" not in summary, report(result)
    assert not re.search(rf"^E +({BROKEN})\b", result.stdout, re.MULTILINE), report(result)


def test_there_are_enough_plants(injected: Injected) -> None:
    injected("bugs planted in a copy", len(PLANTS), at_least=8)
