from __future__ import annotations

import os
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitkit.data import npz
from vitkit.data.npz import read_npy
from vitkit.errors import DataError

Arrays = dict[str, np.ndarray]


@pytest.fixture
def arrays(rng: np.random.Generator) -> Arrays:
    """Return small arrays under the ancestors' names."""
    return {
        "x_train": rng.integers(0, 256, (12, 8, 8), np.uint8),
        "y_train": np.arange(12) % 3,
        "x_test": rng.integers(0, 256, (6, 8, 8), np.uint8),
        "y_test": np.arange(6) % 3,
    }


def save(path: Path, arrays: Arrays) -> Path:
    """Write a .npz file or, where the path has no suffix, a folder of .npy files."""
    if path.suffix:
        np.savez_compressed(path, **arrays)
    else:
        path.mkdir(exist_ok=True)
        for name, array in arrays.items():
            np.save(path / f"{name}.npy", array)
    return path


@pytest.mark.parametrize("name", ["data.npz", "data"])
def test_a_file_and_a_folder(name: str, arrays: Arrays, tmp_path: Path) -> None:
    splits = npz(save(tmp_path / name, arrays))
    assert splits.train.classes == ("0", "1", "2")
    assert splits.train.labels.tolist() == arrays["y_train"].tolist()
    np.testing.assert_array_equal(splits.test.images(np.arange(6))[:, 0], arrays["x_test"])
    assert splits.test.mean == splits.train.mean
    np.testing.assert_allclose(splits.train.mean, (arrays["x_train"] / 255).mean(), rtol=1e-12)


def test_layouts_of_images(arrays: Arrays, tmp_path: Path, rng: np.random.Generator) -> None:
    last = rng.integers(0, 256, (12, 8, 6, 3), np.uint8)
    first = np.ascontiguousarray(last.transpose(0, 3, 1, 2))
    del arrays["x_test"], arrays["y_test"]
    for images in (last, first, np.asfortranarray(last), last.astype(np.int64)):
        arrays["x_train"] = images
        train = npz(save(tmp_path / "x.npz", arrays)).train
        assert train.image_shape == (3, 8, 6)
        kept = first[[i for i in range(12) if train.images(np.arange(len(train))).tobytes()]]
        assert any((train.images(np.array([0]))[0] == image).all() for image in kept)
    for shape in ((12, 3, 8, 3), (12, 8, 8, 8), (12, 64)):
        arrays["x_train"] = np.zeros(shape, np.uint8)
        with pytest.raises(DataError, match="x_train: shape"):
            npz(save(tmp_path / "x.npz", arrays))


def test_labels_may_be_one_hot_or_a_column(arrays: Arrays, tmp_path: Path) -> None:
    expected = arrays["y_train"].tolist()
    for labels in (
        np.eye(3)[expected],
        np.eye(3, dtype=bool)[expected],
        np.eye(3, dtype=np.uint8)[expected],
        np.array(expected)[:, None],
    ):
        splits = npz(save(tmp_path / "x.npz", arrays | {"y_train": labels}))
        assert splits.train.labels.tolist() == expected
    wide = npz(save(tmp_path / "x.npz", arrays | {"y_train": np.eye(5)[expected]}))
    assert len(wide.train.classes) == 5


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_pixels_become_uint8_exactly(dtype: type, arrays: Arrays, tmp_path: Path) -> None:
    pixels = np.arange(12 * 64).reshape(12, 8, 8).astype(np.uint8)  # every value
    splits = npz(save(tmp_path / "x.npz", arrays | {"x_train": (pixels / 255).astype(dtype)}))
    np.testing.assert_array_equal(splits.train.images(np.arange(12))[:, 0], pixels)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": np.full((12, 8, 8), 3.5)}, "float64 pixels lie between 3.5 and 3.5"),
        ({"x_train": np.full((12, 8, 8), -0.5, np.float32)}, "between -0.5 and -0.5"),
        ({"x_train": np.full((12, 8, 8), np.nan)}, "between nan and nan"),
        ({"x_train": np.full((12, 8, 8), 0.3)}, "image 0 has the pixel 0.3, .* 1/255"),
        ({"x_train": np.full((12, 8, 8), 300)}, "between 300 and 300"),
        ({"x_train": np.ones((12, 8, 8), np.uint8)}, "largest pixel is 1"),
        ({"x_train": np.zeros((12, 8, 8), "c16")}, "complex128"),
        ({"x_train": np.zeros((0, 8, 8), np.uint8)}, "no pixels in it"),
        ({"x_train": np.zeros((11, 8, 8), np.uint8)}, "11 images but 12 labels"),
        ({"x_test": np.zeros((6, 9, 8), np.uint8)}, r"x_test of \(1, 9, 8\)"),
        ({"y_train": np.arange(12) % 3 - 1}, "label -1 at index 0"),
        ({"y_train": np.arange(12) % 3 + 1}, "labels run from 1 to 3; they must start at 0"),
        ({"y_train": (np.arange(12) % 3).astype(float)}, "labels are float64"),
        ({"y_train": np.array(list("abcdefghijkl"))}, "labels are <U1"),
        ({"y_test": np.arange(6)}, "y_test: label 3 at index 3 is out of range"),
        ({"y_train": np.eye(12, 3)}, r"row 3 is \[0. 0. 0.\], which sums to 0"),
        ({"y_train": np.full((12, 3), 1 / 3)}, "row 0 .* sums to 1; each row must"),
        ({"y_train": np.eye(12)[:, ::-1] * 2}, "row 0 .* sums to 2"),
        ({"y_train": np.zeros((12, 3, 2), int)}, r"\(12, 3, 2\)"),
    ],
)
def test_faults(changes: Arrays, message: str, arrays: Arrays, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"(?s)x.npz.*({message})"):
        npz(save(tmp_path / "x.npz", arrays | changes))


