"""The examples do what their first line says."""

import runpy
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_every_example_is_listed_and_tested() -> None:
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.py"):
        assert f"`{path.name}`" in listed
        assert path.name in Path(__file__).read_text(encoding="utf-8")


def test_the_training_loop_learns(capsys) -> None:
    main = runpy.run_path(str(EXAMPLES / "train_digits.py"))["main"]
    assert main(epochs=4) > 0.9
    assert capsys.readouterr().out.count("test accuracy") == 4


def test_the_layer_is_right() -> None:
    main = runpy.run_path(str(EXAMPLES / "a_layer_of_your_own.py"))["main"]
    assert main() < 1e-8
