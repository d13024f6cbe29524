"""``vitkit doctor``: steps made again, and runs looked at before they are trained."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import vitkit.checkpoint.files as files
from vitkit.cli import main

Vitkit = Callable[..., "subprocess.CompletedProcess[str]"]
SIZES = ["dim=16", "depth=1", "num_heads=2", "mlp_dim=32"]
SMALL = [
    *("--model", "Ti/4", "--backend", "numpy", "--batch-size", "256"),
    *(word for size in SIZES for word in ("--set", f"model.{size}")),
    *("--set", "data.augment=[]"),
]


def doctor(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(main.app, ["doctor", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def found(*arguments: str | Path) -> dict[str, Any]:
    result = doctor(*arguments, "--json")
    document: dict[str, Any] = json.loads(result.stdout)
    assert result.exit_code == (0 if document["sound"] else 1)
    return document


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that a learning rate has broken."""
    out = tmp_path_factory.mktemp("broken")
    options = ["--lr", "10", "--set", "optimizer=sgd(momentum=0.9)", "--set", "train.epochs=9"]
    options += ["--set", "train.max_grad_norm=none", "--set", "train.warmup_epochs=0", "-q"]
    options += ["--set", "train.nonfinite=stop", "--set", "schedule=constant"]
    arguments = ["train", *SMALL, *options, "--out", str(out)]
    arguments += ["--set", "train.loss=mean_squared_error"]
    with np.errstate(all="ignore"):  # the weights that are left are huge, and are evaluated
        result = CliRunner().invoke(main.app, arguments)
    assert result.exit_code == 0, result.exception
    return next(out.iterdir())


@pytest.fixture
def bundle(broken: Path, tmp_path: Path) -> Path:
    """Return a copy of its bad step, elsewhere."""
    (path,) = broken.glob("bad-step-*")
    return Path(shutil.copytree(path, tmp_path / "elsewhere"))


def changed(bundle: Path, stem: str, change: Callable[[Any], Any]) -> Path:
    """Return another bad step, with other arrays or another document."""
    read = files.load(bundle)
    arrays = {name: dict(named) for name, named in read.arrays.items()}
    documents = json.loads(json.dumps(read.documents))
    change(arrays[stem] if stem in arrays else documents[stem])
    other = bundle.with_name("changed")
    files.save(other, arrays, documents)
    return other


