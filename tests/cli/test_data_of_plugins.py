"""``vitkit data`` with data sets of plugins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

STRIPES = '''
"""Two data sets, one of which makes its file when asked to."""

from pathlib import Path

import numpy as np
from vitkit import hookimpl
from vitkit.data import data_dir, npz
from vitkit.errors import DataError


def stripes(folder=None):
    file = (Path(folder) if folder else data_dir() / "stripes") / "stripes.npz"
    if not file.is_file():
        raise DataError(f"{file} is missing; run `vitkit data prepare stripes`.")
    return npz(file)


def prepare(folder, progress):
    labels = np.arange(40) % 2
    images = np.zeros((40, 8, 8), np.uint8)
    images[labels == 0, ::2], images[labels == 1, :, ::2] = 255, 255
    folder.mkdir(parents=True, exist_ok=True)
    for done in (1_000_000, 2_000_000):
        progress("stripes.npz", done, 2_000_000)
    np.savez(folder / "stripes.npz", x_train=images, y_train=labels)


def noise():
    raise AssertionError("a list reads no data")


@hookimpl
def register_datasets(register):
    register("stripes", stripes, prepare=prepare, title="stripes, 8x8")
    register("noise", noise)
'''


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    path = tmp_path / "stripes_plugin.py"
    path.write_text(STRIPES)
    return path


@pytest.fixture
def data(plugin: Path, vitkit_: Any, tmp_path: Path) -> Any:
    """Return a function that runs ``vitkit data`` with the plugin."""

    def start(command: str, *arguments: str | Path) -> Any:
        folder = str(tmp_path / "data")
        return vitkit_("data", command, *arguments, "--plugin", plugin, VITKIT_DATA_DIR=folder)

    return start


def test_a_plugins_data_set_is_listed_prepared_and_verified(data: Any, tmp_path: Path) -> None:
    def state() -> str:
        end = data("list")
        assert end.returncode == 0, end.stderr
        *_, line, other = end.stdout.splitlines()
        assert line.startswith("stripes ")
        assert "stripes, 8x8; plugin stripes_plugin (" in line
        assert other.split()[:3] == ["noise", "as", "it"]
        return str(line[15:25].strip())

    assert state() == "not here"
    before = data("verify", "stripes")
    assert (before.returncode, before.stdout) == (1, "")
    assert before.stderr.startswith("vitkit: plugin 'stripes_plugin (")
    assert "run `vitkit data prepare stripes`" in before.stderr

    end = data("prepare", "stripes")
    place = tmp_path / "data" / "stripes"
    assert (end.returncode, end.stdout) == (0, f"stripes is in {place}\n")
    assert end.stderr == "preparing stripes.npz, 2.0 MB\n"
    assert state() == "here"
    after = data("verify", "stripes")
    assert after.stdout == "stripes: 32 training and 8 test images are read\n"


def test_another_folder_can_be_named(data: Any, tmp_path: Path) -> None:
    end = data("prepare", "stripes", "--data-dir", tmp_path / "mine")
    assert end.stdout == f"stripes is in {tmp_path / 'mine'}\n"
    assert data("verify", "stripes", "--data-dir", tmp_path / "mine").returncode == 0
    assert data("verify", "stripes").returncode == 1


def test_a_miss_says_what_there_is(data: Any) -> None:
    end = data("prepare", "stirpes")
    assert (end.returncode, end.stdout) == (1, "")
    assert end.stderr == (
        "vitkit: No dataset 'stirpes' can be prepared; did you mean 'stripes'? Known: mnist, "
        "fashion_mnist, cifar10, cifar100, stripes.\n"
    )
    assert "noise: its plugin has no step to prepare it" in data("prepare", "noise").stderr
    assert "cifar100, stripes, noise." in data("verify", "nothing like it").stderr


def test_training_says_how_to_get_the_data(
    data: Any, plugin: Path, small: list[str], vitkit_: Any, tmp_path: Path
) -> None:
    own = ["--dataset", "stripes", "--epochs", "1", "--plugin", plugin]
    folder = str(tmp_path / "data")
    end = vitkit_(*small, *own, VITKIT_DATA_DIR=folder)
    assert end.returncode == 1
    assert "run `vitkit data prepare stripes`" in end.stderr
    assert data("prepare", "stripes").returncode == 0
    end = vitkit_(*small, *own, "--batch-size", "8", VITKIT_DATA_DIR=folder)
    assert end.returncode == 0, end.stderr