def test_fewer_class_names_than_labels(arrays: Arrays, tmp_path: Path) -> None:
    path = save(tmp_path / "x.npz", arrays)
    assert npz(path, classes=("a", "b", "c", "d")).train.classes == ("a", "b", "c", "d")
    with pytest.raises(DataError, match="label 2 at index 2"):
        npz(path, classes=("a", "b"))


def test_missing_arrays(arrays: Arrays, tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    for name in arrays:
        with pytest.raises(DataError, match=f"x.npz: {name} missing"):
            npz(save(path, {key: value for key, value in arrays.items() if key != name}))
    with pytest.raises(DataError, match="no such file"):
        npz(tmp_path / "y.npz")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="x_train and y_train missing"):
        npz(empty)


def test_without_a_test_part_it_is_split(arrays: Arrays, tmp_path: Path) -> None:
    del arrays["x_test"], arrays["y_test"]
    splits = npz(save(tmp_path / "x.npz", arrays))
    assert (len(splits.train), len(splits.test)) == (9, 3)
    assert "3 of 12 images" in splits.test.note


def npy_header(description: str, version: bytes = b"\x01\x00") -> bytes:
    text = description.encode().ljust(117) + b"\n"
    length = len(text).to_bytes(2 if version == b"\x01\x00" else 4, "little")
    return b"\x93NUMPY" + version + length + text


def described(shape: str, descr: str = "'<f8'") -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        b"not numpy at all",
        npy_header(described("(100000000000,)")),  # 745 GiB in 128 bytes
        npy_header(described("(2, -3)")) + bytes(48),
        npy_header(described("(-2, -3)")) + bytes(48),
        npy_header(described("(4,)")) + bytes(31),
        npy_header(described("(4,)")) + bytes(33),
        npy_header(described("(1,)", "'|O'")) + b"cos\nsystem\n(S'true'\ntR.",
        npy_header("{'descr': __import__('os').system('true')}"),
        npy_header(described("('a',)")),
        npy_header("{"),
        npy_header("\0" * 20),
        b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + bytes(64),
        b"\x93NUMPY\x09\x00\x10\x00" + bytes(64),
    ],
)
def test_faulty_npy_files(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "faulty.npy"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"faulty\.npy: "):
        read_npy(path)
    archive = tmp_path / "faulty.npz"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("x_train.npy", content)
        file.writestr("y_train.npy", content)
    with pytest.raises(DataError, match=r"faulty\.npz: x_train"):
        npz(archive)


def test_the_size_is_compared_before_anything_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse.npy"
    path.write_bytes(npy_header(described("(268435456,)")))
    os.truncate(path, 1 << 30)
    tracemalloc.start()
    with pytest.raises(DataError, match="2147483648 bytes after the header, but 1073741696 follow"):
        read_npy(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_both_versions_of_the_header(tmp_path: Path) -> None:
    for version in (b"\x01\x00", b"\x02\x00"):
        path = tmp_path / "x.npy"
        path.write_bytes(npy_header(described("(2, 1)"), version) + np.array([1.0, 2.0]).tobytes())
        assert read_npy(path).tolist() == [[1.0], [2.0]]


def test_faulty_archives(arrays: Arrays, tmp_path: Path) -> None:
    path = save(tmp_path / "x.npz", arrays)
    good = path.read_bytes()
    for content in (good[:-30], good[: len(good) // 2], b"PK\x05\x06", b"", b"abc"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"x\.npz"):
            npz(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as file:
        file.writestr("x_train.npy", b"x")
        file.writestr("y_train.npy", b"x")
    with pytest.raises(DataError, match=r"packed in a way NumPy does not"):
        npz(path)


def test_python_objects_are_never_loaded(arrays: Arrays, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "ran",)  # type: ignore[return-value]

    arrays["x_train"] = np.array([Payload()], dtype=object)
    for name in ("x.npz", "folder"):
        with pytest.raises(DataError, match="Python objects"):
            npz(save(tmp_path / name, arrays))
    assert not (tmp_path / "ran").exists()


@given(data=st.data())
def test_mutated_archives_are_refused_or_equal(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated.npz"
    x = np.random.default_rng(0).integers(0, 256, (12, 8, 8), np.uint8)
    y = np.arange(12) % 3
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        train = npz(path).train
    except DataError as error:
        message = str(error)
    else:
        message = ""
    if message:
        assert "mutated.npz" in message
        return
    known = {image.tobytes(): label for image, label in zip(x, y, strict=True)}
    images = train.images(np.arange(len(train)))
    assert [known[image.tobytes()] for image in images] == train.labels.tolist()
