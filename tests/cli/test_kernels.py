"""``vitkit kernels``, and what ``vitkit info`` says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import vitkit.kernels.ahead
from vitkit.cli import main
from vitkit.kernels import state, why_none
from vitkit.kernels.ahead import Compiled

HERE = why_none(np)
needs_kernels = pytest.mark.skipif(bool(HERE), reason=f"there are no kernels here: {HERE}")


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(main.app, [*arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@needs_kernels
def test_the_list() -> None:
    found = json.loads(invoke("kernels", "--json"))
    assert found.pop("operations") == state.serving()
    assert found == state.describe()
    lines = invoke("kernels").splitlines()
    titles = [line.split("  ")[0] for line in lines[: lines.index("")]]
    assert titles == ["CPU kernels", "vectors", "bfloat16", "threads", "compiled", "kept in"]
    served = dict(line.split(maxsplit=1) for line in lines[lines.index("") + 2 :])
    assert served["mlp_branch"] == "vitkit.kernels.cpu.mlp"
    assert served["pool_first"] == "its reference"


@needs_kernels
def test_what_a_plugin_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    op = state.operations()["relu"]
    monkeypatch.setitem(op.overrides, "numpy", json.dumps)
    assert "relu                               json\n" in invoke("kernels")


@needs_kernels
def test_info_says_which_way_the_cpu_goes() -> None:
    assert json.loads(invoke("info", "--json"))["kernels"] == state.describe()
    shown = invoke("info").splitlines()
    assert any(line.startswith("CPU kernels   for ") for line in shown)
    assert any(line.startswith("bfloat16      ") for line in shown)


@needs_kernels
def test_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_all(progress: Any) -> Compiled:
        for done, name in enumerate(("gelu", "mlp_branch, bfloat16")):
            progress(name, done, 2)
        return Compiled(7, 1.25)

    monkeypatch.setattr(vitkit.kernels.ahead, "compile_all", compile_all)
    result = CliRunner().invoke(main.app, ["kernels", "compile"], catch_exceptions=False)
    first, second = result.stdout.splitlines()
    assert first == "compiled 7 functions in 1.2 s"
    assert second.startswith("kept ")
    assert result.stderr.splitlines() == [
        "compiling gelu (1 of 2)",
        "compiling mlp_branch, bfloat16 (2 of 2)",
    ]
    found = json.loads(invoke("kernels", "compile", "--json"))
    assert (found["functions"], found["seconds"]) == (7, 1.25)
    assert found["compiled"] == state.describe()["compiled"]


@needs_kernels
def test_compile_as_a_user_starts_it(vitkit_: Any) -> None:
    end = vitkit_("kernels", "compile")  # after the fixture has compiled them
    assert end.returncode == 0, end.stderr
    assert end.stdout.startswith("compiled 0 functions in ")
    assert "compiling gelu (" in end.stderr


def test_where_kernels_are_off(vitkit_: Any) -> None:
    end = vitkit_("kernels", "compile", VITKIT_KERNELS="off")
    assert (end.returncode, end.stderr) == (0, "")
    assert end.stdout == "There are no kernels to compile: VITKIT_KERNELS=off.\n"
    end = vitkit_("kernels", VITKIT_KERNELS="off")
    assert end.stdout == (
        "CPU kernels   none: VITKIT_KERNELS=off; operations run by their references\n"
    )
    end = vitkit_("kernels", "--json", VITKIT_KERNELS="off")
    assert json.loads(end.stdout)["why_none"] == "VITKIT_KERNELS=off"
    assert json.loads(vitkit_("kernels", "compile", "--json", VITKIT_KERNELS="off").stdout) == {}


def test_where_numba_is_not_installed(vitkit_: Any, tmp_path: Path) -> None:
    hidden = tmp_path / "numba.py"
    hidden.write_text("raise ModuleNotFoundError(\"No module named 'numba'\")\n")
    end = vitkit_("kernels", "compile")  # the folder it runs in comes first on the path
    assert end.returncode == 0, end.stderr
    assert end.stdout == "There are no kernels to compile: No module named 'numba'.\n"
    assert "operations run by their references" in end.stderr
    small = ["bench", "--model", "Ti/8", "--image-size", "16", "--depth", "1", "--batch-size", "4"]
    end = vitkit_(*small, "--rounds", "1", "--backend", "numpy")
    assert end.returncode == 0, end.stderr
    end = vitkit_("info")
    assert "CPU kernels   none: No module named 'numba'" in end.stdout


def test_json_comes_after_the_command() -> None:
    result = CliRunner().invoke(main.app, ["kernels", "--json", "compile"])
    assert result.exit_code == 2
    assert "write --json after the command" in result.stderr
