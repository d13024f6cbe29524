"""F20: what should not change a run changes no bit of it, and a run resumed elsewhere says so.

Each of 20 runs of a small model is a process of its own with one thing changed, and leaves the
weights, moments, average, position and numbers of the unchanged run, bit for bit. Another kernel
of BLAS or number of threads may change the last digits of a run that is taken up with it: a line
says which.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from injecting import Injected

import vitkit

SMALL = """train --model Ti/4 --backend numpy --batch-size 270 --epochs 2 --lr 1e-3
--set model.dim=16 --set model.depth=2 --set model.num_heads=2 --set model.mlp_dim=32
--set model.dropout=0.1 --set model.drop_path=0.1 --set train.ema_decay=0.9
--set train.log_every=2 --set""".split()
SMALL.append("data.augment=['affine(degrees=10, translate=0.1)', 'crop(padding=1)', 'flip']")
TIMES = ("seconds", "images_per_second", "plots")
NO_PICTURES = "import sys; sys.modules['matplotlib'] = None\n"
START = "import runpy; runpy.run_module('vitkit', run_name='__main__', alter_sys=True)"
NUMERICS = """import json, numpy, threadpoolctl
from vitkit.train.environment import numerics
kinds = [pool.get("architecture", "") for pool in threadpoolctl.threadpool_info()
         if pool.get("user_api") == "blas"]
print(json.dumps([numerics(numpy), kinds]))"""
DIFFERS = "The last digits may differ from those of an undisturbed run: "
EVERYTHING = ("arrays", "rows", "trainer", "summary")


class Row(NamedTuple):
    """What a run has otherwise, and which parts of its record are the same all the same."""

    name: str
    arguments: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    before: str = NO_PICTURES
    folder: str = "."
    same: tuple[str, ...] = EVERYTHING


def setting(text: str, *same: str) -> Row:
    return Row(text, ("--set", text), same=same or EVERYTHING)


def variable(name: str, value: str) -> Row:
    return Row(f"{name}={value}", environment=((name, value),))


TERMINAL = "a bar on a terminal"
BACKWARDS = "import vitkit.cli.main, vitkit.plugins, vitkit.checkpoint, vitkit.optim, vitkit.ops\n"
ROWS = (
    Row("again"),
    setting("data.num_workers=1"),
    setting("data.num_workers=4"),
    *(variable("PYTHONHASHSEED", seed) for seed in "1 2 31337 4294967295 random".split()),
    variable("OPENBLAS_NUM_THREADS", "2"),
    Row("libraries first", before=f"{NO_PICTURES}import PIL.Image, numba, scipy.linalg\n"),
    Row("the last layer first", before=NO_PICTURES + BACKWARDS),
    Row(TERMINAL),
    Row("pictures", before=""),
    # The losses of an epoch are summed in other parts, and rounded otherwise.
    setting("train.log_every=1", "arrays", "validation"),
    setting("train.eval_every=2", "arrays"),
    setting("train.save_every=3"),
    setting("train.keep=1"),
    Row("another working directory", folder="some/where else"),
    Row("a longer name", ("--name", "n" * 100)),
    Row("a profile", ("--profile",)),
)


def environment(**changes: str) -> dict[str, str]:
    """Return the variables of a child; none of ours reaches it but these."""
    foreign = ("VITKIT_", "PYTHON", "OPENBLAS_", "FORCE_COLOR", "NO_COLOR")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
    one = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "VITKIT_NUM_THREADS"), "1")
    path = {"PYTHONPATH": str(Path(vitkit.__file__).parents[1]), "PYTHONHASHSEED": "0"}
    return {**kept, **one, **path, **changes}


def python(
    code: str, folder: Path, *arguments: str, **changes: str
) -> subprocess.CompletedProcess[str]:
    end = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert end.returncode == 0, end.stderr
    return end


def on_a_terminal(command: list[str], folder: Path) -> str:
    """Run a command whose stderr is a terminal, and return what it showed there."""
    if os.name == "nt":
        pytest.skip("Windows has no pseudo-terminal in Python")
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment(TERM="xterm"),
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 4096):
            shown += piece
    except OSError:  # Linux says so that nobody has the other end open any more
        pass
    finally:
        os.close(ours)
    assert process.wait(timeout=120) == 0, shown
    return shown.decode()


def train(folder: Path, row: Row) -> tuple[Path, str]:
    """Train with one thing changed; return the run folder and what was shown."""
    folder /= row.folder
    folder.mkdir(parents=True, exist_ok=True)
    code = f"{row.before}{START}"
    if row.name == TERMINAL:
        shown = on_a_terminal([sys.executable, "-c", code, *SMALL], folder)
    else:
        given = [*SMALL, "--quiet", *row.arguments]
        shown = python(code, folder, *given, **dict(row.environment)).stdout
    (run,) = (folder / "runs").iterdir()
    return run, shown


def without_times(document: Any) -> Any:
    if isinstance(document, dict):
        return {key: without_times(value) for key, value in document.items() if key not in TIMES}
    return document


def record(run: Path) -> dict[str, Any]:
    """Return what a run has left, but for what depends on the clock."""
    last = run / "checkpoints" / json.loads((run / "last.json").read_text())["checkpoint"]
    lines = (run / "metrics.jsonl").read_text().splitlines()
    rows = [without_times(json.loads(line)) for line in lines]
    return {
        "arrays": {file.stem: _sha256(file) for file in last.glob("*.safetensors")},
        "rows": rows,
        "validation": [row.get("val_loss") for row in rows if row["event"] == "epoch"],
        "trainer": without_times(json.loads((last / "trainer.json").read_text())),
        "summary": without_times(json.loads((run / "summary.json").read_text())),
    }


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def manifest(run: Path) -> dict[str, Any]:
    last = run / "checkpoints" / json.loads((run / "last.json").read_text())["checkpoint"]
    found: dict[str, Any] = json.loads((last / "manifest.json").read_text())
    return found


def assert_changed(row: Row, run: Path, shown: str) -> None:
    """Check that what was to be changed was."""
    if row.name == "OPENBLAS_NUM_THREADS=2":
        made_with = manifest(run)["environment"]
        if (os.cpu_count() or 1) < 2 or "openblas" not in made_with["BLAS"]:
            pytest.skip(f"one processor, or no OpenBLAS: {made_with['BLAS']}")
        assert made_with["BLAS threads"] == "2"
    elif row.name == TERMINAL:
        assert "\x1b[" in shown
        assert "10/10" in shown
    elif row.name == "a profile":
        assert (run / "profile.json").exists() or "Too few steps" in (run / "log.txt").read_text()
    elif row.arguments[:1] == ("--set",):
        key, _, value = row.arguments[1].rpartition(".")[2].partition("=")
        assert f"{key} = {value}\n" in (run / "config.toml").read_text()
    assert (run / "plots").exists() == (row.name == "pictures")


@pytest.fixture(scope="session")
def unchanged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run folder of the unchanged run."""
    return train(tmp_path_factory.mktemp("unchanged"), Row("unchanged"))[0]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_same_bits(row: Row, unchanged: Path, tmp_path: Path) -> None:
    run, shown = train(tmp_path, row)
    assert_changed(row, run, shown)
    found, expected = record(run), record(unchanged)
    assert found["arrays"].keys() == {"model", "optim", "ema"}
    for part in row.same:
        assert found[part] == expected[part], part


