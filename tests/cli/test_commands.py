"""evaluate, predict, data, info and bench."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from vitkit.backend import cuda_status
from vitkit.cli import main
from vitkit.config.load import load
from vitkit.data import digits
from vitkit.train import predict, restore


def invoke(*arguments: str | Path, **environment: str) -> str:
    """Return what a command prints to stdout, in this process; its errors are raised."""
    command = [str(argument) for argument in arguments]
    if command[0] in ("evaluate", "predict"):
        command += ["--backend", "numpy"]
    result = CliRunner().invoke(main.app, command, env=environment, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_evaluate_repeats_what_training_found(run_folder: Path) -> None:
    summary = json.loads((run_folder / "summary.json").read_text())
    for part in ("test", "val"):
        found = json.loads(invoke("evaluate", run_folder, "--split", part, "--json"))
        assert found["split"] == part
        assert found["accuracy"] == summary[f"{part}_accuracy"]
        assert found["loss"] == pytest.approx(summary[f"{part}_loss"], rel=1e-5)
        assert found["count"] == sum(map(sum, found["confusion"]))
        assert len(found["per_class"]) == len(found["classes"]) == 10


def test_evaluate_holds_back_what_training_did(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = invoke("evaluate", run_folder, "--split", "val", "--json")
    assert invoke("evaluate", run_folder, "--split", "val", "--json", VITKIT_SEED="9") == plain
    inside = run_folder / "checkpoints"
    monkeypatch.chdir(inside)
    best = json.loads((run_folder / "best.json").read_text())["checkpoint"]
    found = json.loads(invoke("evaluate", best, "--split", "val", "--json"))
    assert {**found, "checkpoint": ""} == {**json.loads(plain), "checkpoint": ""}


def test_evaluate_finds_the_data_from_another_folder(
    tmp_path: Path, vitkit_: Any, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = np.arange(40) % 2
    pixels = np.full((40, 8, 8), 100, np.uint8) + labels[:, None, None].astype(np.uint8)
    np.savez(tmp_path / "own.npz", x_train=pixels, y_train=labels)
    own = ["--dataset", "npz", "--data-dir", "own.npz", "--epochs", "1", "--batch-size", "8"]
    end = vitkit_(*small, *own, "--set", "model.patch_size=4")
    assert end.returncode == 0, end.stderr
    (run,) = (tmp_path / "runs").iterdir()
    assert load([run / "config.toml"], environ={}).data.path == str(tmp_path.resolve() / "own.npz")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = json.loads(invoke("evaluate", Path("..", "runs", run.name), "--json"))
    assert found["accuracy"] == json.loads((run / "summary.json").read_text())["test_accuracy"]


def test_evaluate_for_people(run_folder: Path) -> None:
    shown = invoke("evaluate", run_folder, "--split", "train").splitlines()
    assert shown[0].endswith("train images: 1293")
    assert shown[1].startswith("top-1 ")
    header, *rows = shown[3:14]
    assert header.split() == ["class", "precision", "recall", "F1", "images"]
    assert [row.split()[0] for row in rows] == [str(k) for k in range(10)]
    assert len({len(line) for line in (header, *rows)}) == 1
    matrix = shown[16:]
    assert len(matrix) == 11
    assert len({len(line) for line in matrix}) == 1
    counts = np.array([line.split()[1:] for line in matrix[1:]], int)
    assert counts.sum() == 1293


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--split", "valid"], 2, "--split: got 'valid'; expected one of test, train, val"),
        (["--which", "bset"], 2, "which: got 'bset', expected best or last; did you mean 'best'?"),
        (["--weights", "x"], 2, "weights: got 'x', expected auto, raw or ema."),
        (["--weights", "ema"], 1, "has no ema.safetensors"),
        (["--backend", "cuda"], 1, "cuda"),
    ],
)
def test_evaluate_says_what_is_wrong(
    arguments: list[str], code: int, message: str, run_folder: Path, vitkit_: Any
) -> None:
    end = vitkit_("evaluate", run_folder, *arguments)
    assert (end.returncode, end.stdout) == (code, "")
    assert message in end.stderr
    assert end.stderr.count("\n") == 1


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Return two of the digits as files, their pixels from 0 to 255."""
    pixels = digits().test.images(np.array([3, 4]))[:, 0].astype(np.float64) / 16 * 255
    paths = [tmp_path / "first.png", tmp_path / "a second.png"]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(np.round(image).astype(np.uint8)).save(path)
    return paths


def test_predict_guesses_as_the_library_does(run_folder: Path, images: list[Path]) -> None:
    found = json.loads(invoke("predict", run_folder, *images, "--top", "10", "--json"))
    restored = restore(run_folder)
    exact = predict(restored.model, digits().test.images(np.array([3, 4])), restored.preprocess)
    assert [row["image"] for row in found] == [str(path) for path in images]
    for row, expected in zip(found, exact, strict=True):
        guesses = {each["class"]: each["probability"] for each in row["classes"]}
        assert list(guesses.values()) == sorted(guesses.values(), reverse=True)
        assert sum(guesses.values()) == pytest.approx(1, rel=1e-5)
        for k, probability in enumerate(expected):  # pixels were rounded to 1/255
            assert guesses[str(k)] == pytest.approx(float(probability), rel=0.05)


