"""``vitkit plugins new``: what it writes is a plugin whose tests pass at once."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

import vitkit
from vitkit.cli import main
from vitkit.errors import ConfigError
from vitkit.plugins.template import FILES, module_name, plugin_name, render

NAMES = {
    "vitkit-mish": ("vitkit_mish", "mish"),
    "Vitkit.Two-Words": ("vitkit_two_words", "two_words"),
    "sparse_vit": ("sparse_vit", "sparse_vit"),
    "vitkit-3d": ("vitkit_3d", "vitkit_3d"),
    "vitkit-import": ("vitkit_import", "vitkit_import"),
    "vitkit-vitkit": ("vitkit_vitkit", "vitkit_vitkit"),
}


@pytest.mark.parametrize("name", NAMES)
def test_names(name: str) -> None:
    module = module_name(name)
    assert (module, plugin_name(module)) == NAMES[name]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "begins and ends with a letter or digit"),
        ("-mish", "begins and ends with a letter or digit"),
        ("mish.", "begins and ends with a letter or digit"),
        ("mish\n", "begins and ends with a letter or digit"),
        ("a plugin", "begins and ends with a letter or digit"),
        ("../mish", "begins and ends with a letter or digit"),
        ("mïsh", "begins and ends with a letter or digit"),
        ("3d", "whose module '3d' Python could not import; take another name, such as vitkit-3d"),
        ("class", "whose module 'class' Python could not import"),
        ("vitkit", "the name of a module that there is; take another, such as vitkit-plugin"),
        ("JSON", "the name of a module that there is; take another, such as vitkit-JSON"),
    ],
)
def test_a_name_that_cannot_be_is_refused(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        render(name, tmp_path)
    assert message in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "vitkit-mish").mkdir()
    with pytest.raises(ConfigError, match="vitkit-mish is there already"):
        render("vitkit-mish", tmp_path)
    assert list((tmp_path / "vitkit-mish").iterdir()) == []


def test_every_template_is_used_and_every_word_filled_in(tmp_path: Path) -> None:
    beside = Path(vitkit.__file__).parent / "plugins" / "new_package"
    assert sorted(FILES.values()) == sorted(path.name for path in beside.iterdir())
    folder = render("vitkit-mish", tmp_path)
    written = [path for path in folder.rglob("*") if path.is_file()]
    assert len(written) == len(FILES)
    assert not [path for path in written if "$" in path.read_text() + path.name]


def test_a_new_package_is_right(tmp_path: Path) -> None:
    """Its own tests pass, and so does the kit on all that it registers."""
    end = CliRunner().invoke(main.app, ["plugins", "new", "vitkit-mish", "--out", str(tmp_path)])
    assert end.exit_code == 0, end.output
    folder = tmp_path / "vitkit-mish"
    assert end.stdout.startswith(f"{folder} has a plugin with an activation, an optimizer")
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["vitkit"] == {"mish": "vitkit_mish"}

    found = os.pathsep.join([str(folder / "src"), str(Path(vitkit.__file__).parents[1])])
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v"]
    done = subprocess.run(
        [*command, "-p", "vitkit.pytest_plugin", "--vitkit-plugin", "vitkit_mish"],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": found,
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "VITKIT_DISABLE_PLUGINS": "1",
        },
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for test in ("test_softsign PASSED", "test_signum PASSED"):
        assert test in done.stdout
    for check in ("activation mish_softsign: gradient", "optimizer mish_signum: descends"):
        assert f"{check} PASSED" in done.stdout
