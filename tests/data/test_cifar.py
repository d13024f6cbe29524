from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitkit.data import cifar10, cifar100
from vitkit.data.cifar import OFFICIAL, read_records
from vitkit.errors import DataError

Writer = Callable[[np.ndarray, np.ndarray], bytes]


def test_cifar10(cifar10_folder: Path) -> None:
    splits = cifar10(cifar10_folder)
    assert (len(splits.train), len(splits.test)) == (50, 10)
    assert splits.train.image_shape == (3, 32, 32)
    assert splits.train.classes[:2] == ("airplane", "automobile")
    assert splits.train.note == splits.test.note == ""
    record = (cifar10_folder / "data_batch_2.bin").read_bytes()[3073 * 4 : 3073 * 5]
    image = splits.train.images(np.array([14]))
    assert image.tobytes() == record[1:]  # red, green and blue planes, row by row
    assert splits.train.labels[14] == record[0] == 4


def test_the_first_1000_test_images_are_said_to_be_that(cifar10_folder: Path) -> None:
    (cifar10_folder / "test_batch.bin").rename(cifar10_folder / "test_batch_first1000.bin")
    splits = cifar10(cifar10_folder)
    assert "first 1000 official test images only" in splits.test.note
    assert "first 1000" not in splits.train.note


def test_class_names_are_read(cifar10_folder: Path) -> None:
    path = cifar10_folder / "batches.meta.txt"
    path.write_text("\n".join("abcdefghij") + "\n\n")
    assert cifar10(cifar10_folder).train.classes == tuple("abcdefghij")
    for content in (b"a\nb\n", b"a\n" * 10, b"\xff\xfe\n" * 10):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"batches\.meta\.txt"):
            cifar10(cifar10_folder)


def test_cifar100_takes_the_fine_label(
    tmp_path: Path,
    rng: np.random.Generator,
    to_cifar: Writer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vitkit.data.cifar.OFFICIAL", {"train.bin": 2, "test.bin": 2})
    monkeypatch.setattr("vitkit.data.cifar.check_originals", lambda source, place: None)
    labels = np.array([[19, 99], [0, 20]])
    for name in ("train.bin", "test.bin"):
        (tmp_path / name).write_bytes(to_cifar(labels, rng.integers(0, 256, (2, 3072), np.uint8)))
    splits = cifar100(tmp_path)
    assert splits.train.labels.tolist() == [99, 20]
    assert len(set(splits.train.classes)) == 100
    assert (splits.train.classes[0], splits.train.classes[99]) == ("apple", "worm")
    (tmp_path / "train.bin").write_bytes(
        to_cifar(np.array([[20, 99], [0, 20]]), np.zeros((2, 3072), np.uint8))
    )
    with pytest.raises(DataError, match="byte 0 of each record: label 20 at index 0"):
        cifar100(tmp_path)


def test_faults(cifar10_folder: Path) -> None:
    path = cifar10_folder / "data_batch_3.bin"
    good = path.read_bytes()
    for content, message in (
        (good[:-1], r"30729 bytes are not a whole number of records .*\(9 and 3072 bytes\)"),
        (good + b"x", "not a whole number"),
        (b"", "0 bytes are not"),
        (good[:3073] + b"\x0a" + good[3074:], "label 10 at index 1"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"data_batch_3.bin.*{message}"):
            cifar10(cifar10_folder)
    path.unlink()
    with pytest.raises(DataError, match=r"data_batch_3\.bin: there is no such file"):
        cifar10(cifar10_folder)


@pytest.mark.parametrize("name", ["data_batch_3.bin", "test_batch.bin"])
def test_fewer_images_than_official(name: str, cifar10_folder: Path) -> None:
    path = cifar10_folder / name
    path.write_bytes(path.read_bytes()[: 3073 * 4])
    with pytest.raises(DataError) as caught:
        cifar10(cifar10_folder)
    message = str(caught.value)
    assert f"{name}: 4 images, where 10 of cifar10 are due" in message
    for cure in ("vitkit data verify cifar10", "vitkit data prepare cifar10", "npz or folder"):
        assert cure in message


def test_cifar100_with_fewer_images_than_official(tmp_path: Path, to_cifar: Writer) -> None:
    records = to_cifar(np.array([[19, 99], [0, 20]]), np.zeros((2, 3072), np.uint8))
    for name in ("train.bin", "test.bin"):
        (tmp_path / name).write_bytes(records)
    with pytest.raises(DataError, match=r"train\.bin: 2 images, where 50000 of cifar100 are due"):
        cifar100(tmp_path)


def test_the_official_counts() -> None:
    assert {
        **{f"data_batch_{i}.bin": 10000 for i in range(1, 6)},
        **{"test_batch.bin": 10000, "test_batch_first1000.bin": 1000},
        **{"train.bin": 50000, "test.bin": 10000},
    } == OFFICIAL


@pytest.mark.parametrize("inside", ["", "cifar-10-batches-py"])
def test_the_pickled_version_is_refused(tmp_path: Path, inside: str) -> None:
    folder = tmp_path / inside
    folder.mkdir(exist_ok=True)
    for name in ("data_batch_1", "test_batch", "batches.meta"):
        (folder / name).write_bytes(pickle.dumps({b"data": b"", b"labels": [0]}))
    with pytest.raises(DataError, match=r"pickle .*binary version: .vitkit data prepare cifar10"):
        cifar10(tmp_path)
    (tmp_path / "data_batch_1.bin").write_bytes(pickle.dumps({b"data": b"", b"labels": [0]}))
    with pytest.raises(DataError, match="not the binary version"):
        cifar10(tmp_path)


@given(data=st.data())
def test_mutated_files_are_refused_or_read_as_they_are(
    data: st.DataObject, to_cifar: Writer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pixels = np.arange(3 * 3072).reshape(3, 3072) % 251
    content = bytearray(to_cifar(np.array([[1], [2], [9]]), pixels))
    change = data.draw(st.sampled_from(["byte", "label", "cut", "insert"]))
    place = data.draw(st.integers(0, len(content) - 1))
    if change == "byte":
        content[place] = data.draw(st.integers(0, 255))
    elif change == "label":
        content[place // 3073 * 3073] = data.draw(st.integers(0, 255))
    elif change == "cut":
        del content[place : place + data.draw(st.sampled_from([1, 100, 3073]))]
    else:
        content[place:place] = data.draw(st.binary(min_size=1, max_size=9))
    path = tmp_path_factory.getbasetemp() / "mutated.bin"
    path.write_bytes(content)
    try:
        images, labels = read_records(path, (10,))
    except DataError as error:
        message = str(error)
    else:
        message = ""
    if message:
        assert "mutated.bin" in message
        assert len(content) % 3073 or max(content[::3073]) > 9
        return
    assert labels.max() < 10
    assert to_cifar(labels[:, None], images.reshape(-1, 3072)) == content


def test_the_real_one(real_cifar10: Path) -> None:
    splits = cifar10(real_cifar10)
    assert len(splits.train) == 50000
    assert np.bincount(splits.train.labels).tolist() == [5000] * 10
    assert splits.train.classes[9] == "truck"
    if not (real_cifar10 / "test_batch.bin").exists():
        assert len(splits.test) == 1000
        assert "first 1000" in splits.test.note
    pixels = splits.train.images(np.arange(50000)).astype(np.float32) / 255
    mean, std = pixels.mean((0, 2, 3), np.float64), pixels.std((0, 2, 3), np.float64)
    np.testing.assert_allclose(splits.train.mean, mean, rtol=1e-4)
    np.testing.assert_allclose(splits.train.std, std, rtol=1e-4)
