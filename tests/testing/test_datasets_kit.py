"""The data sets that ship pass, and each planted fault fails the checks it should and no other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults_datasets import FAULTS, FAULTY, right

from vitkit.data import ArrayDataset, Splits, Subset, cifar10, digits, folder, mnist, npz, split
from vitkit.errors import DataError
from vitkit.testing.check import ConformanceError, Outcome, outcome_of, run_checks
from vitkit.testing.datasets import check_dataset, dataset_checks


def outcomes(make: Callable[[], Splits], **options: Any) -> dict[str, Outcome]:
    found = [outcome_of(check) for check in dataset_checks(make, **options)]
    return {outcome.name: outcome for outcome in found}


def failed(make: Callable[[], Splits], **options: Any) -> set[str]:
    return {name for name, one in outcomes(make, **options).items() if one.passed is False}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_by_the_checks_it_concerns(fault: str) -> None:
    make, names, _ = FAULTY[fault]
    check, message = FAULTS[fault]
    assert failed(make) == names
    with pytest.raises(ConformanceError, match=message):
        check()


@pytest.mark.parametrize("make", [digits, right], ids=["digits", "written by hand"])
def test_a_right_data_set_passes_every_check(make: Callable[[], Splits]) -> None:
    assert all(outcome.passed for outcome in outcomes(make).values())


def shapes(count: int, classes: int = 2, side: int = 20, channels: int = 3) -> ArrayDataset:
    """Return stripes that run across, down, or both ways, starting anywhere."""
    rng = np.random.default_rng(count)
    labels = np.arange(count) % classes
    y, x = np.mgrid[:side, :side]
    pixels = np.empty((count, channels, side, side), np.uint8)
    for image, label in zip(pixels, labels, strict=True):
        wave = np.sin((y, x, x + y)[label] * 0.9 + rng.uniform(0, 2 * np.pi))
        image[:] = (120 + 60 * wave + rng.normal(0, 15, image.shape)).clip(0, 255)
    return ArrayDataset(pixels, labels, classes=[f"way {k}" for k in range(classes)])


@pytest.mark.parametrize("classes", [2, 3])
def test_labels_are_seen_to_fit_where_no_single_pixel_says_so(classes: int) -> None:
    found = outcomes(lambda: Splits(shapes(400, classes), shapes(90, classes)))
    assert all(outcome.passed for outcome in found.values())


def test_a_split_made_by_vitkit_passes() -> None:
    assert failed(lambda: Splits(*split(shapes(300), 0.3))) == set()


def random_labels(count: int, classes: int, seed: int) -> ArrayDataset:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 1, 6, 6), np.uint8)
    labels = rng.permutation(np.arange(count) % classes)
    return ArrayDataset(images, labels, classes=[str(k) for k in range(classes)])


@pytest.mark.parametrize("count", [3, 23, 60])
def test_of_few_images_nothing_is_said(count: int) -> None:
    parts = Splits(random_labels(count, 3, 0), random_labels(count, 3, 1))
    found = outcomes(lambda: parts)
    assert not [one for one in found.values() if one.passed is False]
    assert "too few" in found["labels belong to images"].message


@pytest.mark.parametrize("seed", range(20))
def test_labels_that_say_nothing_never_pass(seed: int) -> None:
    """Unequal classes included, where a classifier is often right by naming the frequent one."""
    rng = np.random.default_rng(seed)
    dataset = random_labels(500, 4, seed)
    dataset.labels[rng.random(500) < 0.8 * (seed % 2)] = 0
    parts = Splits(dataset, random_labels(500, 4, seed + 100))
    assert failed(lambda: parts) == {"labels belong to images"}
    assert failed(lambda: parts, learnable=False) == set()


def test_one_class_is_no_fault() -> None:
    parts = Splits(random_labels(50, 1, 0), random_labels(30, 1, 1))
    found = outcomes(lambda: parts)
    assert "single class" in found["labels belong to images"].message
    assert not [one for one in found.values() if one.passed is False]


def test_images_that_are_few_by_nature_may_occur_in_both_parts() -> None:
    """Of two by two black and white pixels there are sixteen images, whatever one does."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 2, (200, 1, 2, 2), np.uint8)
    whole = ArrayDataset(pixels, pixels[:, 0, 0, 0], classes="ab", scale=1)
    assert failed(lambda: Splits(*split(whole, 0.3))) == set()


