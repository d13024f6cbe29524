from __future__ import annotations

import importlib

import numpy as np
import pytest

from vitkit.data import ArrayDataset, Subset, channel_statistics, digits, split
from vitkit.errors import ConfigError, DataError


def dataset(counts: list[int]) -> ArrayDataset:
    """Return a dataset with so many images of each class, in mixed order."""
    labels = np.repeat(np.arange(len(counts)), counts)
    labels = np.random.default_rng(0).permutation(labels)
    images = (np.arange(len(labels)) % 251 + 2).astype(np.uint8)[:, None, None, None]
    return ArrayDataset(images, labels, classes=[str(i) for i in range(len(counts))])


def test_images_come_in_the_order_asked_for_and_are_copies() -> None:
    whole = dataset([5, 5])
    images = whole.images(np.array([3, 0, 3]))
    assert images.ravel().tolist() == [5, 2, 5]
    images[:] = 0
    assert whole.images(np.array([3])).item() == 5


def test_statistics_are_those_of_numpy(rng: np.random.Generator) -> None:
    images = rng.integers(0, 256, (2100, 3, 4, 5), np.uint8)
    images[:, 1] //= 3
    images[:, 2] = 7
    mean, std = channel_statistics(images)
    np.testing.assert_allclose(mean, (images / 255).mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std[:2], (images / 255).std((0, 2, 3))[:2], rtol=1e-12)
    assert std[2] == 1  # so that a constant channel can be divided by it


def test_given_statistics_are_kept_and_checked() -> None:
    images, labels = np.full((2, 1, 2, 2), 9, np.uint8), np.array([0, 1])
    assert ArrayDataset(images, labels, classes="ab", mean=(0.5,), std=(0.25,)).std == (0.25,)
    for mean, std in (((0.5, 0.5), (1, 1)), ((0.5,), (0,))):
        with pytest.raises(DataError, match="one number for each of the 1 channels"):
            ArrayDataset(images, labels, classes="ab", mean=mean, std=std)


def test_subset_of_a_subset() -> None:
    whole = dataset([6, 6])
    part = Subset(Subset(whole, np.arange(0, 12, 2)), np.array([5, 1]))
    assert (part.labels == whole.labels[[10, 2]]).all()
    assert (part.images(np.array([0, 1])) == whole.images(np.array([10, 2]))).all()
    with pytest.raises(DataError, match="from 0 to 12, but the dataset has 12"):
        Subset(whole, np.array([0, 12]))
    with pytest.raises(DataError, match="from -1"):
        Subset(whole, np.array([-1]))


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.25, 0.5, 0.9])
def test_split_is_stratified_and_complete(fraction: float) -> None:
    counts = [40, 33, 7, 100]
    whole = dataset(counts)
    rest, part = split(whole, fraction, seed=3)
    assert len(part) == -(-fraction * 180 // 1)
    assert sorted([*rest.indices, *part.indices]) == list(range(180))
    assert (np.diff(rest.indices) > 0).all()
    shares = np.bincount(part.labels, minlength=4) - fraction * np.array(counts)
    assert np.abs(shares).max() < 1


def test_split_depends_on_the_seed_alone() -> None:
    whole = dataset([40, 40])
    first, again = split(whole, 0.2, seed=1)[1], split(whole, 0.2, seed=1)[1]
    other = split(whole, 0.2, seed=2)[1]
    assert (first.indices == again.indices).all()
    assert (first.indices != other.indices).any()


def test_split_leaves_every_class_in_the_rest() -> None:
    rest, part = split(dataset([1, 2, 50]), 0.9)
    assert np.bincount(rest.labels).tolist() == [1, 1, 4]
    assert len(part) == 47


def test_split_refuses_what_it_cannot_do() -> None:
    for fraction in (0, 1, -0.5, float("nan")):
        with pytest.raises(ConfigError, match="between 0 and 1"):
            split(dataset([5]), fraction)
    with pytest.raises(DataError, match="too few"):
        split(dataset([1, 1]), 0.5)


class TestDigits:
    def test_the_split_is_fixed(self) -> None:
        splits = digits()
        assert (len(splits.train), len(splits.test)) == (1437, 360)
        assert splits.train.image_shape == (1, 8, 8)
        assert (splits.train.scale, splits.train.classes) == (16, tuple("0123456789"))
        counts = np.bincount(splits.test.labels)
        assert counts.tolist() == [36, 37, 35, 37, 36, 36, 36, 36, 35, 36]
        assert splits.test.labels[:12].tolist() == [2, 1, 8, 9, 0, 5, 9, 7, 7, 2, 6, 6]

    def test_the_parts_share_statistics_but_no_image(self) -> None:
        splits = digits()
        assert (splits.train.mean, splits.train.std) == (splits.test.mean, splits.test.std)
        pixels = splits.train.images(np.arange(1437)) / 16
        np.testing.assert_allclose(splits.train.mean, pixels.mean(), rtol=1e-12)
        np.testing.assert_allclose(splits.train.std, pixels.std(), rtol=1e-12)

    def test_they_are_scikit_learns(self) -> None:
        sklearn = pytest.importorskip("sklearn.datasets")
        original = sklearn.load_digits()
        known = {
            image.astype(np.uint8).tobytes(): label
            for image, label in zip(original.images, original.target, strict=True)
        }
        seen = 0
        for part in (digits().train, digits().test):
            for image, label in zip(part.images(np.arange(len(part))), part.labels, strict=True):
                assert known[image.tobytes()] == label
                seen += 1
        assert seen == 1797

    def test_a_changed_file_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        module = importlib.import_module("vitkit.data.digits")
        monkeypatch.setattr(module, "SHA256", "0" * 64)
        with pytest.raises(DataError, match="not the file that vitkit ships"):
            digits()