def test_a_change_would_be_seen(unchanged: Path, tmp_path: Path) -> None:
    run, _ = train(tmp_path, Row("another seed", ("--seed", "1")))
    found, expected = record(run), record(unchanged)
    assert [part for part in found if found[part] == expected[part]] == []
    for stem, digest in expected["arrays"].items():
        assert found["arrays"][stem] != digest


def test_there_are_enough_rows(injected: Injected) -> None:
    injected("changes that are to change no bit", len(ROWS), at_least=20)


def elsewhere(changes: dict[str, str], before: dict[str, str]) -> dict[str, str]:
    """Return what numbers depend on under some variables, or skip where these change nothing."""
    found, kinds = json.loads(python(NUMERICS, Path.cwd(), **changes).stdout)
    if found == before:
        pytest.skip(f"{changes} changes nothing here: the BLAS is {kinds}, threads as before")
    if "OPENBLAS_CORETYPE" in changes:
        assert any(kind and kind in found["BLAS"] for kind in kinds), kinds
    return dict(found)


OTHERS = (
    {"OPENBLAS_CORETYPE": "Haswell"},
    {"VITKIT_NUM_THREADS": "2"},
    {"VITKIT_KERNELS": "off"},
)


@pytest.mark.parametrize("changes", [{}, *OTHERS], ids=lambda c: " ".join(c.values()) or "same")
def test_a_run_resumed_elsewhere_says_what_differs(
    changes: dict[str, str], unchanged: Path, tmp_path: Path, injected: Injected
) -> None:
    before = manifest(unchanged)["environment"]
    now = elsewhere(changes, before) if changes else before
    run = tmp_path / "run"
    shutil.copytree(unchanged, run)
    code = f"{NO_PICTURES}{START}"
    end = python(code, tmp_path, "train", "--resume", "run", "--epochs", "3", **changes)
    said = [line for line in end.stderr.splitlines() if DIFFERS in line]
    differ = [
        f"{key} was {old}, is {now.get(key, 'unknown')}"
        for key, old in before.items()
        if now.get(key) != old
    ]
    assert said == ([f"{DIFFERS}{'; '.join(differ)}."] if changes else [])
    assert [line for line in (run / "log.txt").read_text().splitlines() if DIFFERS in line] == said
    assert json.loads((run / "summary.json").read_text())["epochs"] == 3
    assert manifest(run)["environment"] == now  # what its last steps were made with
    injected("things that differ", len(differ), at_least=len(changes) and 1)
