"""Small data sets in their original formats, taken for the published ones."""

from __future__ import annotations

import gzip
import hashlib
import struct
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vitkit.backend import philox
from vitkit.data.sources import CIFAR10, MNIST

CODES = {"u1": 8, "i4": 12, "f4": 13}


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, CODES[array.dtype.str[1:]], array.ndim])
    sides = struct.pack(f">{array.ndim}I", *array.shape)
    return header + sides + array.astype(array.dtype.newbyteorder(">")).tobytes()


def mnist_files() -> dict[str, np.ndarray]:
    rng = philox(0, "f13 mnist")
    return {
        "train-images-idx3-ubyte": rng.integers(0, 256, (30, 28, 28), np.uint8),
        "train-labels-idx1-ubyte": (np.arange(30) % 10).astype(np.uint8),
        "t10k-images-idx3-ubyte": rng.integers(0, 256, (20, 28, 28), np.uint8),
        "t10k-labels-idx1-ubyte": (np.arange(20) % 10).astype(np.uint8),
    }


def write_mnist(root: Path, *, packed: bool, patch: pytest.MonkeyPatch) -> dict[Path, bytes]:
    """Write a small MNIST whose files are the original ones; return them."""
    contents = {name: idx(array) for name, array in mnist_files().items()}
    packs = {name: gzip.compress(content, mtime=0) for name, content in contents.items()}
    files = tuple(
        replace(
            file,
            size=len(contents[file.name]),
            sha256=hashlib.sha256(contents[file.name]).hexdigest(),
            gz_sha256=hashlib.sha256(packs[file.name]).hexdigest(),
        )
        for file in MNIST.files
    )
    module = sys.modules["vitkit.data.mnist"]  # vitkit.data.mnist is the function
    patch.setattr(module, "MNIST", replace(MNIST, files=files))
    patch.setattr(module, "OFFICIAL", (30, 20))
    root.mkdir()
    written = {}
    for name, content in contents.items():
        path = root / (f"{name}.gz" if packed else name)
        written[path] = packs[name] if packed else content
        path.write_bytes(written[path])
    return written


def records(number: int, count: int = 10) -> bytes:
    pixels = philox(0, "f13 cifar", number).integers(0, 256, (count, 3073), np.uint8)
    pixels[:, 0] = np.arange(count) % 10
    return pixels.tobytes()


def write_cifar10(root: Path, *, patch: pytest.MonkeyPatch) -> dict[Path, bytes]:
    """Write a small CIFAR-10 whose files are the original ones; return them."""
    root.mkdir()
    written = {root / file.name: records(k) for k, file in enumerate(CIFAR10.files)}
    digests = {path.name: hashlib.sha256(content).hexdigest() for path, content in written.items()}
    files = tuple(replace(file, size=30_730, sha256=digests[file.name]) for file in CIFAR10.files)
    module = sys.modules["vitkit.data.cifar"]
    patch.setattr(module, "CIFAR10", replace(CIFAR10, files=files))
    patch.setattr(module, "OFFICIAL", dict.fromkeys(module.OFFICIAL, 10))
    for path, content in written.items():
        path.write_bytes(content)
    return written


def arrays() -> dict[str, np.ndarray]:
    """Return what an npz file may hold."""
    rng = philox(0, "f13 npz")
    return {
        "x_train": rng.integers(0, 256, (20, 6, 6), np.uint8),
        "y_train": np.arange(20) % 4,
        "x_test": rng.integers(0, 256, (8, 6, 6), np.uint8),
        "y_test": np.arange(8) % 4,
    }
