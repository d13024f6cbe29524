"""A run that used a plugin, with the plugin, with another version of it, and without it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ZOO = """
from vitkit import hookimpl, ops
from vitkit.optim import SGD

class Zoo(SGD):
    def __init__(self, *args, **kwargs):
        print("made")
        super().__init__(*args, **kwargs)

@hookimpl
def register_activations(register):
    register("zoo_act", ops.silu, ops.silu_backward)

@hookimpl
def register_models(register):
    register("Zoo", dim=16, depth=1, num_heads=2, mlp_dim=32)

@hookimpl
def register_optimizers(register):
    register("zoo_opt", Zoo)
"""
ARGUMENTS = """train --model Zoo/4 --set data.augment=[] --batch-size 512 --backend numpy
--epochs 1 --plugin zoo.py --quiet --json""".split()


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    file = tmp_path / "zoo.py"
    file.write_text(ZOO)
    return file


def trained(vitkit_: Any, *settings: str) -> str:
    """Return the run folder of a training with the plugin."""
    end = vitkit_(*ARGUMENTS, *(word for text in settings for word in ("--set", text)))
    assert end.returncode == 0, end.stderr
    return str(json.loads(end.stdout)["folder"])


def pictured(folder: Path) -> str:
    """Write an image file, and return its name."""
    Image.fromarray(np.full((8, 8), 100, np.uint8)).save(folder / "digit.png")
    return "digit.png"


def test_without_the_plugin_one_line_says_which_and_how_to_get_it(
    vitkit_: Any, zoo: Path, tmp_path: Path
) -> None:
    folder = trained(vitkit_, "model.activation=zoo_act", "optimizer=zoo_opt")
    act, every = "the activation 'zoo_act'", "the activation 'zoo_act' and the optimizer 'zoo_opt'"
    for arguments, uses in {
        ("predict", folder, pictured(tmp_path)): act,
        ("evaluate", folder): act,
        ("train", "--resume", folder): f"the model 'Zoo' and {every}",
        ("train", "--resume", folder, "--print-config"): f"the model 'Zoo' and {every}",
    }.items():
        end = vitkit_(*arguments)
        assert (end.returncode, end.stdout) == (1, ""), arguments
        (line,) = end.stderr.splitlines()
        plugin = rf"plugin 'zoo \({zoo.resolve()} sha256 \w{{12}}\)'"
        cure = f"load it with --plugin {zoo.resolve()}"
        said = f"vitkit: It was made with {uses} of {plugin}, which is not here: {cure}"
        assert re.fullmatch(said, line), line
        assert vitkit_(*arguments, "--plugin", "zoo.py").returncode == 0


def test_an_edited_plugin_is_said_on_a_line_and_goes_on(
    vitkit_: Any, zoo: Path, tmp_path: Path
) -> None:
    folder = trained(vitkit_, "model.activation=zoo_act", "optimizer=zoo_opt")
    shutil.copy(zoo, tmp_path / "before.py")
    zoo.write_text(ZOO.replace('print("made")', "pass"))
    for arguments in (
        ("predict", folder, pictured(tmp_path)),
        ("evaluate", folder),
        ("train", "--resume", folder, "--quiet", "--epochs", "2"),
    ):
        end = vitkit_(*arguments, "--plugin", "zoo.py")
        assert end.returncode == 0, end.stderr
        (line,) = [line for line in end.stderr.splitlines() if line.startswith("vitkit: ")]
        assert re.match(r"vitkit: It was made with the \w+ '\w+' of plugin 'zoo \(/.*zoo\.py", line)
        assert "; here it is that of plugin 'zoo (zoo.py sha256 " in line
    last = ("evaluate", folder, "--which", "last")  # which was made with the edited one
    end = vitkit_(*last, "--plugin", "zoo.py")
    assert (end.returncode, end.stderr) == (0, "")
    end = vitkit_(*last, "--plugin", "before.py")
    assert "It was made with" in end.stderr


def test_a_model_needs_no_plugin_of_which_it_has_only_sizes_and_training(
    vitkit_: Any, zoo: Path, tmp_path: Path
) -> None:
    folder = trained(vitkit_, "optimizer=zoo_opt")
    end = vitkit_("predict", folder, pictured(tmp_path), "--json")
    assert (end.returncode, end.stderr) == (0, "")
    assert json.loads(end.stdout)[0]["image"] == "digit.png"
    end = vitkit_("evaluate", folder, "--json")
    assert (end.returncode, end.stderr) == (0, "")
    assert json.loads(end.stdout)["split"] == "test"


def test_what_a_plugin_prints_is_not_in_a_configuration(vitkit_: Any, zoo: Path) -> None:
    arguments = ("train", "--plugin", "zoo.py", "--set", "optimizer=zoo_opt", "--print-config")
    end = vitkit_(*arguments)
    assert end.returncode == 0
    assert "made" not in end.stdout
    assert end.stderr.splitlines() == ["made"]


def test_what_to_try_next_loads_the_plugin_too(vitkit_: Any, zoo: Path) -> None:
    end = vitkit_(*ARGUMENTS[:-1], "--set", "model.activation=zoo_act")
    assert end.returncode == 0, end.stderr
    shown = [line.split() for line in end.stdout.splitlines() if line.startswith("  vitkit ")]
    assert shown[0][:4] == ["vitkit", "evaluate", "--plugin", "zoo.py"]
    assert vitkit_(*shown[0][1:]).returncode == 0
