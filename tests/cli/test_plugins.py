"""``vitkit plugins``, ``--plugin``, and commands that plugins bring."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from vitkit.plugins import API

MISH = '''
"""An activation, an optimizer and a command."""

import vitkit
from vitkit.optim import SGD


def mish(x, *, xp):
    e = xp.exp(-abs(x))
    softplus = xp.log1p(e) + xp.maximum(x, 0)
    return x * xp.tanh(softplus)


def mish_backward(dy, x, *, xp):
    t = xp.tanh(xp.log1p(xp.exp(-abs(x))) + xp.maximum(x, 0))
    sigmoid = 0.5 * (1 + xp.tanh(0.5 * x))
    return dy * (t + x * sigmoid * (1 - t * t){wrong})


class Slow(SGD):
    """SGD under another name."""


def greet(name: str = "you"):
    """Say hello."""
    print(f"hello, {{name}}")


@vitkit.hookimpl
def register_activations(register):
    register("mish", mish, mish_backward)


@vitkit.hookimpl
def register_optimizers(register):
    register("slow", Slow)


@vitkit.hookimpl
def register_commands(register):
    register("say_hello", greet)
'''


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    path = tmp_path / "mish.py"
    path.write_text(MISH.format(wrong=""))
    return path


def test_the_list_says_what_each_registers(vitkit_: Any, plugin: Path) -> None:
    end = vitkit_("plugins", VITKIT_DISABLE_PLUGINS="1")
    assert (end.returncode, end.stderr) == (0, "")
    assert "vitkit plugins new NAME" in end.stdout
    end = vitkit_("plugins", "--plugin", "mish.py", VITKIT_DISABLE_PLUGINS="1")
    assert end.returncode == 0, end.stderr
    shown = end.stdout.partition("mish (mish.py sha256 ")[2].split("\n")
    assert shown[0].endswith("), file")
    assert [line.split() for line in shown[1:4]] == [
        ["activations", "mish"],
        ["optimizers", "slow"],
        ["commands", "say_hello"],
    ]


def test_the_list_as_json(vitkit_: Any, plugin: Path) -> None:
    end = vitkit_("plugins", "--json", "--plugin", "mish.py", VITKIT_DISABLE_PLUGINS="1")
    found = json.loads(end.stdout)
    assert found["api"] == API
    assert found["failed"] == []
    assert [each["name"] for each in found["plugins"]] == ["vitkit", "vitkit.cli", "mish"]
    assert found["plugins"][1]["provides"]["commands"][0] == "train"
    assert found["plugins"][2]["provides"]["activations"] == ["mish"]


def test_a_command_of_a_plugin(vitkit_: Any, plugin: Path) -> None:
    shown = vitkit_("--plugin", "mish.py", "--help").stdout.splitlines()
    assert ["say-hello", "Say", "hello."] in [line.split() for line in shown]
    end = vitkit_("--plugin", "mish.py", "say-hello", "--name", "ViT")
    assert (end.returncode, end.stdout, end.stderr) == (0, "hello, ViT\n", "")
    assert vitkit_("say-hello").returncode == 2


def test_a_plugin_cannot_take_a_command_that_ships(vitkit_: Any, tmp_path: Path) -> None:
    source = MISH.format(wrong="").replace('"say_hello"', '"train"')
    (tmp_path / "mish.py").write_text(source)
    end = vitkit_("--plugin", "mish.py", "info")
    assert end.returncode == 1
    assert end.stderr.startswith("vitkit: Plugin 'mish (mish.py sha256 ")
    assert end.stderr.endswith(
        "registers the command 'train', which plugin 'vitkit.cli' has already registered.\n"
    )
    assert end.stdout == ""


def test_names_of_a_plugin_train(vitkit_: Any, small: list[str], plugin: Path) -> None:
    end = vitkit_(
        *small, "--epochs", "1", "--plugin", "mish.py",
        *("--set", "model.activation=mish", "--set", "optimizer=slow(momentum=0.9)"), "--json",
    )  # fmt: skip
    assert end.returncode == 0, end.stderr
    folder = plugin.parent / json.loads(end.stdout)["folder"]
    config = tomllib.loads((folder / "config.toml").read_text())
    assert config["model"]["activation"] == "mish"
    assert config["optimizer"].startswith("slow(momentum=0.9")
    assert vitkit_("evaluate", folder, "--plugin", "mish.py").returncode == 0


def test_a_name_without_its_plugin_is_unknown(vitkit_: Any, small: list[str]) -> None:
    end = vitkit_(*small, "--set", "optimizer=slow", "--set", "model.activation=mish")
    assert end.returncode == 2
    assert "optimizer: no optimizer is named 'slow'" in end.stderr
    assert "model.activation: got 'mish'" in end.stderr


def test_the_kit_passes_a_right_plugin(vitkit_: Any, plugin: Path) -> None:
    end = vitkit_("plugins", "check", "mish.py")
    assert end.returncode == 0, end.stdout + end.stderr
    assert "activation mish: " in end.stdout
    assert end.stdout.endswith(" checks, none failed\n")


def test_the_kit_names_what_is_wrong(vitkit_: Any, tmp_path: Path) -> None:
    (tmp_path / "mish.py").write_text(MISH.format(wrong=" + 0.01"))
    end = vitkit_("plugins", "check", "mish.py")
    assert end.returncode == 1
    assert "FAILED  gradient" in end.stdout
    assert "mish_backward" in end.stdout
    assert end.stderr == ""
    found = json.loads(vitkit_("plugins", "check", "mish.py", "--json").stdout)
    failed = {c["check"] for c in found["checks"] if c["outcome"] == "failed"}
    assert "gradient" in failed
    assert {c["object"] for c in found["checks"] if c["outcome"] == "failed"} == {"activation mish"}


def test_an_unknown_plugin_is_refused_with_those_that_are_there(vitkit_: Any) -> None:
    end = vitkit_("plugins", "check", "vitki", VITKIT_DISABLE_PLUGINS="1")
    assert end.returncode == 1
    assert end.stderr == (
        "vitkit: no plugin is named 'vitki'; did you mean 'vitkit'? Loaded: vitkit, vitkit.cli.\n"
    )
