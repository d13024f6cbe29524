"""What looks wrong with a run before it is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vitkit.config import RunConfig
from vitkit.config.checkup import USUAL_LR, checkup
from vitkit.config.data_checkup import data_findings
from vitkit.config.load import recipe, recipes
from vitkit.data import ArrayDataset, Dataset
from vitkit.models import ViT, ViTConfig
from vitkit.nn import Context
from vitkit.optim import SGD, AdamW
from vitkit.plugins import registries
from vitkit.train.memory import forecast, host_memory_left


class Plain(Dataset):
    """A dataset that checks nothing, as one of a plugin may be."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, **options: Any) -> None:
        self._images, self.labels = images, labels
        self.classes = options.get("classes", ("a", "b", "c"))
        self.image_shape = images.shape[1:]
        self.scale = options.get("scale", 255.0)
        self.mean, self.std = options.get("mean", (0.4,)), options.get("std", (0.2,))

    def images(self, indices: np.ndarray) -> np.ndarray:
        return self._images[indices]


def parts(**options: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    made = {}
    for name, count in (("train", 90), ("val", 30), ("test", 60)):
        images = rng.integers(0, 200, (count, 1, 6, 6)).astype("u1")
        made[name] = Plain(images, np.arange(count) % 3, **options)
    return made


def only(found: dict[str, Any]) -> tuple[str, str]:
    remarks, _ = data_findings(found)
    assert len(remarks) == 1, remarks
    return remarks[0]


def test_sound_data_have_no_remarks() -> None:
    remarks, facts = data_findings(parts())
    assert remarks == []
    assert facts == {
        "images": "train 90, val 30, test 60",
        "classes": "3, of 30 to 30 images to train on",
        "images in two parts": "0 of val are in train, 0 of test are in train",
    }


@pytest.mark.parametrize("label", [-1, 3])
@pytest.mark.parametrize("part", ["train", "test"])
def test_labels_out_of_range(part: str, label: int) -> None:
    found = parts()
    found[part].labels[7] = label
    about, what = only(found)
    assert about == f"data, {part}"
    assert what.startswith(f"label {label} at index 7 is out of range, as are 1 of ")


def test_a_class_without_images_and_uneven_ones() -> None:
    found = parts(classes=("a", "b", "c", "d"))
    remarks, _ = data_findings(found)
    assert {about for about, _ in remarks} == {"data, train", "data, val", "data, test"}
    assert "no image is of 1 of 4 classes (d)" in remarks[0][1]
    found = parts()
    found["train"].labels[:] = np.repeat([0, 1, 2], [80, 7, 3])
    assert only(found)[1].startswith("classes are uneven: 80 images of a, 3 of c;")


def _black(images: np.ndarray) -> None:
    images[...] = 0


def _grey(images: np.ndarray) -> None:
    images[...] = 128


def _dark(images: np.ndarray) -> None:
    images //= 20


def _some_empty(images: np.ndarray) -> None:
    images[:5] = np.arange(5, dtype="u1")[:, None, None, None]


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (_black, "every pixel is 0;"),
        (_grey, "every pixel is 128;"),
        (_dark, "pixels are at most 0.035 of the scale 255;"),
        (_some_empty, "of the images are of one single value"),
    ],
)
def test_pixels_that_cannot_be_right(spoil: Callable[[np.ndarray], None], expected: str) -> None:
    found = parts()
    spoil(found["val"]._images)
    remarks, _ = data_findings(found)
    assert any(about == "data, val" and expected in what for about, what in remarks)
    assert all(about == "data, val" for about, _ in remarks)


def test_pixels_above_the_scale_and_statistics_that_are_none() -> None:
    remarks, _ = data_findings(parts(scale=100.0))
    assert len(remarks) == 3
    assert all("above the scale 100" in what for _, what in remarks)
    for wrong in ({"std": (0.0,)}, {"mean": (float("nan"),)}):
        remarks, _ = data_findings(parts(**wrong))
        assert len(remarks) == 3
        assert all("makes no finite numbers" in what for _, what in remarks)


def test_a_negative() -> None:
    found = parts()
    found["test"]._images[...] = 255 - found["test"]._images // 2
    found["train"]._images[...] //= 2
    found["val"]._images[...] //= 2
    about, what = only(found)
    assert about == "data, test"
    assert "probably the negative" in what


def test_images_that_are_in_two_parts() -> None:
    found = parts()
    found["test"]._images[:2] = found["train"]._images[40:42]
    about, what = only(found)
    assert (about, what[:25]) == ("data, test", "2 of its 60 images are am")


def test_large_data_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitkit.config.data_checkup.MOST_BYTES", 100)
    assert "not looked for" in data_findings(parts())[1]["images in two parts"]


@pytest.mark.parametrize(
    "options", [{}, {"gradient_checkpointing": True}, {"dropout": 0.1}], ids=str
)
@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("size", [16, 32])
def test_the_forecast_is_what_a_pass_keeps(size: int, pool: str, options: dict[str, Any]) -> None:
    config = ViTConfig.of(
        "Ti/4",
        image_size=size,
        in_channels=1,
        num_classes=5,
        dim=32,
        depth=5,
        num_heads=2,
        pool=pool,
        **options,
    )
    model = ViT(config)
    for batch in (1, 3, 33):
        ctx = Context(train=True)
        model.forward(np.zeros((batch, 1, size, size), "f4"), ctx)
        needs = forecast(config, AdamW(1e-3), batch)
        again = needs["activations"] - ctx.nbytes
        if options.get("gradient_checkpointing"):  # a block is computed again, and keeps more
            assert again > 0
        else:
            assert abs(again) <= 0.02 * ctx.nbytes
    assert needs["weights"] == 4 * model.num_parameters
    assert needs["optimizer"] == 2 * needs["weights"]
    assert forecast(config, SGD(1e-3), 1)["optimizer"] == len(SGD(1e-3).slots) * needs["weights"]
    double = forecast(config, AdamW(1e-3), 1, dtype="float64")
    assert double["weights"] == 2 * needs["weights"]


def test_the_memory_of_this_machine_is_known_or_not() -> None:
    free = host_memory_left()
    assert free is None or free > 2**20


@pytest.mark.parametrize("name", recipes())
def test_the_recipes_have_usual_learning_rates(name: str) -> None:
    config = RunConfig.model_validate(recipe(name))
    low, high = USUAL_LR[config.optimizer.name]
    assert config.train.lr is not None
    assert low <= config.train.lr <= high


def test_what_cannot_be_built_is_found_and_nothing_is_read_twice() -> None:
    config = RunConfig.model_validate({"model": {"patch_size": 5}, "train": {"lr": 50.0}})
    found = checkup(config, registries())
    assert {remark.about for remark in found.remarks} == {"model.patch_size", "train.lr"}
    assert found.to_dict()["sound"] is False


def test_a_backend_that_cannot_work_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from vitkit.errors import BackendError

    def none(backend: str) -> Any:
        raise BackendError("no GPU")

    monkeypatch.setattr("vitkit.config.checkup.array_module", none)
    (remark,) = checkup(RunConfig.model_validate(recipe("digits")), registries()).remarks
    assert str(remark) == "backend: no GPU"


def test_an_array_dataset_is_looked_at_as_it_is() -> None:
    rng = np.random.default_rng(1)
    images = rng.integers(0, 255, (40, 3, 4, 4)).astype("u1")
    data = ArrayDataset(images, np.arange(40) % 2, classes=["x", "y"])
    other = ArrayDataset(255 - images, np.arange(40) % 2, classes=["x", "y"])
    assert data_findings({"train": data, "test": other})[0] == []