def test_predict_for_people_and_inverted(
    run_folder: Path, images: list[Path], tmp_path: Path
) -> None:
    plain = invoke("predict", run_folder, *images, "--top", "2").splitlines()
    assert [line.startswith(str(path)) for line, path in zip(plain, images, strict=True)]
    assert all(line.count("%") == 2 for line in plain)
    with Image.open(images[0]) as image:
        Image.eval(image, lambda value: 255 - value).save(tmp_path / "negative.png")
    inverted = invoke("predict", run_folder, tmp_path / "negative.png", "--invert", "--json")
    again = invoke("predict", run_folder, images[0], "--json")
    assert json.loads(inverted)[0]["classes"] == json.loads(again)[0]["classes"]


def test_predict_says_what_is_wrong(run_folder: Path, tmp_path: Path, vitkit_: Any) -> None:
    (tmp_path / "text.png").write_text("no image")
    for name, message in (("none.png", "there is no such file"), ("text.png", "cannot be read")):
        end = vitkit_("predict", run_folder, name)
        assert (end.returncode, end.stdout) == (1, "")
        assert end.stderr.startswith(f"vitkit: {name}: {message}")
    end = vitkit_("predict", tmp_path, "text.png")
    assert end.returncode == 1
    assert "holds no checkpoint" in end.stderr
    assert vitkit_("predict", run_folder, "text.png", "--top", "0").returncode == 2


def test_data_list_names_every_data_set(tmp_path: Path) -> None:
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "train-images-idx3-ubyte").write_bytes(b"short")
    shown = invoke("data", "list", VITKIT_DATA_DIR=str(tmp_path))
    states = {line.split()[0]: line[15:25].strip() for line in shown.splitlines()[2:]}
    assert states == {
        "digits": "here",
        "mnist": "damaged",
        **dict.fromkeys(("fashion_mnist", "cifar10", "cifar100"), "not here"),
        **dict.fromkeys(("folder", "npz"), "--data-dir"),
    }


def test_data_verify(tmp_path: Path, vitkit_: Any) -> None:
    missing = vitkit_("data", "verify", "mnist", "--data-dir", tmp_path)
    assert (missing.returncode, missing.stdout) == (1, "")
    assert "vitkit data prepare mnist" in missing.stderr
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"short")
    damaged = vitkit_("data", "verify", "mnist", "--data-dir", tmp_path)
    assert damaged.returncode == 1
    assert len(damaged.stdout.splitlines()) == 4  # one short file, three missing
    assert "every file" not in damaged.stdout
    assert vitkit_("data", "verify", "minst").returncode == 1


def test_data_verify_of_the_real_files(real_data: Path) -> None:
    shown = invoke("data", "verify", "mnist", "--data-dir", real_data / "mnist")
    assert shown == "mnist: every file is as published\n"


def test_data_prepare_offline_says_what_to_do(tmp_path: Path, vitkit_: Any) -> None:
    end = vitkit_("data", "prepare", "mnist", "--data-dir", tmp_path / "new", VITKIT_OFFLINE="1")
    assert (end.returncode, end.stdout) == (1, "")
    assert "VITKIT_OFFLINE forbids" in end.stderr
    assert list(tmp_path.iterdir()) == []


def test_data_prepare_shows_its_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import vitkit.data

    def prepare(name: str, folder: Path | None, *, progress: Any) -> Path:
        for done in (1_000_000, 2_500_000):
            progress("images.gz", done, 2_500_000)
        return tmp_path

    monkeypatch.setattr(vitkit.data, "prepare", prepare)
    result = CliRunner().invoke(main.app, ["data", "prepare", "mnist"])
    assert result.stdout == f"mnist is in {tmp_path}\n"
    assert result.stderr == "downloading images.gz, 2.5 MB\n"


def test_info(tmp_path: Path) -> None:
    found = json.loads(invoke("info", "--json", VITKIT_DATA_DIR=str(tmp_path)))
    assert found["packages"]["numpy"] == np.__version__
    assert found["data_dir"] == str(tmp_path)
    assert found["auto"] == ("cupy" if cuda_status().usable else "numpy")
    assert found["cupy"]["usable"] is cuda_status().usable
    shown = invoke("info")
    assert f"numpy         {np.__version__}" in shown
    assert cuda_status().detail in shown


def test_bench() -> None:
    small = ["bench", "--model", "Ti/8", "--image-size", "16", "--depth", "1", "--batch-size", "4"]
    found = json.loads(invoke(*small, "--rounds", "1", "--backend", "numpy", "--json"))
    assert found["batch_size"] == 4
    assert found["precision"] == "float32"
    for row in (found["train"], found["infer"]):
        assert row["images_per_second"] == pytest.approx(4 / row["seconds"])
        assert row["times_as_fast"] > 0
    shown = invoke(*small, "--rounds", "2", "--backend", "numpy").splitlines()
    assert shown[0].startswith("ViT('Ti/8'")
    assert [line.split()[0] for line in shown[1:]] == ["batch", "train", "infer", "matmul"]
    assert shown[2].endswith(" x references")


def test_bench_of_sizes_that_do_not_fit(vitkit_: Any) -> None:
    end = vitkit_("bench", "--model", "Ti/5")
    assert end.returncode == 2
    assert end.stderr.startswith("vitkit: patch_size: 5 does not divide")


def test_bench_of_a_precision_that_nobody_has(vitkit_: Any) -> None:
    end = vitkit_("bench", "--precision", "float8")
    assert end.returncode == 2
    assert end.stderr == (
        "vitkit: --precision: got 'float8'; expected one of float32, tf32, bfloat16, float16\n"
    )


def test_the_configuration_of_a_run_is_its_own(run_folder: Path) -> None:
    config = load([run_folder / "config.toml"], environ={})
    assert (config.model.image_size, config.model.num_classes) == ((8, 8), 10)
