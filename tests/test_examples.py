"""The examples do what their first line says."""

import runpy
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_every_example_is_listed_and_tested() -> None:
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.py"):
        assert f"`{path.name}`" in listed
        assert path.name in Path(__file__).read_text(encoding="utf-8")


def test_every_package_is_listed_and_tested() -> None:
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    tested = (EXAMPLES / "tests" / "test_packages.py").read_text(encoding="utf-8")
    packages = [path.parent for path in EXAMPLES.glob("*/pyproject.toml")]
    assert len(packages) == 2
    for package in packages:
        assert f"`{package.name}`" in listed
        assert f'"{package.name.removeprefix("vitkit-").replace("-", "_")}": {{' in tested
        assert (package / "README.md").stat().st_size


def test_the_training_loop_learns(capsys) -> None:
    main = runpy.run_path(str(EXAMPLES / "train_digits.py"))["main"]
    assert main(epochs=4) > 0.9
    assert capsys.readouterr().out.count("test accuracy") == 4


def test_the_layer_is_right() -> None:
    main = runpy.run_path(str(EXAMPLES / "a_layer_of_your_own.py"))["main"]
    assert main() < 1e-8
