"""What a run says of graphs counts wherever its model infers."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vitkit.cli import main
from vitkit.train import plots, recorded


def invoke(*arguments: str | Path) -> None:
    result = CliRunner().invoke(main.app, [str(each) for each in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("graph", ["false", "none"])
def test_validation_results_and_later_evaluations_follow_the_run(
    graph: str, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: list[bool | None] = []
    wants_graphs = recorded.wants_graphs

    def noted(xp: object, graph: bool | None) -> bool:
        wanted.append(graph)
        return wants_graphs(xp, graph)

    for name in ("evaluate", "trainer", "callbacks.evaluation"):
        monkeypatch.setattr(import_module(f"vitkit.train.{name}"), "wants_graphs", noted)
    monkeypatch.setattr(plots, "available", lambda: False)
    monkeypatch.chdir(tmp_path)
    setting = {"false": False, "none": None}[graph]
    invoke(*small, "--epochs", "1", "--set", f"train.graph={graph}")
    # The trainer, its steps, validations before the run and in it, results of two parts.
    assert wanted == [setting] * 6
    wanted.clear()
    (run,) = Path("runs").iterdir()
    invoke("evaluate", run, "--backend", "numpy")
    assert wanted == [setting]
    wanted.clear()
    before = (run / "config.toml").read_text()
    insisting = before.replace("\ngraph = ", "\ngraph = true # ")
    assert insisting != before
    (run / "config.toml").write_text(insisting)
    invoke("evaluate", run, "--backend", "numpy")  # where nothing can be recorded
    assert wanted == [None]