def sound(arrays: dict[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        arrays[name] = np.zeros_like(array)


def test_a_bad_step_is_made_again_and_named(broken: Path, bundle: Path) -> None:
    summary = json.loads((broken / "summary.json").read_text())
    for place in (broken, bundle):
        result = doctor(place)
        assert result.exit_code == 1
        head, finding, cure = result.stdout.splitlines()
        assert head.endswith(f"step {int(next(broken.glob('bad-step-*')).name[-8:])}")
        assert finding in summary["stopped"]
        assert cure
    document = found(bundle)["found"]
    assert document["stage"] in ("forward", "loss", "backward")
    assert document["low"] < document["high"]
    assert summary["steps"] == int(next(broken.glob("bad-step-*")).name[-8:]) - 1


def test_a_step_that_is_sound_is_said_to_be(bundle: Path) -> None:
    better = changed(bundle, "model", sound)
    sounder = changed(better.rename(better.with_name("half")), "optim", sound)
    assert found(sounder) == {"bad_step": str(sounder), "sound": True, "found": None}
    assert "is finite" in doctor(sounder).stdout


def test_the_update_is_made_again_too(bundle: Path) -> None:
    better = changed(bundle, "model", sound)
    names = files.load(bundle).arrays["optim"]
    (slot,) = {name.rpartition(".")[2] for name in names if name.startswith("head.weight.")}

    def spoiled(arrays: dict[str, np.ndarray]) -> None:
        sound(arrays)
        arrays[f"head.weight.{slot}"][0, 1] = np.nan

    half = better.rename(better.with_name("half"))
    document = found(changed(half, "optim", spoiled))["found"]
    assert document["stage"] == "optimizer"
    assert document["array"] == f"state head.weight.{slot}"
    assert document["index"] == [0, 1]


def test_a_run_without_bad_steps_is_sound(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("")
    assert found(tmp_path) == {"bad_step": None, "sound": True, "found": None}
    assert "has no bad step" in doctor(tmp_path).stdout


def test_what_is_no_bad_step_is_an_error(
    bundle: Path, broken: Path, tmp_path: Path, vitkit_: Vitkit
) -> None:
    step = next((broken / "checkpoints").iterdir())
    weights = bundle / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    expected = {
        tmp_path / "nothing": "neither a run folder nor a bad step",
        step: "holds no step.json",
        bundle: "Cannot trust the checkpoint",
    }
    for place, message in expected.items():
        end = vitkit_("doctor", place)
        assert (end.returncode, end.stdout) == (1, "")
        assert message in end.stderr
        assert "Traceback" not in end.stderr


@pytest.mark.parametrize(
    ("stem", "change", "message"),
    [
        ("step", lambda d: d.pop("seed"), "'seed' is missing"),
        ("step", lambda d: d.update(lr="fast"), "could not convert"),
        ("trainer", lambda d: d.update(config="a = ["), "does not hold"),
        ("trainer", lambda d: d.update(config="[train]\nlr = 'x'"), "does not hold"),
        ("trainer", lambda d: d.update(config="optimizer = 'os.system'"), "os.system"),
        ("batch", lambda a: a.pop("0.labels"), "it holds no batches"),
        ("optim", lambda a: a.pop("step"), "missing"),
    ],
    ids=["seed", "rate", "toml", "config", "name", "batch", "state"],
)
def test_a_bad_step_that_does_not_fit_is_an_error(
    stem: str, change: Callable[[Any], Any], message: str, bundle: Path
) -> None:
    from vitkit.errors import CheckpointError

    with pytest.raises(CheckpointError) as error:
        doctor(changed(bundle, stem, change))
    assert message in str(error.value)


def test_settings_and_a_path_do_not_go_together(vitkit_: Vitkit, tmp_path: Path) -> None:
    end = vitkit_("doctor", tmp_path, "--lr", "1")
    assert end.returncode == 2
    assert "expected one of the two" in end.stderr


def test_a_run_that_is_sound_has_facts_alone() -> None:
    document = found(*SMALL)
    assert document["findings"] == []
    assert document["facts"].keys() == {
        *("images", "classes", "images in two parts", "learning rate", "memory")
    }
    assert "Nothing looks wrong." in doctor(*SMALL).stdout


@pytest.mark.parametrize(
    ("options", "about"),
    [
        (["--set", "model.patch_size=3"], "model.patch_size"),
        (["--set", "model.num_heads=3"], "model.num_heads"),
        (["--set", "train.warmup_epochs=900"], "train.warmup_epochs"),
        (["--set", "modle.dim=3"], "modle"),
        (["--lr", "0.5"], "train.lr"),
        (["--lr", "1e-9", "--set", "optimizer=lion"], "train.lr"),
        (["--lr", "99"], "train.lr"),
        (["--batch-size", "4000"], "train.batch_size"),
        (["--dataset", "imagenet"], "data.name"),
        (["--dataset", "npz"], "data.path"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_setting_that_looks_wrong_is_a_finding(options: list[str], about: str) -> None:
    document = found(*SMALL, *options)
    assert about in {finding["about"] for finding in document["findings"]}
    lines = [line for line in doctor(*SMALL, *options).stdout.splitlines() if line[:5] == "wrong"]
    assert len(lines) == len(document["findings"])


def test_a_file_that_is_not_there_is_a_finding(tmp_path: Path) -> None:
    document = found(*SMALL, "--dataset", "npz", "--data-dir", tmp_path / "none.npz")
    (finding,) = document["findings"]
    assert "none.npz" in finding["what"]


def test_images_are_looked_at(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 200, (60, 8, 8), dtype="u1"), np.arange(60) % 3
    np.savez(
        tmp_path / "doubled.npz",
        x_train=images,
        y_train=labels,
        x_test=255 - images,
        y_test=labels,
    )
    np.savez(
        tmp_path / "same.npz", x_train=images, y_train=labels, x_test=images[:9], y_test=labels[:9]
    )
    options = ["--batch-size", "16", "--dataset", "npz", "--data-dir"]
    (same,) = found(*SMALL, *options, tmp_path / "same.npz")["findings"]
    assert same["about"] == "data, test"
    assert "of its 9 images are among those to train on" in same["what"]


def test_memory_that_is_not_there_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitkit.config.checkup.host_memory_left", lambda: 10_000)
    (finding,) = found(*SMALL)["findings"]
    assert finding["about"] == "train.batch_size"
    assert "9.8 KiB are free" in finding["what"]