def test_a_leak_is_seen_in_a_sample_of_many_training_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vitkit.testing.datasets.MOST_PIXELS", 64 * 400)
    make = FAULTY["test images are training images"][0]
    assert failed(make) == {"test images are new"}
    assert failed(right) == set()


def test_files_that_are_missing_skip_every_check(tmp_path: Path) -> None:
    found = outcomes(lambda: mnist(tmp_path)).values()
    assert all(one.passed is None for one in found)
    assert all("vitkit data prepare mnist" in one.message for one in found)

    def own() -> Splits:
        raise DataError("photos: not found.")

    outcome = run_checks("it", dataset_checks(own))[0]
    assert outcome.message == (
        "the files are not here: photos: not found. Get them, then check again."
    )


def test_the_message_lists_what_fails() -> None:
    with pytest.raises(ConformanceError, match="the data set fails 1 of its checks") as caught:
        check_dataset(FAULTY["indices wrap around"][0])
    assert set(caught.value.failures) == {"indices out of range"}


def test_what_waits_for_a_failed_check_is_skipped_with_the_reason() -> None:
    found = outcomes(FAULTY["images are floats"][0])
    assert found["threads"].passed is None
    assert found["threads"].message == "waits for the check 'images', which fails"


def test_make_is_called_twice_and_only_when_a_check_runs() -> None:
    calls = []

    def counted() -> Splits:
        calls.append(1)
        return digits()

    checks = dataset_checks(counted)
    assert not calls
    run_checks("it", checks)
    assert len(calls) == 2


def test_npz_and_folder_pass(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    parts = Splits(shapes(120, channels=1), shapes(40, channels=1))
    arrays = {}
    for name, part in (("train", parts.train), ("test", parts.test)):
        pixels = part.images(np.arange(len(part)))
        arrays[f"x_{name}"], arrays[f"y_{name}"] = pixels[:, 0], part.labels
        for index, label in enumerate(part.labels):
            place = tmp_path / "photos" / name / part.classes[label]
            place.mkdir(parents=True, exist_ok=True)
            image.fromarray(pixels[index, 0]).save(place / f"{index}.png")
    np.savez(tmp_path / "arrays.npz", **arrays)  # type: ignore[arg-type]
    check_dataset(lambda: npz(tmp_path / "arrays.npz"))
    check_dataset(lambda: folder(tmp_path / "photos", 20, 1))


def test_mnist_passes(real_data: Path) -> None:
    if not (real_data / "mnist").is_dir():
        pytest.skip("needs the real MNIST")
    assert all(one.passed for one in outcomes(lambda: mnist(real_data / "mnist")).values())


def test_a_small_cifar_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitkit.data.cifar.OFFICIAL", dict.fromkeys(CIFAR_FILES, 40))
    for seed, name in enumerate(CIFAR_FILES):
        pixels = np.random.default_rng(seed).integers(0, 256, (40, 3072), np.uint8)
        records = np.concatenate([np.arange(40)[:, None] % 10, pixels], axis=1)
        (tmp_path / name).write_bytes(records.astype(np.uint8).tobytes())
    assert failed(lambda: cifar10(tmp_path), learnable=False) == set()


CIFAR_FILES = [*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"]


def test_a_subset_of_a_right_one_passes() -> None:
    splits = digits()
    parts = Splits(Subset(splits.train, np.arange(1000)[::-1]), splits.test)
    assert failed(lambda: parts) == set()
