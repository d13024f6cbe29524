"""Tiny files in the original formats, written by the tests themselves."""

from __future__ import annotations

import gzip
import importlib.util
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vitkit.data.cifar import OFFICIAL

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx_bytes(array: np.ndarray) -> bytes:
    """Return an array in the IDX format."""
    code = CODES[array.dtype.str[1:]]
    header = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.fixture(scope="session")
def to_idx() -> Callable[[np.ndarray], bytes]:
    """Return the writer of IDX."""
    return idx_bytes


@pytest.fixture
def mnist_arrays(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> dict[str, np.ndarray]:
    """Return the contents of a small MNIST by file name, and take it for official."""
    # By its module: vitkit.data.mnist is the function of that name.
    module = sys.modules["vitkit.data.mnist"]
    monkeypatch.setattr(module, "OFFICIAL", (30, 20))
    monkeypatch.setattr(module, "check_originals", lambda source, place: None)
    return {
        "train-images-idx3-ubyte": rng.integers(0, 256, (30, 28, 28), np.uint8),
        "train-labels-idx1-ubyte": (np.arange(30) % 10).astype(np.uint8),
        "t10k-images-idx3-ubyte": rng.integers(0, 256, (20, 28, 28), np.uint8),
        "t10k-labels-idx1-ubyte": (np.arange(20) % 10).astype(np.uint8),
    }


@pytest.fixture
def mnist_folder(tmp_path: Path, mnist_arrays: dict[str, np.ndarray]) -> Path:
    """Return a folder with a small MNIST, compressed."""
    folder = tmp_path / "mnist"
    folder.mkdir()
    for name, array in mnist_arrays.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(array)))
    return folder


def cifar_bytes(labels: np.ndarray, pixels: np.ndarray) -> bytes:
    """Return CIFAR records: labels uint8 (N, 1 or 2) and pixels uint8 (N, 3072)."""
    return np.concatenate([labels, pixels], axis=1).astype(np.uint8).tobytes()


@pytest.fixture(scope="session")
def to_cifar() -> Callable[[np.ndarray, np.ndarray], bytes]:
    """Return the writer of CIFAR records."""
    return cifar_bytes


@pytest.fixture
def cifar10_folder(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Return a folder with a small CIFAR-10: 5 times 10 images, and 10 to test."""
    monkeypatch.setattr("vitkit.data.cifar.OFFICIAL", dict.fromkeys(OFFICIAL, 10))
    monkeypatch.setattr("vitkit.data.cifar.check_originals", lambda source, place: None)
    folder = tmp_path / "cifar10"
    folder.mkdir()
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        pixels = rng.integers(0, 256, (10, 3072), np.uint8)
        (folder / name).write_bytes(cifar_bytes(np.arange(10)[:, None], pixels))
    return folder


@pytest.fixture(scope="session")
def real_mnist(real_data: Path) -> Path:
    """Return the folder of the real MNIST, or skip."""
    folder = real_data / "mnist"
    if not folder.is_dir():
        pytest.skip(f"needs the real MNIST in {folder}")
    return folder


@pytest.fixture(scope="session")
def real_cifar10(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the real CIFAR-10 in its binary layout, or skip."""
    folder = real_data / "cifar10"
    if (folder / "data_batch_1.bin").is_file():
        return folder
    if not (folder / "unpack.py").is_file():
        pytest.skip(f"needs the real CIFAR-10 in {folder}")
    specification = importlib.util.spec_from_file_location("unpack", folder / "unpack.py")
    assert specification is not None
    assert specification.loader is not None
    unpack = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(unpack)
    target = tmp_path_factory.mktemp("cifar10")
    unpack.main(target)
    return target
