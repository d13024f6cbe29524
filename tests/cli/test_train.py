"""``vitkit train``: what it leaves, what it prints where, and how it goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vitkit.checkpoint.files as files
from vitkit.train.restore import find_checkpoint

KEYS = """dataset model parameters backend seed epochs seconds train_loss val_accuracy
test_accuracy""".split()


def only_run(folder: Path) -> Path:
    (run,) = (folder / "runs").iterdir()
    return run


def test_a_run_leaves_everything_behind(trained: tuple[Path, Any]) -> None:
    run, _ = trained
    config = tomllib.loads((run / "config.toml").read_text())
    assert (config["train"]["epochs"], config["model"]["dim"]) == (2, 16)
    environment = json.loads((run / "env.json").read_text())
    assert environment["argv"][:3] == ["train", "--model", "Ti/4"]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows if row["event"] == "epoch"] == [1, 2]
    summary = json.loads((run / "summary.json").read_text())
    assert [key for key in KEYS if summary.get(key) is None] == []
    assert (summary["dataset"], summary["model"], summary["epochs"]) == ("digits", "Ti/4", 2)
    assert files.load(find_checkpoint(run, "last")).arrays.keys() == {"model", "optim"}
    assert summary["plots"] == ["plots/curve.png", "plots/attention.png"]
    for picture in summary["plots"]:
        with Image.open(run / picture) as image:
            assert image.format == "PNG"
            assert len(set(image.convert("L").tobytes())) > 20
    assert "epoch 2/2" in (run / "log.txt").read_text()


def test_results_go_to_stdout_and_progress_to_stderr(trained: tuple[Path, Any]) -> None:
    run, end = trained
    lines = end.stdout.splitlines()
    assert lines[0].startswith("test accuracy ")
    assert lines[1] == f"run folder    runs/{run.name}"
    assert f"  vitkit evaluate runs/{run.name}" in lines
    assert "epoch" not in end.stdout
    progress = end.stderr.splitlines()
    assert progress[0].startswith("digits: 1293 images to train on")
    assert progress[1].startswith("epoch 1/2  loss ")
    assert len(progress) == 3
    assert "\x1b" not in end.stdout + end.stderr


def test_without_matplotlib_one_line_says_so(
    tmp_path: Path, vitkit_: Any, small: list[str]
) -> None:
    end = vitkit_(*small, "--epochs", "1", "--name", "plain", "--out", "elsewhere")
    assert end.returncode == 0, end.stderr
    assert end.stderr.count("Matplotlib is not installed") == 1
    assert "pip install 'vitkit[plot]'" in end.stderr
    assert "picture" not in end.stdout
    (run,) = (tmp_path / "elsewhere").iterdir()
    assert run.name.endswith("-plain")
    assert not (run / "plots").exists()
    assert json.loads((run / "summary.json").read_text())["plots"] == []


def test_a_note_on_the_training_images_is_printed(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vitkit.cli.train import _report

    summary = json.loads((run_folder / "summary.json").read_text())
    assert summary["train_note"] == ""
    _report(summary, run_folder, False)
    assert "training data" not in capsys.readouterr().out
    _report({**summary, "train_note": "a part only"}, run_folder, False)
    assert "training data a part only\n" in capsys.readouterr().out


def test_json_and_quiet(tmp_path: Path, vitkit_: Any, small: list[str]) -> None:
    end = vitkit_(*small, "--epochs", "1", "--json", "--quiet")
    assert (end.returncode, end.stderr) == (0, "")
    found = json.loads(end.stdout)
    assert found["folder"] == f"runs/{only_run(tmp_path).name}"
    assert found["test_accuracy"] > 0
    summary = json.loads((only_run(tmp_path) / "summary.json").read_text())
    assert {**summary, "folder": found["folder"]} == found


def test_a_profile(tmp_path: Path, vitkit_: Any, small: list[str]) -> None:
    profile = ["--profile", "--profile-steps", "2", "--precision", "bfloat16"]
    end = vitkit_(*small, "--epochs", "1", *profile)
    assert end.returncode == 0, end.stderr
    run = only_run(tmp_path)
    assert f"profile       runs/{run.name}/profile.json" in end.stdout.splitlines()
    table = [line for line in end.stderr.splitlines() if line.startswith("one step of 2 ")]
    assert len(table) == 1
    assert table[0].endswith("100.0%")
    assert json.loads((run / "profile.json").read_text())["steps"] == 2
    assert tomllib.loads((run / "config.toml").read_text())["train"]["precision"] == "bfloat16"


def test_a_run_too_short_for_a_profile(tmp_path: Path, vitkit_: Any, small: list[str]) -> None:
    end = vitkit_(*small, "--epochs", "1", "--batch-size", "1000", "--profile")
    assert end.returncode == 0, end.stderr
    assert "profile" not in end.stdout
    assert "Too few steps for a profile: the first 3 are left out" in end.stderr


def test_a_precision_that_there_is_not(vitkit_: Any) -> None:
    end = vitkit_("train", "--precision", "float8")
    assert (end.returncode, end.stdout) == (2, "")
    assert end.stderr == (
        "vitkit: train.precision: got 'float8' from a flag, expected 'float32', 'tf32', 'bfloat16' "
        "or 'float16'; did you mean 'float32'?\n"
    )


def test_a_narrow_residual_is_for_gpus(tmp_path: Path, vitkit_: Any, small: list[str]) -> None:
    narrow = "--set", "model.residual_in_fp32=false"
    end = vitkit_(*small, "--epochs", "1", "--precision", "bfloat16", *narrow)
    assert end.returncode == 0, end.stderr
    run = only_run(tmp_path)
    assert tomllib.loads((run / "config.toml").read_text())["model"]["residual_in_fp32"] is False
    served = json.loads((run / "env.json").read_text())["precision"]["served"]
    said = {"bfloat16": "residual_in_fp32=False is for GPUs: ", "float32": "in float32 here: "}
    assert end.stderr.count(said[served]) == 1
    end = vitkit_(*small, "--precision", "tf32", *narrow)
    assert (end.returncode, end.stdout) == (2, "")
    assert "train.precision: got 'tf32', but model.residual_in_fp32 is false" in end.stderr


def test_every_problem_has_a_line_and_nothing_is_written(tmp_path: Path, vitkit_: Any) -> None:
    end = vitkit_("train", "--lr", "99", "--backend", "cuda", "--set", "model.num_heads=7")
    assert (end.returncode, end.stdout) == (2, "")
    lines = end.stderr.splitlines()
    assert [line.split(":")[1].strip() for line in lines] == [
        *("backend", "train.lr", "model.num_heads"),
    ]
    assert all(line.startswith("vitkit: ") for line in lines)
    wrong = ("--epochs", "0", "--set", "model.num_heads=5", "--set", "optimizer=zzz")
    for more in ((), ("--print-config",)):
        end = vitkit_("train", *wrong, *more)
        assert (end.returncode, end.stdout) == (2, "")
        assert [line.split(":")[1].strip() for line in end.stderr.splitlines()] == [
            *("train.epochs", "model.num_heads", "optimizer"),
        ]
    end = vitkit_("train", *wrong[2:], "--print-config")
    assert (end.returncode, end.stdout) == (2, "")
    assert end.stderr.count("\n") == 2
    end = vitkit_("train", "--set", "train.epoch=3", "--set", "model.dims=3")
    assert end.returncode == 2
    assert end.stderr.count("\n") == 2
    assert list(tmp_path.iterdir()) == []


def test_a_data_set_that_is_not_here_is_a_line(tmp_path: Path, vitkit_: Any) -> None:
    end = vitkit_("train", "--dataset", "mnist", VITKIT_DATA_DIR=str(tmp_path / "data"))
    assert (end.returncode, end.stdout) == (1, "")
    assert end.stderr.count("\n") == 1
    assert "vitkit data prepare mnist" in end.stderr
    assert list(tmp_path.iterdir()) == []


def test_cupy_where_it_is_not_installed(tmp_path: Path, vitkit_: Any, small: list[str]) -> None:
    from importlib.util import find_spec

    if find_spec("cupy"):
        pytest.skip("CuPy is installed")
    end = vitkit_(*small, "--backend", "cupy")
    assert end.returncode == 1
    assert "CuPy is not installed" in end.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_configuration_goes_round(tmp_path: Path, vitkit_: Any, small: list[str]) -> None:
    first = vitkit_(*small, "--print-config", VITKIT_SEED="7")
    assert (first.returncode, first.stderr) == (0, "")
    assert tomllib.loads(first.stdout)["seed"] == 7
    (tmp_path / "run.toml").write_text(first.stdout)
    again = vitkit_("train", "--config", "run.toml", "--print-config")
    assert again.stdout == first.stdout
    assert not (tmp_path / "runs").exists()


def test_runs_of_the_same_second_have_folders_of_their_own(tmp_path: Path) -> None:
    from vitkit.cli.train import _new

    folder = tmp_path / "run"
    for name in ("run", "run-2", "run-3"):
        new = _new(folder)
        assert new.name == name
        new.mkdir()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume", "nowhere"], "nowhere is no run folder"),
        (["--resume", "."], "has no config.toml"),
        (["--resume", "auto"], "There is nothing to resume under runs"),
    ],
)
def test_there_must_be_a_run_to_resume(
    arguments: list[str], message: str, tmp_path: Path, vitkit_: Any
) -> None:
    end = vitkit_("train", *arguments)
    assert (end.returncode, end.stdout) == (1, "")
    assert message in end.stderr
    assert list(tmp_path.iterdir()) == []


def arrays_of(run: Path) -> dict[str, np.ndarray]:
    arrays = files.load(find_checkpoint(run, "last")).arrays
    return {f"{stem} {name}": a for stem, named in arrays.items() for name, a in named.items()}


@pytest.mark.parametrize(
    ("number", "code", "reason"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_a_signal_ends_a_run_that_can_be_resumed_to_the_same_bits(
    number: signal.Signals,
    code: int,
    reason: str,
    tmp_path: Path,
    vitkit_: Any,
    small: list[str],
    command: list[str],
    environment: Callable[..., dict[str, str]],
    without_matplotlib: Path,
) -> None:
    arguments = [*small, "--epochs", "30", "--set", "model.dropout=0.1", "--batch-size", "64"]
    process = subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment(without_matplotlib),
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("epoch"):
            break
    process.send_signal(number)
    shown, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert f"Stopped: {reason}." in errors
    run = only_run(tmp_path)
    assert f"  vitkit train --resume runs/{run.name}" in shown.splitlines()
    steps = json.loads((run / "summary.json").read_text())["steps"]
    assert 21 <= steps < 30 * 21
    assert find_checkpoint(run, "last").name == f"step-{steps:08d}"

    end = vitkit_("train", "--resume", "auto")
    assert end.returncode == 0, end.stderr
    assert f"from step {steps}." in end.stderr
    whole = vitkit_(*arguments, "--out", "whole")
    assert whole.returncode == 0, whole.stderr
    (undisturbed,) = (tmp_path / "whole").iterdir()
    found, expected = arrays_of(run), arrays_of(undisturbed)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    rows = [
        [json.loads(line)["step"] for line in (each / "metrics.jsonl").read_text().splitlines()]
        for each in (run, undisturbed)
    ]
    assert rows[0] == rows[1]


def test_a_changed_setting_is_refused_at_resume(run_folder: Path, vitkit_: Any) -> None:
    end = vitkit_("train", "--resume", run_folder, VITKIT_SEED="5")
    assert (end.returncode, end.stdout) == (2, "")
    assert end.stderr == "vitkit: seed: got 5, but the run began with 0; leave it out.\n"
