"""``pytest --vitkit-plugin``: a test for each check, with a name that can be read and chosen."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import vitkit

SOURCE = """
import vitkit

def square(x, *, xp):
    return x * x

def square_backward(dy, x, *, xp):
    return {gradient}

@vitkit.hookimpl
def register_activations(register):
    register("square", square, square_backward)
"""


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """Return a function that runs pytest with vitkit's plugin in a folder of its own."""

    def start(*arguments: str, gradient: str = "2 * x * dy") -> Any:
        (tmp_path / "square_plugin.py").write_text(SOURCE.format(gradient=gradient))
        path = os.pathsep.join([str(tmp_path), str(Path(vitkit.__file__).parents[1])])
        environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": path}
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "vitkit.pytest_plugin", "-rs", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return start


@pytest.mark.parametrize("name", ["square_plugin.py", "square_plugin"], ids=["file", "module"])
def test_a_right_plugin_passes(run: Any, name: str) -> None:
    end = run("--vitkit-plugin", name, "-v")
    assert end.returncode == 0, end.stdout
    assert re.search(r"activation square: gradient.* PASSED", end.stdout)
    assert re.search(r"SKIPPED .*(GPU|torch|PyTorch)", end.stdout)


def test_a_wrong_plugin_fails_with_the_message_alone(run: Any) -> None:
    end = run("--vitkit-plugin", "square_plugin.py", gradient="x * dy")
    assert end.returncode == 1
    assert "activation square: gradient" in end.stdout
    assert "square_backward" in end.stdout
    assert "Traceback" not in end.stdout


def test_checks_can_be_chosen(run: Any) -> None:
    end = run("--vitkit-plugin", "square_plugin.py", "-k", "gradient", gradient="x * dy")
    assert re.search(r"\d+ failed.* deselected", end.stdout)
    collected, deselected, selected = re.search(  # type: ignore[union-attr]
        r"collected (\d+) items / (\d+) deselected / (\d+) selected", end.stdout
    ).groups()
    assert int(collected) == int(deselected) + int(selected)


def test_tests_of_the_folder_run_too(run: Any, tmp_path: Path) -> None:
    (tmp_path / "test_own.py").write_text("def test_own(): pass\n")
    end = run("--vitkit-plugin", "square_plugin", "-v")
    assert "test_own.py::test_own PASSED" in end.stdout
    assert end.returncode == 0


def test_an_unknown_plugin_is_a_wrong_usage(run: Any) -> None:
    end = run("--vitkit-plugin", "nowhere")
    assert end.returncode == 4
    assert "--vitkit-plugin nowhere: no plugin is named 'nowhere'" in end.stderr


def test_without_the_option_nothing_heavy_is_imported(tmp_path: Path) -> None:
    code = "import sys, vitkit.pytest_plugin; print(*({'numpy', 'pluggy'} & {*sys.modules}))"
    end = subprocess.run(
        [sys.executable, "-c", f"import pytest; {code}"], capture_output=True, text=True, check=True
    )
    assert "numpy" not in end.stdout
