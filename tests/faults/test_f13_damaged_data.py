"""F13: a damaged file of data is refused, or read as it was written: no label is silently wrong.

MNIST and CIFAR are compared with the published SHA-256, an npz file has checksums of its own, and
folders are compared with ``SHA256SUMS`` where there is one. What has neither is at least looked at:
counts, shapes, ranges, and numbers that are none.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from injecting import Injected, faults
from mutations import MUTATIONS
from PIL import Image
from small_sets import arrays, write_cifar10, write_mnist

from vitkit.backend import philox
from vitkit.data import Dataset, Splits, cifar10, digits, folder, mnist, npz
from vitkit.errors import DataError

Content = list[tuple[bytes, bytes]]


def content_of(splits: Splits) -> Content:
    """Return the labels and pixels of both parts."""

    def bits(part: Dataset) -> tuple[bytes, bytes]:
        return part.labels.tobytes(), part.images(np.arange(len(part))).tobytes()

    return [bits(splits.train), bits(splits.test)]


def tried(
    purpose: str,
    files: dict[Path, bytes],
    read: Callable[[], Splits],
    count: int,
    *,
    named: bool = True,
) -> tuple[int, int]:
    """Damage one file after another; return how many were refused, and read as written."""
    whole, names = content_of(read()), list(files)
    refused = equal = 0
    for number in range(count):
        rng = philox(0, purpose, number)
        path = names[int(rng.integers(len(names)))]
        mutated = MUTATIONS[int(rng.integers(len(MUTATIONS)))](files[path], rng)
        path.write_bytes(mutated)
        message = ""
        try:
            found = content_of(read())
        except DataError as error:
            message = str(error)
        if message:
            refused += 1
            assert not named or path.name in message
        else:
            equal += 1
            assert found == whole, f"mutation {number} of {path.name} is read, and is wrong"
        path.write_bytes(files[path])
    assert content_of(read()) == whole
    return refused, equal


@pytest.mark.parametrize("packed", [False, True])
def test_mnist(
    packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, injected: Injected
) -> None:
    root, count = tmp_path / "mnist", faults(500, 10_000)
    files = write_mnist(root, packed=packed, patch=monkeypatch)
    refused, equal = tried("f13 mnist", files, lambda: mnist(root), count)
    assert equal <= (0.1 * count if packed else 0.02 * count)  # what gzip does not use
    injected("damaged IDX files", refused + equal, at_least=count)


def test_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, injected: Injected) -> None:
    root, count = tmp_path / "cifar10", faults(900, 10_000)
    files = write_cifar10(root, patch=monkeypatch)
    refused, equal = tried("f13 cifar", files, lambda: cifar10(root), count)
    assert equal <= 0.02 * count
    injected("damaged CIFAR files", refused + equal, at_least=count)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(save: Callable[..., None], tmp_path: Path, injected: Injected) -> None:
    path, count = tmp_path / "data.npz", faults(500, 10_000)
    save(path, **arrays())
    refused, equal = tried("f13 npz", {path: path.read_bytes()}, lambda: npz(path), count)
    assert refused > 0.5 * count
    injected("damaged npz files", refused + equal, at_least=count)


def test_a_folder_of_npy_with_sums(tmp_path: Path, injected: Injected) -> None:
    files, count = {}, faults(600, 10_000)
    for name, array in arrays().items():
        path = tmp_path / f"{name}.npy"
        np.save(path, array)
        files[path] = path.read_bytes()
    sums = tmp_path / "SHA256SUMS"
    sums.write_text(
        "".join(f"{hashlib.sha256(c).hexdigest()}  {p.name}\n" for p, c in files.items())
    )
    refused, equal = tried("f13 npy", files, lambda: npz(tmp_path), count)
    assert equal <= 0.02 * count
    files = {sums: sums.read_bytes()}
    again, same = tried("f13 sums", files, lambda: npz(tmp_path), count // 6, named=False)
    assert same <= 0.2 * again
    injected("damaged npy files and sums", refused + equal + again + same, at_least=count)


def test_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, injected: Injected) -> None:
    module, count = sys.modules["vitkit.data.digits"], faults(100)
    content = module.resources.files("vitkit.data").joinpath("resources/digits.npz").read_bytes()
    (tmp_path / "resources").mkdir()
    path = tmp_path / "resources" / "digits.npz"
    path.write_bytes(content)
    monkeypatch.setattr(module.resources, "files", lambda package: tmp_path)
    refused, equal = tried("f13 digits", {path: content}, digits, count)
    injected("damaged digits", refused + equal, at_least=count)


def photos(root: Path) -> None:
    for label, name in enumerate(("cat", "dog", "eel")):
        (root / name).mkdir(parents=True)
        for number in range(4):
            pixels = philox(0, "f13 photos", label, number).integers(0, 256, (6, 6, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    lines = (
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(root).as_posix()}\n"
        for path in sorted(root.rglob("*.png"))
    )
    (root / "SHA256SUMS").write_text("".join(lines))


def test_images_in_the_wrong_place_are_told(tmp_path: Path, injected: Injected) -> None:
    count = 0
    for number in range(faults(600, 5_000) // 2):
        rng = philox(0, "f13 folder", number)
        root = tmp_path / str(number)
        photos(root)
        paths = sorted(root.rglob("*.png"))
        one, two = (paths[k] for k in rng.permutation(len(paths))[:2])
        content = one.read_bytes(), two.read_bytes()
        change = ("moved", "exchanged", "copied", "removed", "renamed", "class")[number % 6]
        if change == "moved":
            one.rename(two.parent / f"moved{one.name}")
        elif change == "exchanged":
            one.write_bytes(content[1])
            two.write_bytes(content[0])
        elif change == "copied":
            shutil.copy(one, two.parent / f"9{one.name}")
        elif change == "removed":
            one.unlink()
        elif change == "renamed":
            one.rename(one.with_name("x.png"))
        else:
            one.parent.rename(root / "ant")  # all labels change
        with pytest.raises(DataError, match=r"SHA-256|SHA256SUMS"):
            folder(root, 4)
        shutil.rmtree(root)
        count += 1
    injected("folders with an image in the wrong place", count, at_least=faults(600) // 2)


def with_(**changes: object) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Return what replaces arrays; None leaves one out, a function is called with the old one."""

    def changed(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        for name, change in changes.items():
            if change is None:
                del found[name]
            else:
                found[name] = np.asarray(change(found[name]) if callable(change) else change)
        return found

    return changed


def at(place: int, value: object, dtype: object = None) -> Callable[[np.ndarray], np.ndarray]:
    """Return what puts a value at one place of a copy."""

    def put(array: np.ndarray) -> np.ndarray:
        copy = array.astype(dtype or array.dtype)
        copy.reshape(-1)[place] = value
        return copy

    return put


def hot(array: np.ndarray) -> np.ndarray:
    return np.eye(4)[array]


WRONG_ARRAYS = {
    "fewer labels": (with_(y_train=lambda y: y[:-1]), "20 images but 19 labels"),
    "more labels": (with_(y_train=lambda y: np.append(y, 0)), "20 images but 21 labels"),
    "fewer test labels": (with_(y_test=lambda y: y[:-1]), "8 images but 7 labels"),
    "a negative label": (with_(y_train=at(3, -1)), "label -1 at index 3"),
    "labels from 1": (with_(y_train=lambda y: y + 1), "must start at 0"),
    "an empty class": (with_(y_train=lambda y: np.where(y == 2, 3, y)), "no image has the label 2"),
    "a label far away": (with_(y_train=at(5, 1 << 40)), "no image has the label 4"),
    "a label of 64 bits": (with_(y_train=at(5, 2**64 - 1, np.uint64)), "labels run to"),
    "a test label that is unknown": (with_(y_test=at(2, 4)), "label 4 at index 2"),
    "labels that are float": (with_(y_train=lambda y: y * 1.0), "labels are float64"),
    "a label that is NaN": (with_(y_train=at(1, np.nan, float)), "labels are float64"),
    "labels that are text": (with_(y_train=lambda y: y.astype("U3")), "labels are <U3"),
    "two classes in a row": (with_(y_train=lambda y: at(1, 1)(hot(y))), "row 0 is .* sums to 2"),
    "no class in a row": (with_(y_train=lambda y: at(0, 0)(hot(y))), "row 0 is .* sums to 0"),
    "almost one": (with_(y_train=lambda y: hot(y) * 0.9), "must have a single 1"),
    "a NaN in a row": (with_(y_train=lambda y: at(2, np.nan)(hot(y))), "must have a single 1"),
    "labels in a cube": (with_(y_train=lambda y: y.reshape(5, 2, 2)), "labels have the shape"),
    "no labels": (with_(y_train=None), "y_train missing"),
    "no test labels": (with_(y_test=None), "y_test missing"),
    "no test images": (with_(x_test=None), "x_test missing"),
    "no image": (with_(x_train=lambda x: x[:0], y_train=lambda y: y[:0]), "no pixels"),
    "one image": (
        lambda found: {"x_train": found["x_train"][:1], "y_train": found["y_train"][:1]},
        "too few",
    ),
    "a NaN pixel": (with_(x_train=lambda x: at(9, np.nan)(x / 255)), "between nan and nan"),
    "an infinite pixel": (with_(x_train=lambda x: at(9, np.inf)(x / 255)), "and inf"),
    "normalised pixels": (with_(x_train=lambda x: x / 255 - 0.5), "not normalized"),
    "pixels between steps": (with_(x_train=lambda x: x / 255 * 0.999), "no multiple of 1/255"),
    "a pixel of 256": (with_(x_train=at(9, 256, int)), "0 to 255 is due"),
    "a pixel of -1": (with_(x_train=at(9, -1, int)), "0 to 255 is due"),
    "pixels divided away": (with_(x_train=lambda x: x // 200), "largest pixel is 1"),
    "complex pixels": (with_(x_train=lambda x: x * 1j), "pixels are complex128"),
    "pixels of text": (with_(x_train=lambda x: x.astype("S1")), "pixels are "),
    "test images of another size": (with_(x_test=lambda x: x[:, :5]), "x_test of"),
    "flat images": (with_(x_train=lambda x: x.reshape(20, 36)), r"\(N, H, W\)"),
    "images of five axes": (with_(x_train=lambda x: x[..., None, None]), "is due"),
    "two channels": (with_(x_train=lambda x: np.stack([x, x], 1)), "neither axis is"),
    "channels on either side": (with_(x_train=lambda x: x[:, :3, None, :3]), "x_train"),
}


@pytest.mark.parametrize("name", WRONG_ARRAYS)
def test_arrays_that_cannot_be_right(name: str, tmp_path: Path, injected: Injected) -> None:
    change, message = WRONG_ARRAYS[name]
    path = tmp_path / "data.npz"
    np.savez(path, **change(arrays()))
    with pytest.raises(DataError, match=message):
        npz(path)
    injected(f"data set with {name}", 1)


def test_benchmarks_that_are_whole_and_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, injected: Injected
) -> None:
    """Files of the right size and form, whose labels no check but their hash can know."""
    files = write_mnist(tmp_path / "mnist", packed=False, patch=monkeypatch)
    images, labels, _, test_labels = files
    wrong = [
        (labels, files[labels][:8] + files[labels][8:][::-1], "not the original file"),
        (labels, files[labels][:-1] + b"\x0a", "label 10 at index 29"),
        (labels, files[test_labels], "30 images but 20 labels"),
        (labels, files[images], "labels, uint8"),
        (images, files[images][:16] + bytes(30 * 784), "not the original file"),
    ]
    batches = write_cifar10(tmp_path / "cifar10", patch=monkeypatch)
    one, two, *_ = batches
    changed = bytearray(batches[one])
    changed[0] = 7
    wrong += [
        (one, batches[two], "not the original file"),
        (one, bytes(changed), "not the original file"),
        (one, bytes(30_730), "not the original file"),
        (one, b"\xff" + batches[one][1:], "label 255 at index 0"),
    ]
    for path, content, message in wrong:
        path.write_bytes(content)
        with pytest.raises(DataError, match=message) as caught:
            mnist(path.parent) if path in files else cifar10(path.parent)
        assert path.name in str(caught.value)
        path.write_bytes((files | batches)[path])
    names = tmp_path / "cifar10" / "batches.meta.txt"
    names.write_text(
        "\n".join("automobile airplane bird cat deer dog frog horse ship truck".split())
    )
    with pytest.raises(DataError, match="official class names in another order"):
        cifar10(tmp_path / "cifar10")
    injected("benchmarks that are whole and wrong", len(wrong) + 1, at_least=10)


def test_folders_that_cannot_be_right(tmp_path: Path, injected: Injected) -> None:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (9, 99, 9)).save(file, "PNG")

    def tree(name: str, *paths: str) -> Path:
        for path in paths:
            place = tmp_path / name / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.mkdir() if path.endswith("/") else place.write_bytes(file.getvalue())
        return tmp_path / name

    sums = tree("sums", "cat/1.png", "dog/1.png") / "SHA256SUMS"
    cases = [
        (tree("empty class", "cat/1.png", "dog/"), "dog: the class has no images"),
        (tree("one image", "cat/1.png"), "too few"),
        (tree("no class", "1.png"), "one folder for each class"),
        (tree("too deep", "photos/cat/1.png", "photos/dog/1.png"), "photos: the class has no"),
        (tree("parts", "train/cat/1.png", "train/dog/1.png", "test/cat/1.png"), "has dog"),
        (tree("only test", "test/cat/1.png"), "has test/ but no train/"),
        (tmp_path / "only test" / "test" / "cat" / "1.png", "there is no such folder"),
        (tmp_path / "nowhere", "there is no such folder"),
    ]
    for root, message in cases:
        with pytest.raises(DataError, match=message):
            folder(root, 4)
    digest = hashlib.sha256(file.getvalue()).hexdigest()
    lines = (
        (f"{digest}  ../cat/1.png\n", "not inside the folder"),
        (f"{digest}  /cat/1.png\n", "not inside the folder"),
        (f"{digest}  cat/1.png\n{digest}  cat/1.png\n", "line 2: cat/1.png for the second time"),
        (f"{digest} cat/1.png\n", "line 1: 64 hexadecimal digits"),
        (f"{digest[:-1]}  cat/1.png\n", "line 1: 64 hexadecimal digits"),
        (f"{digest}  cat/1.png\n", "dog.1.png: not listed in SHA256SUMS"),
        ("", "cat.1.png: not listed in SHA256SUMS"),
        (f"\\{digest}  cat\\\\1.png\n{digest} *dog/1.png\r\n", "cat.1.png: not listed"),
    )
    for text, message in lines:
        sums.write_text(text, newline="")
        with pytest.raises(DataError, match=message):
            folder(sums.parent, 4)
    injected("folders that cannot be right", len(cases) + len(lines), at_least=16)
